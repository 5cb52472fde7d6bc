"""Figures of a stage and of a campaign, as matplotlib objects that know no window and no global state.

Those of layers are in ``layer_figures``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qtrack.outcome import Bars, Evaluation, LayerHistograms, LayerRow
from qtrack.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LABEL,
    NAME_WIDTH,
    ORANGE,
    RED,
    RULE,
    bare,
    legend,
    margins,
    name_margin,
    names,
    new_figure,
)
from qtrack.report.cells import Scale, shortened, size_unit
from qtrack.report.layer_figures import layers_figure
from qtrack.report.verdict import scale_of

if TYPE_CHECKING:
    from qtrack.ledger import Strategy
    from qtrack.records import StageResult

MOST_CLASSES = 20
MOST_HISTOGRAMS = 5


def stage_figures(result: StageResult) -> Iterator[tuple[str, Figure]]:
    """Those figures of a stage for which it has data, each with its name."""
    outcome = result.outcome
    ranked = outcome.by_own_share()
    layers = layers_figure(result.name, [vars(row) for row in ranked])
    if layers is not None:
        yield "layers", layers
    shown = [row for row in ranked if row.layer in outcome.histograms][:MOST_HISTOGRAMS]
    if shown:
        yield (
            "histograms",
            histograms_figure(result.name, [(row, outcome.histograms[row.layer]) for row in shown]),
        )
    if outcome.recipe.quantizes and _has_classes(outcome.validation, result.baseline.validation):
        yield "classes", classes_figure(result.name, result.baseline.validation, outcome.validation)


def histograms_figure(stage: str, layers: Sequence[tuple[LayerRow, LayerHistograms]]) -> Figure:
    """Distributions of weights and activations of the worst layers, float against quantized."""
    title = f"{stage}: the {len(layers)} worst layers" if len(layers) > 1 else f"{stage}: the worst layer"
    figure = new_figure(9, 1.2 + 1.75 * len(layers), title)
    grid = figure.subplots(len(layers), 2, squeeze=False)
    for (row, histograms), (weight, activation) in zip(layers, grid, strict=True):
        _distribution(weight, f"{shortened(row.layer, NAME_WIDTH)}: weights", histograms.weight)
        own = f"output, own SQNR {row.own_sqnr_db:.1f} dB" if row.own_sqnr_db is not None else "output"
        _distribution(activation, own, histograms.activation)
    for axes in grid[:, 0]:
        axes.set_ylabel("count (log)", fontsize=8, color=INK)
    legend(figure, *grid[0, 1].get_legend_handles_labels())
    margins(figure, left=0.75, bottom=0.75, top=0.75, hspace=0.5, wspace=0.16)
    return figure


def _distribution(axes: Axes, title: str, pair: tuple[Bars, Bars] | None) -> None:
    if pair is None:
        axes.set_axis_off()
        axes.text(0, 0.5, "no weights", transform=axes.transAxes, fontsize=9, color=GREY)
        return
    bare(axes, title, grid="y")
    reference, quantized = pair
    axes.set_yscale("log")
    # A count of 0 has no place on a logarithmic axis: the bars stand on one half.
    axes.stairs(
        np.maximum(reference.counts, 0.5),
        reference.edges,
        baseline=0.5,
        fill=True,
        color=GREY,
        alpha=0.55,
        label="float",
    )
    axes.stairs(
        np.maximum(quantized.counts, 0.5),
        quantized.edges,
        baseline=0.5,
        color=BLUE,
        linewidth=1.1,
        label="quantized",
    )
    axes.set_ylim(bottom=0.5)
    axes.minorticks_off()
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _has_classes(*evaluations: Evaluation) -> bool:
    return all(e.labels is not None and e.predictions is not None and len(e.labels) for e in evaluations)


def classes_figure(stage: str, reference: Evaluation, quantized: Evaluation) -> Figure:
    """Accuracy per class under both models, and where the samples of each class go."""
    labels, before, after = (
        np.asarray(part) for part in (quantized.labels, reference.predictions, quantized.predictions)
    )
    classes = np.unique(labels)
    accuracy = np.array([[(p[labels == c] == c).mean() for p in (before, after)] for c in classes])
    lost = accuracy[:, 0] - accuracy[:, 1]
    worst = np.sort(np.argsort(-lost, kind="stable")[:MOST_CLASSES])
    classes, accuracy = classes[worst], 100 * accuracy[worst]
    few = f" (the {MOST_CLASSES} that lost most)" if len(lost) > len(worst) else ""
    height = 2.2 + 0.33 * len(classes)
    figure = new_figure(6.5 + 0.33 * len(classes), height, f"{stage}: which classes suffer{few}")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    _class_accuracy(left, classes, accuracy)
    _destinations(right, classes, _shares(labels, after, classes))
    margins(figure, left=0.75, bottom=0.75, top=0.8, wspace=0.22)
    legend(figure, *left.get_legend_handles_labels())
    return figure


def _class_accuracy(axes: Axes, classes: NDArray[Any], accuracy: NDArray[Any]) -> None:
    bare(axes, "accuracy per class, %")
    places = np.arange(len(classes))
    axes.hlines(places, accuracy[:, 1], accuracy[:, 0], color=RULE, linewidth=3, zorder=1)
    axes.scatter(accuracy[:, 0], places, s=42, color=GREY, label="float", zorder=2)
    axes.scatter(accuracy[:, 1], places, s=26, color=BLUE, label="quantized", zorder=3)
    names(axes, [str(c) for c in classes])
    axes.set_ylabel("class", fontsize=9, color=INK)
    low = float(accuracy.min())
    axes.set_xlim(max(low - 5, -3), 102)


def _shares(labels: NDArray[Any], predictions: NDArray[Any], classes: NDArray[Any]) -> NDArray[Any]:
    """Percent of each class's samples by predicted class; the last column is any class not shown."""
    shares = np.zeros((len(classes), len(classes) + 1))
    for row, c in enumerate(classes):
        mine = predictions[labels == c]
        shares[row, :-1] = [100 * (mine == other).mean() for other in classes]
    shares[:, -1] = 100 - shares[:, :-1].sum(axis=1)
    return shares if shares[:, -1].max() > 1e-9 else shares[:, :-1]


