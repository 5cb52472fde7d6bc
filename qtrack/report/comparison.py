"""Strategies side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from qtrack.report.cells import NONE, Scale, number, shortened, significant, size, size_unit
from qtrack.report.certainty import needed_by, unsure_notes
from qtrack.report.fit import fitted
from qtrack.report.pareto import MARK, pareto_optimal
from qtrack.report.tables import Column, Table
from qtrack.report.verdict import scale_of, sentences
from qtrack.report.view import View

if TYPE_CHECKING:
    from qtrack.ledger import Strategy

ANSWERS = {True: "yes", False: "no", None: "not sure"}
SHORTEST_NAME = 12
FORWARD = "fwd: samples that went through a model, for whatever reason, in thousands"
LEFT_OUT_FIRST = (1, 2, 3)
"""Places from the right of those columns that a narrow terminal does without."""


def comparison(strategies: Sequence[Strategy], width: int | None = None) -> Table:
    """Strategies side by side; to fit a width, names of layers are shortened, then columns left out."""
    table = _comparison(strategies, None)
    if width and table.width > width:
        longest = max(len(s.worst_layer or "") for s in strategies)
        table = _comparison(strategies, max(longest - (table.width - width), SHORTEST_NAME))
    shown = fitted(table, width, [len(table.columns) - place for place in LEFT_OUT_FIRST])
    return shown._replace(notes=(*shown.notes, FORWARD)) if table.columns[-2] in shown.columns else shown


def comparison_view(strategies: Sequence[Strategy], width: int | None = None) -> View:
    """The comparison in every format, with which strategy to take."""
    optimal = pareto_optimal(strategies)
    more = ({"pareto": i in optimal, "samples_needed": needed_by(s)} for i, s in enumerate(strategies))
    records = [s.to_dict() | fields for s, fields in zip(strategies, more, strict=True)]
    return View("strategies", comparison(strategies, width), records, tuple(sentences(strategies)))


def _comparison(strategies: Sequence[Strategy], name_width: int | None) -> Table:
    scale = scale_of(strategies)
    unit, bytes_per_unit = size_unit(s.size_bytes for s in strategies)
    columns = (
        Column("stage", "left"),
        Column("", "left"),
        Column(f"{_only(s.metric for s in strategies) or 'metric'}\n{scale.unit}"),
        Column(f"drop [{confidence_of(strategies)}]\n{scale.difference_unit}"),
        Column("target\nmet", "left"),
        Column("SQNR\ndB"),
        Column(f"size\n{unit}"),
        Column("latency\nms/float"),
        Column("in\nfloat"),
        Column("worst\nlayer", "left"),
        Column("time\ns"),
        Column("fwd\nk"),
        Column("evals"),
    )
    optimal, names = _marked(strategies), _names(strategies)
    drops = intervals([(s.drop, s.drop_low, s.drop_high) for s in strategies], scale)
    rows = tuple(
        (
            names[position],
            MARK if position in optimal else "",
            scale.text(s.value),
            drop,
            _answer(s),
            number(s.sqnr_db, 1),
            size(s.size_bytes, bytes_per_unit),
            _latency(s),
            _float_layers(s),
            _name(s.worst_layer, name_width),
            number(s.seconds, 1 if (s.seconds or 0) < 100 else 0),
            _thousands(s.forward_samples),
            number(s.evaluations),
        )
        for position, (drop, s) in enumerate(zip(drops, strategies, strict=True))
    )
    return Table(columns, rows, tuple(_notes(strategies, scale)), tuple(_campaigns(strategies)))


def _marked(strategies: Sequence[Strategy]) -> frozenset[int]:
    """Those that nothing beats, if others are beaten."""
    optimal = pareto_optimal(strategies)
    return optimal if len(optimal) < sum(s.size_bytes is not None for s in strategies) else frozenset()


def _names(strategies: Sequence[Strategy]) -> list[str]:
    """Of the stages, with their campaigns where these do not stand above them."""
    if _has_headings(strategies):
        return [s.stage for s in strategies]
    return [f"{s.campaign or 'without a campaign'}/{s.stage}" for s in strategies]


def _has_headings(strategies: Sequence[Strategy]) -> bool:
    """Do the strategies of each campaign stand together?"""
    blocks = [campaign for campaign, _ in groupby(s.campaign for s in strategies)]
    return len(blocks) == len(set(blocks))


def _notes(strategies: Sequence[Strategy], scale: Scale) -> Iterable[str]:
    samples = _only(s.samples for s in strategies)
    max_drop = _only(s.max_drop for s in strategies)
    if samples:
        yield f"{_only(s.metric for s in strategies) or 'metric'} over {samples:,} validation samples"
    if max_drop is not None:
        yield f"target: a drop of at most {scale.with_unit(max_drop)}, {confidence_of(strategies)} sure"
    yield from unsure_notes(strategies)
    if _marked(strategies):
        yield f"{MARK} Pareto-optimal: none here is as good in metric, size and latency, and better in one"


def confidence_of(strategies: Sequence[Strategy]) -> str:
    """Of their intervals, as it is written."""
    confidence = _only(s.confidence for s in strategies)
    return "interval" if confidence is None else f"{100 * confidence:g}%"


def _only(values: Iterable[Any]) -> Any:
    """The one value that all share which have any, else None."""
    found = {value for value in values if value is not None}
    return found.pop() if len(found) == 1 else None


def _campaigns(strategies: Sequence[Strategy]) -> Iterable[tuple[int, str]]:
    """Where each campaign begins, if there are several."""
    if len({s.campaign for s in strategies}) > 1 and _has_headings(strategies):
        for i, s in enumerate(strategies):
            if i == 0 or s.campaign != strategies[i - 1].campaign:
                yield i, s.campaign or "without a campaign"


def intervals(drops: Sequence[tuple[float | None, float | None, float | None]], scale: Scale) -> list[str]:
    """``0.6 [-0.1, 1.2]``, the numbers below each other."""
    cells = [tuple(scale.text(part) for part in drop) for drop in drops]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        NONE if drop[0] is None else f"{value:>{wide[0]}} [{low:>{wide[1]}}, {high:>{wide[2]}}]"
        for drop, (value, low, high) in zip(drops, cells, strict=True)
    ]


def _answer(strategy: Strategy) -> str:
    if strategy.status != "FINISHED":
        return strategy.status
    return ANSWERS[strategy.target_met] if strategy.drop is not None else NONE


def _latency(strategy: Strategy) -> str:
    if strategy.latency_ms is None:
        return NONE
    return f"{_milliseconds(strategy.latency_ms)}/{_milliseconds(strategy.float_latency_ms)}"


def _float_layers(strategy: Strategy) -> str:
    """The float model has no layer that was compared: all of it ran in float."""
    return (
        "all"
        if strategy.value is not None and strategy.worst_layer is None
        else number(strategy.float_layers)
    )


def _thousands(value: int | None) -> str:
    return NONE if value is None else significant(value / 1000, 2 if value < 1000 else 3)


def _milliseconds(value: float | None) -> str:
    return significant(value, 3 if value and value >= 1 else 2)


def _name(name: str | None, width: int | None) -> str:
    return NONE if name is None else shortened(name, width) if width else name
