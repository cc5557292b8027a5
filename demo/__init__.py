"""Fletcher's demo: real text from this machine, a real Dagster project, and what `make demo` runs."""
