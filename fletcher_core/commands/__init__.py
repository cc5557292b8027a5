"""The commands of `fletcher`, a module each: `add` describes its arguments, `run` does it and returns its status."""
