"""How a split's inputs are distributed, and how unlike those of another split they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten

from qtrack.data import SplitInfo
from qtrack.task import Inputs

Spread = Mapping[str, NDArray[np.float64]]
"""By statistic, a number for each sample."""
STATISTICS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda rows: rows.mean(1),
    "standard deviation": lambda rows: rows.std(1),
    "smallest": lambda rows: rows.min(1),
    "largest": lambda rows: rows.max(1),
}


FAR = 10.0
"""Median deviations beyond the median from where on a sample is an outlier."""
TWICE = 2.0
"""And it is one only if it costs the others a bit of their range."""


class Chosen(NamedTuple):
    """The calibration samples that a recipe takes, and all splits."""

    calibration: SplitInfo
    splits: Mapping[str, SplitInfo]


class Drift(NamedTuple):
    """The statistic by which two splits differ most."""

    statistic: str
    distance: float
    """Kolmogorov-Smirnov: the largest gap between both cumulative distributions, 0 to 1."""
    p: float
    """How often samples of one distribution are as far apart by chance, for all statistics together."""


def spread_of(batches: Iterable[Inputs]) -> Spread:
    """Statistics of each sample, of every input that is floating point; empty where none is."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for inputs in batches:
        for name, rows in _rows(inputs):
            for statistic, measure in STATISTICS.items():
                found.setdefault(f"{statistic}{name}", []).append(measure(rows))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _rows(inputs: Inputs) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Each input as a row for each sample, with what tells it from the others."""
    leaves = [leaf for leaf in tree_flatten(inputs)[0] if _is_read(leaf)]
    for i, leaf in enumerate(leaves):
        rows = leaf.detach().double().cpu().reshape(len(leaf), -1).numpy()
        yield (f" of input {i}" if len(leaves) > 1 else ""), rows


def _is_read(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0 and leaf.numel() > 0


def outlying(spread: Spread) -> NDArray[np.bool_]:
    """Samples whose largest magnitude is far beyond the others', and twice the usual one."""
    found = [_far(np.maximum(np.abs(spread[low]), np.abs(spread[high]))) for low, high in _ends(spread)]
    return np.asarray(np.any(found, axis=0)) if found else np.zeros(0, bool)


def _ends(spread: Spread) -> Iterator[tuple[str, str]]:
    """The names of both ends of each input's range."""
    for name in spread:
        if name.startswith("smallest"):
            yield name, name.replace("smallest", "largest")


def _far(magnitudes: NDArray[np.float64]) -> NDArray[np.bool_]:
    median = np.median(magnitudes)
    usual = 1.4826 * np.median(np.abs(magnitudes - median))
    return np.asarray((magnitudes > median + FAR * usual) & (magnitudes > TWICE * median))


def drift(one: Spread, other: Spread) -> Drift | None:
    """By Kolmogorov and Smirnov's test, Bonferroni-corrected; None where there is nothing to test."""
    from scipy.stats import ks_2samp  # takes a second to import

    tests = [
        (name, ks_2samp(one[name], other[name]))
        for name in one
        if name in other and (np.ptp(one[name]) or np.ptp(other[name]))
    ]
    if not tests:
        return None
    name, found = max(tests, key=lambda test: test[1].statistic)
    return Drift(name, float(found.statistic), min(float(found.pvalue) * len(tests), 1.0))
