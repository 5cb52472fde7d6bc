"""A strategy's metric over time as a picture: a panel for each strategy, on a scale of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qtrack.report.canvas import BLUE, GREEN, INK, LABEL, RED, bare, legend, margins, new_figure
from qtrack.report.cells import Scale
from qtrack.report.history import titles_of_lines, when
from qtrack.report.verdict import scale_of

if TYPE_CHECKING:
    from qtrack.history import Line, Point

MOST_LINES = 30
"""Panels beyond which nobody looks."""


def history_figure(lines: Sequence[Line], title: str) -> Figure | None:
    """Values with the intervals of their drops; significant changes in colour. None where there are none."""
    shown = lines[:MOST_LINES]
    if not shown:
        return None
    few = f" (the first {len(shown)} of {len(lines)} strategies)" if len(lines) > len(shown) else ""
    figure = new_figure(9, 1.5 + 1.5 * len(shown), f"{title}{few}")
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axes, line, name in zip(panels, shown, titles_of_lines(shown), strict=True):
        _panel(axes, line, name)
    _dates(panels[-1])
    margins(figure, left=0.75, bottom=0.85, top=0.8, hspace=0.5)
    _legend(figure)
    return figure


def _panel(axes: Axes, line: Line, name: str) -> None:
    scale = scale_of(point.strategy for point in line.points)
    bare(axes, f"{name}: {line.points[-1].strategy.metric}{', %' if scale.percent else ''}", grid="y")
    drawn = [_placed(point, scale) for point in line.points]
    places, values = [place for place, _, _ in drawn], [value for _, value, _ in drawn]
    axes.plot(places, values, color=BLUE, linewidth=1.2, zorder=2)
    for point, (place, value, ends) in zip(line.points, drawn, strict=True):
        color = _color(point)
        axes.vlines(place, *ends, color=color, linewidth=2.2, alpha=0.45, zorder=1)
        axes.plot(place, value, "o", color=color, markersize=7 if color != BLUE else 4.5, zorder=3)
        if color != BLUE:
            axes.annotate(
                _kinds(point),
                (place, value),
                (-6, -3),
                textcoords="offset points",
                ha="right",
                va="top",
                **LABEL,
            )
    axes.margins(x=0.06, y=0.2)
    _no_narrower(axes, 0.01 * max(map(abs, values)))


def _no_narrower(axes: Axes, span: float) -> None:
    """A scale on which next to nothing looks like it."""
    low, high = axes.get_ylim()
    missing = max(span - (high - low), 0.0)
    axes.set_ylim(low - missing / 2, high + missing / 2)


def _placed(point: Point, scale: Scale) -> tuple[float, float, tuple[float, float]]:
    """Its date, its value and the ends of its drop's interval, as they are drawn."""
    s, factor = point.strategy, 100 if scale.percent else 1
    value, drop = s.value or 0.0, s.drop or 0.0
    low, high = (drop if end is None else end for end in (s.drop_low, s.drop_high))
    return (
        float(date2num(when(s))),
        factor * value,
        (factor * (value + drop - high), factor * (value + drop - low)),
    )


def _color(point: Point) -> str:
    if point.change is None or not point.change.significant:
        return BLUE
    return GREEN if point.change.value > 0 else RED


def _kinds(point: Point) -> str:
    """Which kinds of ingredients are not what they were."""
    causes = point.change.causes if point.change else ()
    return ", ".join(dict.fromkeys(cause.kind for cause in causes)) or "not known"


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.xaxis_date()
    axes.set_xlabel("date (UTC); lines: the 95% interval of the drop", fontsize=9, color=INK)


def _legend(figure: Figure) -> None:
    known = (
        (BLUE, "no significant change"),
        (GREEN, "significantly better, with what changed"),
        (RED, "worse"),
    )
    handles = [Line2D([], [], marker="o", linestyle="", color=color) for color, _ in known]
    legend(figure, handles, [label for _, label in known])
