"""Tables of the GPU benchmark from what its children wrote: rates, shares of the roof, cosines, ratios."""

import argparse
from collections.abc import Iterable

import numpy as np
from gpu_models import FIXED_LENGTHS, SHAPES, flops, read_tokens

from fletcher_core.models import Architecture

PUBLISHED = 50127  # texts/s of IgniteMS: e5-small on one A100, about 46 % of that card's peak
Results = dict[str, dict]
Summary = dict[str, dict]


def report(states: Results, options: argparse.Namespace) -> Summary:
    """Prints all tables; returns their numbers, by shape and name."""
    results: Results = {}
    for child in ("fletcher", "torch"):
        for key, value in states.get(child, {}).get("results", {}).items():
            results[f"{child}/{key}"] = value
    roof = {**results.get("torch/roof/", {}), **results.get("fletcher/roof/", {})}
    peak = max(roof.get("bf16_tflops", 0.0), roof.get("mlx_bf16_tflops", 0.0)) or float("nan")
    by_torch, by_mlx, copy = (roof.get(k, float("nan")) for k in ("bf16_tflops", "mlx_bf16_tflops", "copy_gb_per_s"))
    print(
        f"\n{roof.get('device', '?')}, torch {roof.get('torch', '?')}; roof: bf16 product 8192^3 "
        f"{by_torch:.0f} TFLOP/s by torch, {by_mlx:.0f} by MLX; copy {copy:.0f} GB/s read and written"
    )
    summary: Summary = {"roof": roof}
    for shape in options.shapes:
        mine = {
            key.split("/")[0] + "/" + key.split("/")[1]: v for key, v in results.items() if key.endswith(f"/{shape}")
        }
        summary[shape] = shape_report(shape, mine, peak, options)
    return summary


def shape_report(shape: str, results: dict, peak: float, options: argparse.Namespace) -> dict:
    count = max([entry["texts"] for _, entry in contestants(results)], default=0)
    if not count:
        print(f"\n{shape}: nothing was measured")
        return {}
    architecture = Architecture.read(options.folder / shape)
    tokens = read_tokens(options.folder, SHAPES[shape].max_length, count)
    lengths = tokens.lengths
    print(f"\n{shape}: {count} texts, {lengths.mean():.1f} tokens mean, {lengths.max()} max")
    print(
        f"  {'':38} {'texts/s':>9} {'median':>9} {'Mtok/s':>7} {'TFLOP/s':>7} {'roof':>5}  {'cosine min':>10} "
        f"{'mean':>8} {'centered':>8}  plan"
    )
    rows: dict[str, dict] = {}
    for name, entry in contestants(results):
        part = lengths[: entry["texts"]]
        operations = 0.0 if name == "fletcher tokenizer" else flops(architecture, part)
        rows[name] = rates(entry, part, operations, peak) | cosines(shape, name, options)
        print(f"  {name:38} {line(rows[name])}  {entry.get('plan', '')}")
    single = {**results.get("torch/st", {}).get("latency", {})}
    if "fletcher/latency" in results:
        single["fletcher"] = results["fletcher/latency"]
    for name, entry in single.items():
        print(f"  one text, {name:28} p50 {entry['p50_ms']:.2f} ms, p95 {entry['p95_ms']:.2f} ms")
    ratios = dict(ratio_lines(shape, rows, single))
    for text, value in ratios.items():
        print(f"  => {text}: {value:.2f}")
    if results.get("fletcher/text", {}).get("tokens as Hugging Face's") is False:
        print("  !! Fletcher's tokens differ from Hugging Face's")
    return {
        "tokens_mean": float(lengths.mean()),
        "contestants": rows,
        "latency": single,
        "ratios": ratios,
        "fixed": fixed_table(results, architecture, peak),
    }


def contestants(results: dict) -> Iterable[tuple[str, dict]]:
    """Name and timing of all that embedded the texts."""
    named = {
        "fletcher/engine": "fletcher engine",
        "torch/packed": "torch.compile packed",
        "torch/padded": "torch.compile padded",
        "torch/autotune": "torch.compile packed static autotune",
        "torch/transformers": "torch.compile transformers",
        "torch/eager": "torch eager transformers",
        "torch/reference": "reference",
    }
    yield from ((name, results[key]) for key, name in named.items() if key in results)
    text = results.get("fletcher/text", {})
    for key, name in (
        ("embed", "fletcher embed"),
        ("arrow", "fletcher arrow"),
        ("tokenizer alone", "fletcher tokenizer"),
    ):
        if key in text:
            yield name, text[key]
    for name, entry in results.get("torch/st", {}).items():
        if name != "latency":
            yield f"sentence-transformers {name}", entry