def _destinations(axes: Axes, classes: NDArray[Any], shares: NDArray[Any]) -> None:
    bare(axes, "where the samples of a class go when quantized, %", grid=None)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="equal")
    columns = [str(c) for c in classes] + ["other"] * (shares.shape[1] - len(classes))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(classes)), [str(c) for c in classes])
    axes.set_xlabel("predicted", fontsize=9, color=INK)
    axes.set_ylabel("true class", fontsize=9, color=INK)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            color = "white" if share > 55 else INK
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)


def strategies_figure(strategies: Sequence[Strategy], title: str = "strategies") -> Figure | None:
    """The metric with its interval for each stage, and against size; None where nothing finished."""
    shown = [s for s in strategies if s.value is not None and s.drop is not None]
    if not shown:
        return None
    scale = scale_of(shown)
    figure = new_figure(11, 2.2 + 0.4 * max(len(shown), 4), title)
    margins(figure, left=name_margin(s.stage for s in shown), bottom=0.85, top=0.75, wspace=0.16)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _metric_by_stage(left, shown, scale)
    _metric_by_size(right, [s for s in shown if s.size_bytes], scale)
    _legend_of_answers(figure, shown)
    return figure


def pareto_figure(strategies: Sequence[Strategy]) -> Figure | None:
    """The metric against size alone, small enough for a phone; None where nothing has both."""
    shown = [s for s in strategies if s.value is not None and s.drop is not None and s.size_bytes]
    if not shown:
        return None
    figure = new_figure(5.6, 4.2, "")
    margins(figure, left=0.75, bottom=0.85, top=0.35)
    _metric_by_size(figure.subplots(), shown, scale_of(shown))
    _legend_of_answers(figure, shown)
    return figure


def _metric_by_stage(axes: Axes, strategies: Sequence[Strategy], scale: Scale) -> None:
    bare(axes, f"{_metric(strategies, scale)}, with the interval of its drop")
    floor = _floor(strategies, scale)
    for place, s in enumerate(strategies):
        value, ends = _values(s, scale)
        outside = value < floor
        axes.hlines(place, *np.clip(ends, floor, None), color=_color(s), linewidth=2.4, alpha=0.5)
        axes.plot(max(value, floor), place, "<" if outside else "o", color=_color(s), markersize=7)
        axes.annotate(
            scale.text(s.value),
            (max(floor, *ends), place),
            (7, 0),
            textcoords="offset points",
            va="center",
            **LABEL,
        )
    names(axes, [s.stage for s in strategies])
    _target_line(axes, strategies, scale)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.1 * (high - low))
    _no_more_than_all(axes.xaxis, scale)


def _metric(strategies: Sequence[Strategy], scale: Scale) -> str:
    return f"{strategies[0].metric}{', %' if scale.percent else ''}"


