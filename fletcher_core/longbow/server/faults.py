"""The ways in which the embedded server can be told to misbehave, each seen on a real Longbow server.

In: a name or JSON from a test, the command line or the `fault` action. Out: a frozen `Faults` value.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from fletcher_core.errors import ConfigError


@dataclass(frozen=True)
class Faults:
    """Everything off by default; a fault stays on until the value is replaced."""

    stall_before_flush: bool = False
    """A put is read but never stored: silence until the client's deadline (memory over the server's limit)."""
    slow_down: bool = False
    """Every put starts with the `slow_down` message, then goes on normally."""
    drop_after_ok: bool = False
    """A put gets its OK and is logged, but is not in memory: unreadable until the server starts again."""
    lose_last_puts: int = 0
    """On opening the folder, the last n puts are gone (the server was killed before it wrote its log)."""
    resurrect_deletes: bool = False
    """Deletes are not logged: on opening the folder, deleted rows are back and cannot be deleted by id."""
    index_delay: float = 0.0
    """Seconds between a put's OK and its rows being searchable."""
    index_stall: bool = False
    """Rows put while this is on are not indexed until it is off again."""
    index_collapse: bool = False
    """Above 10,000 rows the index holds every tenth row only, and says READY (the auto-sharding defect)."""
    no_extensions: bool = False
    """Nothing that Longbow v0.1.2 cannot do: float16 vectors are stored but not indexed, scans answer whole rows, and
    `check_readiness` says nothing of either."""
    unavailable_mid_stream: int | None = None
    """A put fails with UNAVAILABLE at its end, after this many of its rows were stored."""
    fail_share: float = 0.0
    """This share of all puts, scans and actions, from 0 to 1, fails with UNAVAILABLE."""
    fail_seed: int = 0
    """Which calls these are follows from this number and how many calls there were."""
    resource_exhausted: bool = False
    """Every put is refused with RESOURCE_EXHAUSTED."""
    wholly_deleted_batch_breaks_scan: bool = False
    """An unfiltered scan fails with INTERNAL once every row of a stored batch is deleted."""


def parse_faults(texts: Iterable[str]) -> Faults:
    """`["slow_down", "lose_last_puts=2"]` -> Faults. Raises ConfigError naming an unknown fault or a bad value."""
    values: dict[str, object] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            values[name] = json.loads(value) if value else _default_on(name)
        except ValueError as error:
            raise ConfigError(f"--fault {text}: the value is no number ({error})") from error
    return faults_from(values)


def faults_from(values: dict[str, object]) -> Faults:
    """The JSON object of the `fault` action -> Faults; faults that it does not name are off."""
    known = {field.name: field for field in dataclasses.fields(Faults)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown fault {name!r}; there are: {', '.join(known)}")
        if not isinstance(value, bool | int | float):
            raise ConfigError(f"fault {name}: {str(value)[:100]!r} is neither true, false nor a number")
        kind = known[name].type
        fits = isinstance(value, bool) if kind is bool else 0 <= value < 1e9
        if not fits or (kind not in (bool, float) and not isinstance(value, int)):
            raise ConfigError(
                f"fault {name} cannot be {value!r}: it is a {'truth value' if kind is bool else 'number'}"
            )
    return Faults(**values)  # type: ignore[arg-type]


def _default_on(name: str) -> object:
    """What a fault is set to when only its name is given."""
    return {"lose_last_puts": 1, "index_delay": 1.0, "unavailable_mid_stream": 0, "fail_share": 0.3}.get(name, True)
