"""What a sensor remembers of a source between two ticks: a short mark for each partition, and how often it changed.

In comes the cursor's text and what the source looks like now; out come the partitions that differ and the next cursor.
Sizes are bounded by the number of partitions: neither rows nor file names are kept.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class SourceCursor:
    """`states` holds a mark by partition key, under '' that of a source without partitions.

    `sequence` counts the ticks that asked for runs and `epoch` names the time when the cursor began: both go into run
    keys, since a source may come back to an earlier state, which Dagster would take for a run that it knows.
    """

    epoch: str
    sequence: int = 0
    states: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None, epoch: str) -> "SourceCursor":
        """The cursor that `text` holds; a fresh one begun at `epoch` where there is none, or it is not one of these."""
        try:
            facts = json.loads(text or "")
            states = {str(key): str(state) for key, state in facts["states"].items()}
            return cls(str(facts["epoch"]), int(facts["sequence"]), states)
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls(epoch)

    def text(self) -> str:
        return json.dumps({"epoch": self.epoch, "sequence": self.sequence, "states": dict(self.states)})

    def changed(self, now: Mapping[str, str]) -> list[str]:
        """Keys that are new, different or gone, in the order of `now`, the gone ones last."""
        differs = [key for key, state in now.items() if self.states.get(key) != state]
        return differs + [key for key in self.states if key not in now]

    def advanced(self, now: Mapping[str, str], keys: Iterable[str]) -> "SourceCursor":
        """The cursor once runs for `keys` have been asked for."""
        taken = set(keys)
        kept = {key: state for key, state in self.states.items() if key not in taken}
        return replace(self, sequence=self.sequence + 1, states={**kept, **{k: now[k] for k in now if k in taken}})

    def run_key(self, key: str, now: Mapping[str, str]) -> str:
        """The same as long as neither the cursor nor the state changes: a tick that is repeated asks for nothing."""
        return "-".join(filter(None, [self.epoch, str(self.sequence + 1), key, now.get(key, "gone")]))
