"""Texts whose vectors a cache knows do not go to the engine: in front of the batcher, the cache that embedders use."""

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace

import numpy as np

from fletcher_core.service.batcher import Batcher
from fletcher_core.service.window import Kind
from fletcher_core.text_window import EmbeddedTexts
from fletcher_core.tokens import Int64


def submit_unknown(
    batcher: Batcher, texts: list[str], *, seconds: float | None = None, kind: Kind = "documents"
) -> "Future[EmbeddedTexts]":
    """`Batcher.submit` for what the embedder's cache does not know; what is computed goes into it.

    `token_counts` of a known text is 0: it was not tokenized.

    Raises:
        Overloaded: as `Batcher.submit`.
    """
    keyed = batcher.embedder.keyed
    if keyed is None or not texts:
        return batcher.submit(texts, seconds=seconds, kind=kind)
    keys = (keyed.queries if kind == "queries" else keyed.texts).keys(texts)
    vectors = np.empty((len(texts), batcher.embedder.dimension), np.float32)
    known = keyed.cache.get_many(keys, vectors)
    rows = np.flatnonzero(~known)
    nothing = np.zeros(len(texts), np.int32)
    all_known = EmbeddedTexts(vectors, nothing, np.zeros(len(texts), bool), known, (), {}, 0, 0)
    together: Future[EmbeddedTexts] = Future()
    if not len(rows):
        together.set_result(all_known)
        return together
    computing = batcher.submit([texts[row] for row in rows.tolist()], seconds=seconds, kind=kind)

    def join(done: "Future[EmbeddedTexts]") -> None:
        with suppress(InvalidStateError):  # `together` was cancelled
            if done.cancelled():
                together.cancel()
                return
            if (error := done.exception()) is not None:
                together.set_exception(error)
                return
            computed = done.result()
            try:
                # Of a text that was cut the cache would not tell that it was, and who refuses such texts must know.
                is_whole = True if batcher.embedder.encoder.long_text == "chunk" else ~computed.cut
                good = np.flatnonzero(computed.sound & is_whole)
                keyed.cache.put_many([keys[rows[at]] for at in good.tolist()], computed.vectors[good])
                result = _placed(all_known, computed, rows)
            except BaseException as failure:  # noqa: BLE001 - a caller waits
                together.set_exception(failure)
            else:
                together.set_result(result)

    together.add_done_callback(lambda done: computing.cancel() if done.cancelled() else None)
    computing.add_done_callback(join)
    return together


def _placed(known: EmbeddedTexts, computed: EmbeddedTexts, rows: Int64) -> EmbeddedTexts:
    """`computed` are the texts `rows` of all; the others are known."""
    for all_of, some in (
        (known.vectors, computed.vectors),
        (known.token_counts, computed.token_counts),
        (known.cut, computed.cut),
        (known.sound, computed.sound),
    ):
        all_of[rows] = some
    return replace(
        known,
        invalid=tuple(replace(bad, row=int(rows[bad.row])) for bad in computed.invalid),
        failed={int(rows[row]): said for row, said in computed.failed.items()},
        computed_tokens=computed.computed_tokens,
        padded_tokens=computed.padded_tokens,
        retried=computed.retried,
    )