def _values(strategy: Strategy, scale: Scale) -> tuple[float, tuple[float, float]]:
    """The metric and the ends of its drop's interval, as they are drawn."""
    factor = 100 if scale.percent else 1
    value, drop, low, high = (
        float("nan") if part is None else factor * part
        for part in (strategy.value, strategy.drop, strategy.drop_low, strategy.drop_high)
    )
    return value, (value + drop - high, value + drop - low)


def _floor(strategies: Sequence[Strategy], scale: Scale) -> float:
    """Where the axis begins: what lost far more than the target allows stands at its end, as an arrow."""
    target, baseline = _target(strategies, scale)
    lowest = min(min(_values(s, scale)[1]) for s in strategies)
    return (
        lowest
        if target is None
        else max(lowest, baseline - 8 * max(baseline - target, 0.005 * abs(baseline)))
    )


def _target(strategies: Sequence[Strategy], scale: Scale) -> tuple[float | None, float]:
    first = strategies[0]
    value, _ = _values(first, scale)
    baseline = value + (first.drop or 0.0) * (100 if scale.percent else 1)
    return (
        None if first.max_drop is None else baseline - first.max_drop * (100 if scale.percent else 1)
    ), baseline


def _target_line(axes: Axes, strategies: Sequence[Strategy], scale: Scale) -> None:
    target, _ = _target(strategies, scale)
    if target is None:
        return
    axes.axvline(target, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        "target",
        (target, 0),
        (-4, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        **LABEL,
    )


def _metric_by_size(axes: Axes, strategies: Sequence[Strategy], scale: Scale) -> None:
    if not strategies:
        axes.set_axis_off()
        return
    unit, bytes_per_unit = size_unit(s.size_bytes for s in strategies)
    bare(
        axes,
        f"{_metric(strategies, scale)}, by size; line: nothing beats these",
        grid="both",
    )
    floor = _floor(strategies, scale)
    points = [((s.size_bytes or 0) / bytes_per_unit, _values(s, scale)[0]) for s in strategies]
    front = _front(points)
    drawn = [(x, max(y, floor)) for x, y in points]
    axes.plot(
        *np.clip(np.array(front), (0, floor), None).T,
        color=GREY,
        linewidth=1.2,
        drawstyle="steps-post",
        zorder=1,
    )
    for point, place, s in zip(points, drawn, strategies, strict=True):
        fill = _color(s) if point in front else "white"
        axes.plot(
            *place,
            "o" if point == place else "v",
            color=_color(s),
            markersize=7,
            markerfacecolor=fill,
            zorder=2,
        )
    axes.margins(0.14, 0.16)
    _no_more_than_all(axes.yaxis, scale)
    _label_points(axes, drawn, [s.stage for s in strategies])
    axes.set_xlabel(f"size, {unit}", fontsize=9, color=INK)


def _no_more_than_all(axis: Axis, scale: Scale) -> None:
    if scale.percent:
        low, high = axis.get_view_interval()
        axis.set_ticks([tick for tick in axis.get_ticklocs() if low <= tick <= min(high, 100)])


def _legend_of_answers(figure: Figure, strategies: Sequence[Strategy]) -> None:
    present = {_color(s) for s in strategies}
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=label)
        for color, label in (
            (GREEN, "surely meets the target"),
            (ORANGE, "not sure"),
            (RED, "misses it"),
            (GREY, "float"),
        )
        if color in present
    ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=9, handletextpad=0.2
    )


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points to which no other is both smaller and better, by size."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


OFFSETS = ((7, 5), (7, -11), (-7, 5), (-7, -11), (0, 10), (0, -16), (7, 16), (7, -22), (-7, 16), (-7, -22))


def _label_points(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Names beside their points, each at the first place where it covers neither a name nor a point."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    marks = [axes.transData.transform(point) for point in points]
    taken: list[Any] = []
    for point, name in zip(points, names, strict=True):
        for x, y in OFFSETS:
            side = "left" if x > 0 else "right" if x < 0 else "center"
            label = axes.annotate(
                name,
                point,
                (x, y),
                textcoords="offset points",
                ha=side,
                fontsize=8.5,
                color=INK,
                parse_math=False,
            )
            box = label.get_window_extent().padded(2)
            if not any(box.overlaps(other) for other in taken) and not any(
                box.contains(*mark) for mark in marks
            ):
                taken.append(box)
                break
            label.remove()


def _color(strategy: Strategy) -> str:
    if strategy.worst_layer is None:
        return GREY
    return {True: GREEN, False: RED, None: ORANGE}[strategy.target_met]
