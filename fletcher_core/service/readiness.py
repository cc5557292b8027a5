"""Is the service able to answer? A known text through the engine in use, compared with what it gave at the start.

Nothing that only looks well counts: an engine that hangs, has ended, or computes something else fails the probe. What
was found holds for a second, so that no number of probes loads the device.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, dataclass, field
from typing import Any

from fletcher_core.engines.agreement import least_cosine
from fletcher_core.errors import EngineError, FletcherError, LongbowError
from fletcher_core.longbow.client import LongbowClient
from fletcher_core.service.batcher import Batcher
from fletcher_core.telemetry.metrics import READY
from fletcher_core.text_window import EmbeddedTexts

# Another engine that stands in, such as int8 for floats, agrees to 0.99 and more; a wrong vector to nothing like it.
_LEAST_COSINE = 0.98
_MAX_AGE = 1.0
_LONGBOW_AGE = 5.0
_FIRST_SECONDS = 120.0


@dataclass(frozen=True)
class Report:
    """What a probe found. `ready` is about embedding: a Longbow that is down is reported and holds up nothing but
    Flight's DoPut. `engine` and `longbow` are details, as JSON has them."""

    ready: bool
    reason: str = ""
    engine: dict[str, Any] = field(default_factory=dict)
    queue: dict[str, Any] = field(default_factory=dict)
    longbow: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Readiness:
    """Probes on demand; `check` may be called from any thread.

    Args:
        batcher: through which the known text goes, ahead of what waits.
        timeout: seconds in which its vectors must be there.
        longbow: whose state is told, too.

    Raises:
        EngineError, DeadlineExceeded: the engine does not compute the known text now.
    """

    def __init__(self, batcher: Batcher, timeout: float, longbow: LongbowClient | None = None) -> None:
        self._batcher = batcher
        self._timeout = timeout
        self._longbow = longbow
        try:
            self._reference = batcher.probe(_FIRST_SECONDS).result(_FIRST_SECONDS).vectors.copy()
        except FutureTimeoutError as error:
            raise EngineError(
                f"engine {batcher.embedder.engine.name!r} has not computed a known text within {_FIRST_SECONDS:g} s: "
                "it hangs. Start the service again, or choose another engine"
            ) from error
        READY.set(1)
        self._lock = threading.Lock()
        self._probe: Future[EmbeddedTexts] | None = None
        self._report: Report | None = None
        self._checked_at = 0.0
        self._longbow_said: dict[str, Any] = {}
        self._longbow_at = -_LONGBOW_AGE
        self._asking_longbow = threading.Lock()
        self.draining: Callable[[], bool] = lambda: False

    @property
    def latest(self) -> Report | None:
        """What was found within the last second, if anything was: answers at once."""
        report = self._report
        if self.draining():
            return Report(False, "the service is ending")
        return report if report is not None and time.monotonic() - self._checked_at < _MAX_AGE else None

    def check(self) -> Report:
        """What was found within the last second, else what a probe finds now: within its timeout."""
        with self._lock:
            if (latest := self.latest) is not None:
                return latest
            started = time.monotonic()
            reason = self._try_engine()
            seconds = time.monotonic() - started
            embedder = self._batcher.embedder
            health = embedder.health
            self._report = Report(
                ready=not reason,
                reason=reason,
                engine={
                    "name": embedder.engine.name,
                    "device": embedder.engine.device,
                    "precision": embedder.engine.precision,
                    "probe_seconds": round(seconds, 4),
                    "standing_in": health.standing_in,
                    "failed": health.failed,
                    "last_failure": health.last_failure,
                    "devices": health.devices,
                    "devices_out": list(health.devices_out),
                },
                queue={"tokens": self._batcher.queued_tokens, "tokens_per_second": round(self._batcher.rate)},
                longbow=self._ask_longbow(),
            )
            self._checked_at = time.monotonic()
            READY.set(self._report.ready)
            return self._report

    def _try_engine(self) -> str:
        """'' when it computes what it should, else what is wrong."""
        probe = self._probe
        if probe is None or probe.done():  # one that is still out is waited for: a hanging engine gets no second one
            probe = self._probe = self._batcher.probe(_FIRST_SECONDS)
        try:
            result = probe.result(self._timeout)
        except FutureTimeoutError:
            return f"the engine has not computed a known text within {self._timeout:g} s: it hangs, or is overloaded"
        except FletcherError as error:
            return f"the engine does not compute a known text: {error}"
        self._probe = None
        if result.failed:
            return f"the engine does not compute a known text: {next(iter(result.failed.values()))}"
        cosine = least_cosine(result.vectors, self._reference)
        if not cosine >= _LEAST_COSINE:  # nor is a NaN
            return f"the engine computes wrong vectors: a known text's have a cosine of {cosine:.4f} to what they were"
        return ""

    def _ask_longbow(self) -> dict[str, Any]:
        """What was found last, while a thread looks again: a Longbow that hangs must not hold up the probe."""
        longbow = self._longbow
        if longbow is None:
            return {}
        if time.monotonic() - self._longbow_at > _LONGBOW_AGE and self._asking_longbow.acquire(blocking=False):
            threading.Thread(
                target=self._look_at_longbow, args=(longbow,), name="fletcher-longbow", daemon=True
            ).start()
        return {**self._longbow_said, "circuit": longbow.breaker.state}

    def _look_at_longbow(self, longbow: LongbowClient) -> None:
        try:
            state = longbow.readiness()
            self._longbow_said = {"reachable": True, "status": state.status}
        except LongbowError as error:
            self._longbow_said = {"reachable": False, "error": str(error)}
        finally:
            self._longbow_at = time.monotonic()
            self._asking_longbow.release()
