"""The version this library registers with Dagster; the same as the distribution's."""

__version__ = "0.1.0"
