"""What a thread knows of the run that it works for: its span, and the ids in its log lines. Python's own threads do not
take this over from whoever starts them."""

from collections.abc import Callable
from contextvars import copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_this_context(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, to be called on any thread, several at once too, with the context variables as they are now."""
    context = copy_context()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.copy().run(function, *args, **kwargs)

    return call
