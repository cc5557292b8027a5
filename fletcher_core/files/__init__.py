"""Texts of files, tables and streams in, files and streams of vectors out; no store in between."""
