"""The layers of one run, and what moved between two, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qtrack.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LABEL,
    NAME_WIDTH,
    ORANGE,
    RED,
    bare,
    legend,
    margins,
    name_margin,
    names,
    new_figure,
)
from qtrack.report.cells import shortened
from qtrack.report.sources import Row, main_sources, source_note, worst_first

MOST_LAYERS = 40
"""Where the caller does not say."""
TALLEST = 400
"""Layers beyond which a picture has more pixels than matplotlib can draw, and anyone look at."""
LITTLE_DB = 0.1
BEFORE: dict[str, Any] = {"color": GREY, "markersize": 6, "markerfacecolor": "white"}


def layers_figure(stage: str, rows: Sequence[Row], most: int | None = None) -> Figure | None:
    """SQNR of each quantized layer, its own and as errors accumulate, worst on top; None where there is none.

    The main sources of error are in bold.
    """
    ranked = [row for row in worst_first(rows) if row["own_sqnr_db"] is not None]
    shown = ranked[: _count(most)]
    if not shown:
        return None
    title = f"{stage}: where the error comes from{_of(len(shown), len(ranked), 'worst')}"
    figure = new_figure(8.5, 1.7 + 0.34 * len(shown), title)
    axes = bare(figure.add_subplot())
    _bars(axes, shown)
    legend(figure, *axes.get_legend_handles_labels())
    labels = [shortened(row["layer"], NAME_WIDTH) for row in shown]
    names(axes, labels)
    sources = main_sources(rows)
    _embolden(axes, [row["layer"] in sources for row in shown])
    axes.set_title(f"bold: {source_note(len(sources))}", loc="left", fontsize=9, color=INK)
    margins(figure, left=name_margin(labels), bottom=0.9, top=0.7)
    return figure


def _count(most: int | None) -> int:
    return min(most or MOST_LAYERS, TALLEST)


def _of(shown: int, total: int, which: str) -> str:
    return f" ({shown} {which} of {total} layers)" if total > shown else ""


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    places = np.arange(len(rows))
    own = [row["own_sqnr_db"] for row in rows]
    accumulated = [_value(row["sqnr_db"]) for row in rows]
    axes.barh(places - 0.18, own, 0.34, color=BLUE, label="own: everything before the layer in float")
    axes.barh(places + 0.18, accumulated, 0.34, color=ORANGE, label="accumulated: with the errors before it")
    for place, value in zip(places, own, strict=True):
        axes.annotate(
            f"{value:.1f}",
            (max(value, 0), place - 0.18),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=INK,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("SQNR of the layer's output, dB (more is better)", fontsize=9, color=INK)


def _embolden(axes: Axes, which: Sequence[bool]) -> None:
    for label, bold in zip(axes.get_yticklabels(), which, strict=True):
        label.set_fontweight("bold" if bold else "normal")


def moved_figure(stages: tuple[str, str], pairs: Sequence[Row], most: int | None = None) -> Figure | None:
    """Own and accumulated SQNR of each layer in two runs, most moved on top; None where neither has any."""
    both = [pair for pair in pairs if pair["own_sqnr_db"] != [None, None]]
    shown = both[: _count(most)]
    if not shown:
        return None
    before, after = stages
    title = f"{before} > {after}: what moved{_of(len(shown), len(both), 'most moved')}"
    figure = new_figure(11, 1.75 + 0.27 * len(shown), title)
    left, right = figure.subplots(1, 2, sharey=True)
    _moves(left, "own SQNR, dB", "own_sqnr_db", shown)
    _moves(right, "accumulated SQNR, dB", "sqnr_db", shown)
    labels = [shortened(pair["layer"], NAME_WIDTH) for pair in shown]
    names(left, labels)
    _legend_of_moves(figure, before, after)
    margins(figure, left=name_margin(labels), bottom=0.75, top=0.75, wspace=0.06)
    return figure


def _moves(axes: Axes, title: str, field: str, pairs: Sequence[Row]) -> None:
    """A line from where each layer was to where it is."""
    bare(axes, title, grid="both")
    for place, pair in enumerate(pairs):
        before, after = (_value(value) for value in pair[field])
        color = _color(after - before)
        axes.hlines(place, min(before, after), max(before, after), color=color, linewidth=2.4, alpha=0.5)
        axes.plot(before, place, "o", **BEFORE, zorder=2)
        axes.plot(after, place, "o", color=color, markersize=6, zorder=3)
        if np.isnan(before) != np.isnan(after) and pair["dtype"][0] != pair["dtype"][1]:
            _say_what_it_was(axes, place, np.nanmax([before, after]), pair["dtype"])
    axes.margins(x=0.12)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)


def _say_what_it_was(axes: Axes, place: int, value: float, dtypes: Sequence[str | None]) -> None:
    """Where only one run has a value, because the layer ran in another type or was not there."""
    text = " > ".join(dtype or "absent" for dtype in dtypes)
    axes.annotate(text, (value, place), (7, 0), textcoords="offset points", va="center", **LABEL)


def _color(change: float) -> str:
    """Blue where little changed, and where there is nothing to compare with."""
    if np.isnan(change) or abs(change) < LITTLE_DB:
        return BLUE
    return GREEN if change > 0 else RED


def _legend_of_moves(figure: Figure, before: str, after: str) -> None:
    styles = (BEFORE, *({"color": color, "markersize": 6} for color in (GREEN, RED, BLUE)))
    labels = [f"before: {before}", f"after: {after}, better", "worse", f"within {LITTLE_DB} dB, or alone"]
    handles = [Line2D([], [], marker="o", linestyle="", **style) for style in styles]
    legend(figure, handles, labels)


def _value(value: float | None) -> float:
    return float("nan") if value is None else value
