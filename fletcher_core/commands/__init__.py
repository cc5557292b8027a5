"""The commands of `fletcher`, a module each: a function whose parameters are the options, thin over the core.

It returns the status to end with. What takes long to import is imported where it is used.
"""
