"""Fault injection: what Fletcher does when engines, processes, disks and servers fail. See docs/reliability.md."""
