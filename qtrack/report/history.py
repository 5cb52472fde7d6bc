"""A strategy's metric over time: as a table, and as a picture with a panel for each strategy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from qtrack.report.cells import NONE, Scale, ingredient, share_bar
from qtrack.report.comparison import confidence_of, intervals
from qtrack.report.tables import MARK, Column, Table
from qtrack.report.verdict import scale_of
from qtrack.report.view import View

if TYPE_CHECKING:
    from qtrack.history import Cause, Change, Line, Point
    from qtrack.ledger import Strategy

MOST_CAUSES = 4
LOWEST_BAR = 0.1
"""What of a bar stands for a line's lowest point."""
SHOWN = (
    "pipeline",
    "stage",
    "campaign",
    "run_id",
    "started",
    "metric",
    "value",
    "drop",
    "drop_low",
    "drop_high",
)


def history_view(lines: Sequence[Line]) -> View:
    """A row for each point under the name of its strategy; what moved it stands below it."""
    points = [point for line in lines for point in line.points]
    strategies = [point.strategy for point in points]
    scale = scale_of(strategies)
    metrics = {s.metric for s in strategies}
    columns = (
        Column("date (UTC)", "left"),
        Column("campaign", "left"),
        Column(f"{metrics.pop() if len(metrics) == 1 else 'metric'}\n{scale.unit}"),
        Column("", "left"),
        Column(f"drop [{confidence_of(strategies)}]\n{scale.difference_unit}"),
        Column(f"change\n{scale.difference_unit}"),
        Column("", "left"),
    )
    drops = intervals([(s.drop, s.drop_low, s.drop_high) for s in strategies], scale)
    bars = [bar for line in lines for bar in _bars(line)]
    rows = tuple(_row(*parts, scale) for parts in zip(points, drops, bars, strict=True))
    marked = frozenset(i for i, point in enumerate(points) if _is_significant(point))
    table = Table(columns, rows, tuple(_notes(lines, scale)), tuple(_headings(lines, scale)), marked)
    return View("history", table, list(map(_record, points)))


def _row(point: Point, drop: str, bar: str, scale: Scale) -> tuple[str, ...]:
    s, change = point.strategy, point.change
    return (
        when(s).strftime("%Y-%m-%d %H:%M"),
        s.campaign or NONE,
        scale.text(s.value),
        bar,
        drop,
        "" if change is None else _signed(scale.text(change.value)),
        MARK if _is_significant(point) else "",
    )


def when(strategy: Strategy) -> datetime:
    """Its start."""
    return datetime.fromisoformat(strategy.started)


def _is_significant(point: Point) -> bool:
    return point.change is not None and point.change.significant


def _bars(line: Line) -> Iterator[str]:
    """Down from the line's highest value; what its intervals do not tell apart differs little."""
    values = [point.strategy.value or 0.0 for point in line.points]
    high = max(values)
    span = max(high - min(values), *map(_width, line.points), abs(high) / 100) or 1.0
    for value in values:
        yield share_bar(1 - (1 - LOWEST_BAR) * (high - value) / span)


def _width(point: Point) -> float:
    """Of the interval of its drop."""
    low, high = point.strategy.drop_low, point.strategy.drop_high
    return 0.0 if low is None or high is None else high - low


def _headings(lines: Sequence[Line], scale: Scale) -> Iterator[tuple[int, str]]:
    position = 0
    for line, title in zip(lines, titles_of_lines(lines), strict=True):
        yield position, title
        for point in line.points:
            position += 1
            if point.change is not None and point.change.significant:
                yield from ((position, f"  {said}") for said in _explained(point.change, scale))


def titles_of_lines(lines: Sequence[Line]) -> list[str]:
    """The stage's name, with that of its pipeline where there are several."""
    several = len({line.pipeline for line in lines}) > 1
    return [f"{line.stage} (pipeline {line.pipeline})" if several else line.stage for line in lines]


def _explained(change: Change, scale: Scale) -> Iterator[str]:
    interval = f"[{scale.text(change.low)}, {scale.text(change.high)}] {scale.difference_unit}".strip()
    how = "on the same samples" if change.paired else f"not on the same samples ({change.unpaired})"
    yield f"{_signed(scale.text(change.value))} {interval} {how}"
    yield from map(_cause, change.causes[:MOST_CAUSES])
    if len(change.causes) > MOST_CAUSES:
        yield f"and {len(change.causes) - MOST_CAUSES} more; qtrack diff has all"
    if not change.causes:
        yield "what changed is not known: nothing on record differs, or it was not read"


def _cause(cause: Cause) -> str:
    return f"{cause.kind}: {cause.name} {ingredient(cause.was)} > {ingredient(cause.now)}"


def _signed(text: str) -> str:
    return text if text.startswith("-") or not text.strip("0.,") else f"+{text}"


def _notes(lines: Sequence[Line], scale: Scale) -> Iterator[str]:
    yield "bars: down from the best value of each strategy, over its range or its widest interval"
    changes = [point.change for line in lines for point in line.points if point.change is not None]
    if any(change.significant for change in changes):
        yield f"{MARK} significant: the 95% interval of the change from the point before does not hold 0"
    silent = sum(change.low is None and bool(change.unpaired) for change in changes)
    if silent:
        yield f"{silent} changes could not be tested; --json says why"


def _record(point: Point) -> dict[str, Any]:
    change = point.change
    tested = {
        "change": None if change is None else change.value,
        "change_low": None if change is None else change.low,
        "change_high": None if change is None else change.high,
        "significant": _is_significant(point),
        "paired": change is not None and change.paired,
        "unpaired": "" if change is None else change.unpaired,
        "causes": [] if change is None else [cause._asdict() for cause in change.causes],
    }
    return {name: getattr(point.strategy, name) for name in SHOWN} | tested
