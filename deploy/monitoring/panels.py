"""Grafana's panels as plain dictionaries: what a panel shows in, its part of the dashboard's JSON out.

Only what Fletcher's dashboard uses. A panel has no place yet: `dashboard.py` lays them out in rows.
"""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and how its series are called in the legend. `right` draws them by a scale of their own."""

    promql: str
    legend: str = ""
    right_unit: str = ""


def stat(
    title: str, description: str, query: Query, unit: str, *, limits: tuple[float, float] | None = None, **more: Any
) -> Json:
    """The last value as a number, over its course. `limits`: orange from the first, red from the second."""
    steps: list[Json] = [{"value": None, "color": "blue" if limits is None else "green"}]
    if limits is not None:
        steps += [{"value": limits[0], "color": "orange"}, {"value": limits[1], "color": "red"}]
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}, "noValue": "–", **more}
    return _panel("stat", title, description, [query], options, defaults)


def timeseries(
    title: str,
    description: str,
    queries: list[Query],
    unit: str,
    *,
    stacked: bool = False,
    bars: bool = False,
    most: float | None = None,
) -> Json:
    """Lines over time, or bars, each of a minute or more, for what happens seldom; `most` ends the scale."""
    custom: Json = {
        "drawStyle": "bars" if bars else "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 60 if bars else 25 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "axisPlacement": "auto",
        "axisSoftMin": 0,
    }
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults: Json = {"unit": unit, "min": 0, "color": {"mode": "palette-classic"}, "custom": custom}
    if most is not None:
        defaults["max"] = most
    overrides = [
        {
            "matcher": {"id": "byFrameRefID", "options": _ref(number)},
            "properties": [
                {"id": "unit", "value": query.right_unit},
                {"id": "custom.axisPlacement", "value": "right"},
                {"id": "custom.fillOpacity", "value": 0},
                {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
            ],
        }
        for number, query in enumerate(queries)
        if query.right_unit
    ]
    panel = _panel("timeseries", title, description, queries, options, defaults, overrides)
    return {**panel, "interval": "1m"} if bars else panel


def buckets(title: str, description: str, promql: str, unit: str) -> Json:
    """A heatmap over time of a histogram's buckets: `promql` gives a rate or a number a bucket, by `le`."""
    return _heatmap(title, description, Query(promql, "{{le}}"), "heatmap", {"unit": unit}, {"unit": "short"})


def rows_of(title: str, description: str, query: Query, axis: str, unit: str) -> Json:
    """A heatmap over time with a row for each series, coloured by its value in `unit`."""
    return _heatmap(title, description, query, "time_series", {"axisLabel": axis}, {"unit": unit}, value=axis)


def states(title: str, description: str, query: Query, words: dict[int, tuple[str, str]]) -> Json:
    """A band over time for each series, in the colour and with the word of its state."""
    options = {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.8,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    defaults = {
        "mappings": [_mapping(words)],
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": [{"value": None, "color": "text"}]},
        "custom": {"lineWidth": 0, "fillOpacity": 80},
    }
    return _panel("state-timeline", title, description, [query], options, defaults)


def in_words(words: dict[int, tuple[str, str]]) -> Json:
    """Settings for `stat` that show a number as a word in a colour."""
    return {"mappings": [_mapping(words)]}


def _mapping(words: dict[int, tuple[str, str]]) -> Json:
    return {
        "type": "value",
        "options": {
            str(value): {"text": text, "color": color, "index": index}
            for index, (value, (text, color)) in enumerate(words.items())
        },
    }


def _heatmap(
    title: str, description: str, query: Query, form: str, axis: Json, cells: Json, value: str | None = None
) -> Json:
    options = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": cells,
        "color": {
            "mode": "scheme",
            "scheme": "Turbo",
            "steps": 64,
            "reverse": False,
            "exponent": 0.5,
            "fill": "dark-orange",
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto", **({"value": value} if value else {})},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": value is None, "showColorScale": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, **axis},
    }
    defaults = {"custom": {"scaleDistribution": {"type": "linear"}}}
    return _panel("heatmap", title, description, [query], options, defaults, form=form)


def _panel(
    kind: str,
    title: str,
    description: str,
    queries: list[Query],
    options: Json,
    defaults: Json,
    overrides: list[Json] | None = None,
    form: str = "time_series",
) -> Json:
    targets = [
        {
            "refId": _ref(number),
            "datasource": _SOURCE,
            "expr": query.promql,
            "legendFormat": query.legend or "__auto",
            "format": form,
            "range": True,
            "instant": False,
            "editorMode": "code",
        }
        for number, query in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "targets": targets,
        "options": options,
        "fieldConfig": {"defaults": defaults, "overrides": overrides or []},
    }


def _ref(number: int) -> str:
    return "ABCDEFGH"[number]
