"""What all figures share: colours, bare axes, names of layers down the side, room around them in inches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, which most colour-blind people can tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8C9196"
INK, RULE = "#22262B", "#DDE1E5"
NAME_WIDTH = 32
TITLE: dict[str, Any] = {"fontsize": 12, "fontweight": "bold", "color": INK, "parse_math": False}
LABEL: dict[str, Any] = {
    "fontsize": 8.5,
    "color": INK,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
}


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure of this size in inches, with its title at the upper left."""
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    top = 1 - 0.1 / height
    figure.suptitle(title, x=0.01, y=top, ha="left", va="top", **TITLE)
    return figure


def margins(figure: Figure, *, left: float, bottom: float, top: float = 0.65, **spaces: float) -> None:
    """Room around the axes in inches. Matplotlib's own layout engines draw everything twice to find it."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width, right=1 - 0.3 / width, bottom=bottom / height, top=1 - top / height, **spaces
    )


def name_margin(names: Iterable[str]) -> float:
    """Inches in which the longest name stands beside the axes."""
    return 0.3 + 0.072 * max(map(len, names))


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Along the lower edge."""
    drawn = figure.legend(handles, labels, loc="lower left", ncols=len(labels), frameon=False, fontsize=9)
    for text in drawn.get_texts():
        text.set_parse_math(False)


def bare(axes: Axes, title: str = "", *, grid: Literal["x", "y", "both"] | None = "x") -> Axes:
    """Only the lines that help to read values."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, parse_math=False)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=INK)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=RULE, linewidth=0.8)
    return axes


def names(axes: Axes, labels: Sequence[str]) -> None:
    """Names down the left side, the first on top."""
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
