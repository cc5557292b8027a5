"""Small pictures of a run, as Markdown that Dagster's UI shows: its throughput, its texts' lengths, its busy stages.

In come figures of the run's report; out go an image with an inline SVG, and tables. Dagster's Markdown view allows
`data:` images (its sanitizer's schema lists them), so nothing has to be hosted anywhere.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence

from fletcher_core.telemetry import LENGTH_EDGES

WIDTH, HEIGHT = 310, 120  # beside the longest key, a table on a page 1400 wide cuts off what is wider
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 26, 24
STEPS = 36
BAR = 16  # characters of a histogram's longest bar


def throughput_markdown(samples: Sequence[tuple[float, float]], begin: float = 0.0) -> str | None:
    """Markdown with the picture of `throughput_svg`, or None when there is nothing to draw.

    The UI shows Markdown of less than 1,000 characters at once, and longer one behind a link.
    """
    if not samples:
        return None
    picture = b64encode(throughput_svg(samples, begin).encode()).decode()
    return f"![texts per second](data:image/svg+xml;base64,{picture})"


def stages_markdown(stages: Mapping[str, Sequence[float]], seconds: float) -> str | None:
    """A Markdown table with a line for each stage: how busy it was over the `seconds` of the run, from left to right,
    and in the mean; None when no stage was busy.

    `stages` has for each the shares of equal parts of the run, 0 to 1.
    """
    if not stages:
        return None
    rows = [f"| {stage} | {_mean(shares)} | `{_bars(shares)}` |" for stage, shares in stages.items()]
    return "\n".join([f"| busy | mean | over {seconds:,.1f} s, delivery included |", "|---|---|---|", *rows])


def lengths_markdown(lengths: Sequence[int]) -> str | None:
    """A Markdown table of how many texts have how many tokens, with a bar for each bin; None when there are no texts.

    `lengths` counts by the bins of `LENGTH_EDGES`, the last of which has all that is longer. Empty bins before the
    first text and after the last one are left out.
    """
    filled = [place for place, count in enumerate(lengths) if count]
    if not filled:
        return None
    most = max(lengths)
    lows = [1, *(edge + 1 for edge in LENGTH_EDGES)]
    names = [f"{low:,} to {edge:,}" for low, edge in zip(lows, LENGTH_EDGES, strict=False)]
    names.append(f"over {LENGTH_EDGES[-1]:,}")
    rows = [
        f"| {names[place]} | {lengths[place]:,} | `{_bar(lengths[place] / most)}` |"
        for place in range(filled[0], filled[-1] + 1)
    ]
    return "\n".join(["| tokens | texts | |", "|---|---|---|", *rows])


def _bar(share: float) -> str:
    """As long as `share` of the whole width, to an eighth of a character; something for all but nothing."""
    eighths = max(round(share * BAR * 8), 1 if share else 0)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).strip() or " "


def _mean(shares: Sequence[float]) -> str:
    mean = sum(shares) / len(shares)
    return f"{mean:.0%}" if mean >= 0.01 or not mean else "<1%"


def _bars(shares: Sequence[float]) -> str:
    return "".join("▁▂▃▄▅▆▇█"[round(share * 7)] for share in shares)


def throughput_svg(samples: Sequence[tuple[float, float]], begin: float = 0.0) -> str:
    """An SVG of texts/s over the seconds of a run: filled steps, two axes, the peak and the length written on them.

    A sample's rate holds from the sample before it (the first one's from `begin`) up to its own time. Of a long run
    neighbours are joined, and all is in whole pixels: see `throughput_markdown` for how short it has to be.
    """
    samples = _joined(samples, begin)
    seconds = max(samples[-1][0], 1e-9)
    peak = max(max(rate for _, rate in samples), 1e-9)
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def across(at: float) -> int:
        return LEFT + round(at / seconds * (right - LEFT))

    def up(rate: float) -> int:
        return floor - round(rate / peak * (floor - TOP))

    line, x, y = "", across(begin), floor
    for at, rate in samples:
        line += f"v{up(rate) - y}h{across(at) - x}"
        x, y = across(at), up(rate)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#475569" style="background:#fff">'
        f'<path d="M{across(begin)} {floor}{line}V{floor}" fill="#4f46e5" fill-opacity=".2" stroke="#4f46e5"/>'
        f'<path d="M{LEFT} {TOP}V{floor}H{right}" fill="none" stroke="#94a3b8"/>'
        f'<text x="{LEFT}" y="15">texts per second</text><text x="{LEFT}" y="{HEIGHT - 7}">0 s</text>'
        f'<g text-anchor="end"><text x="{LEFT - 6}" y="{TOP + 5}">{peak:,.0f}</text>'
        f'<text x="{right}" y="{HEIGHT - 7}">{seconds:,.1f} s</text></g></svg>'
    )


def _joined(samples: Sequence[tuple[float, float]], begin: float) -> list[tuple[float, float]]:
    """At most `STEPS` samples, with the mean rate over the time of those that each stands for."""
    size = -(-len(samples) // STEPS)
    joined: list[tuple[float, float]] = []
    for first in range(0, len(samples), size):
        part = samples[first : first + size]
        since = samples[first - 1][0] if first else begin
        starts = [since, *(at for at, _ in part[:-1])]
        texts = sum(rate * (at - start) for start, (at, rate) in zip(starts, part, strict=True))
        end = part[-1][0]
        joined.append((end, texts / (end - since) if end > since else part[-1][1]))
    return joined
