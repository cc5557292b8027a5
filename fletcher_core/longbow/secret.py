"""A password or token in, the same out on demand, and nowhere else: not in a repr, a log line, a pickle or a copy."""

import hmac

from fletcher_core.errors import ConfigError

_HIDDEN = "***"


class Secret:
    """A text that shows itself as `***`; `reveal` gives it to the one who must have it. Compares in constant time."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for a request's header; never for a message."""
        return self._text

    def __repr__(self) -> str:
        return _HIDDEN

    def __format__(self, specification: str) -> str:
        return format(_HIDDEN, specification)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and same_secret(self._text, other._text)

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memory: dict[int, object]) -> "Secret":
        return self

    def __reduce__(self) -> tuple[type["Secret"], tuple[str]]:
        if not self._text:  # as it is in settings without a token, which may go to another process
            return Secret, ("",)
        raise ConfigError(
            "a token is not pickled, as it would end up in a file or on a network: give token_file or token_env, so "
            "that the other process reads it by itself"
        )


def same_secret(given: str, wanted: str) -> bool:
    """Whether two texts are equal, in a time that does not tell how far they agree."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass"))
