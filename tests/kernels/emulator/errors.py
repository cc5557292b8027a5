"""What goes wrong with a kernel: its text, its compilation, its run."""


class EmulatorError(Exception):
    """A kernel that Metal would refuse or run wrongly; the words say where."""


class CompileError(EmulatorError):
    """The compiler's own words about the kernel's text."""