def rates(entry: dict, lengths: np.ndarray, operations: float, peak: float) -> dict[str, float]:
    best = entry["best_s"]
    return {
        "texts_per_s": len(lengths) / best,
        "median_texts_per_s": len(lengths) / entry["median_s"],
        "tokens_per_s": float(lengths.sum()) / best,
        "tflops": operations / best / 1e12,
        "share_of_roof": operations / best / 1e12 / peak,
    }


def cosines(shape: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    """Against float32, and centered: without the mean, because vectors of random weights lie close together."""
    files = [options.folder / f"vectors-{shape}-{slug(part)}.npy" for part in (name, "reference")]
    if name == "reference" or not all(file.is_file() for file in files):
        return {}
    vectors, reference = (np.load(file).astype(np.float64) for file in files)
    size = min(len(vectors), len(reference))
    vectors, reference = vectors[:size], reference[:size]
    plain, center = cosine(vectors, reference), reference.mean(0)
    return {
        "cosine_min": float(plain.min()),
        "cosine_mean": float(plain.mean()),
        "relative_error": float(np.linalg.norm(vectors - reference) / np.linalg.norm(reference)),
        "cosine_centered_min": float(cosine(vectors - center, reference - center).min()),
    }


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", a, b) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def slug(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


def line(row: dict[str, float]) -> str:
    text = (
        f"{row['texts_per_s']:9.0f} {row['median_texts_per_s']:9.0f} {row['tokens_per_s'] / 1e6:7.2f} "
        f"{row['tflops']:7.1f} {row['share_of_roof']:5.0%}"
    )
    if "cosine_min" not in row:
        return text + " " * 30
    return text + f"  {row['cosine_min']:10.6f} {row['cosine_mean']:8.6f} {row['cosine_centered_min']:8.6f}"


def ratio_lines(shape: str, rows: dict, single: dict) -> Iterable[tuple[str, float]]:
    """By best rounds, each against the best of its kind."""

    def best(prefix: str) -> tuple[float, str]:
        return max(
            ((row["texts_per_s"], name) for name, row in rows.items() if name.startswith(prefix)), default=(0.0, "")
        )

    engine, compiled, eager = best("fletcher engine"), best("torch.compile"), best("torch eager")
    served, own = best("sentence-transformers"), best("fletcher embed")
    for one, other in ((engine, compiled), (engine, eager), (own, served), (own, engine)):
        if one[1] and other[1]:
            yield f"{one[1]} / {other[1]}", one[0] / other[0]
    if own[1] and "sentence-transformers default" in rows:
        yield f"{own[1]} / sentence-transformers default", own[0] / rows["sentence-transformers default"]["texts_per_s"]
    arrow = best("fletcher arrow")
    if shape == "e5-small" and arrow[1]:
        yield f"Arrow to Arrow / IgniteMS on an A100 as published ({PUBLISHED} texts/s)", arrow[0] / PUBLISHED
        yield "share of the measured roof, Arrow to Arrow (IgniteMS: about 0.46)", rows[arrow[1]]["share_of_roof"]
    peers = {name: entry["p50_ms"] for name, entry in single.items() if name != "fletcher"}
    if peers and "fletcher" in single:
        name = min(peers, key=peers.__getitem__)
        yield f"latency p50: sentence-transformers {name} / fletcher", peers[name] / single["fletcher"]["p50_ms"]


def fixed_table(results: dict, architecture: Architecture, peak: float) -> dict:
    """Texts of one length, for the roof line."""
    sides = {side: results.get(f"{side}/fixed", {}) for side in ("fletcher", "torch")}
    table: dict[str, dict] = {}
    for length in map(str, FIXED_LENGTHS):
        table[length] = {}
        for side, entries in sides.items():
            if length not in entries:
                continue
            entry = entries[length]
            lengths = np.full(entry["texts"], int(length))
            table[length][side] = rates(entry, lengths, flops(architecture, lengths), peak)
            label = "fletcher engine" if side == "fletcher" else "torch.compile static"
            print(f"  {length} tokens each, {label:23} {line(table[length][side])}  {entry['plan']}")
        if len(table[length]) == 2:
            ratio = table[length]["fletcher"]["texts_per_s"] / table[length]["torch"]["texts_per_s"]
            table[length]["ratio"] = ratio
            print(f"  => {length} tokens each, fletcher engine / torch.compile static: {ratio:.2f}")
    return table
