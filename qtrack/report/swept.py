"""What a sweep came to: each stage over the seeds that it was run with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from qtrack.report.cells import NONE, Scale, number, size, size_unit
from qtrack.report.comparison import comparison_view
from qtrack.report.tables import Column, Table
from qtrack.report.verdict import scale_of
from qtrack.report.view import View

if TYPE_CHECKING:
    from qtrack.ledger import Strategy

Job = tuple[str, Sequence["Strategy"]]
"""What is run, whatever the seed, and the stages of one run of it."""


def sweep_view(jobs: Sequence[Job]) -> View:
    """A row for each stage of each pipeline, task and engine; records are all strategies by themselves."""
    strategies = [strategy for _, found in jobs for strategy in found]
    names = [name for name, found in jobs for _ in found]
    records = [
        {"job": name, **record}
        for name, record in zip(names, comparison_view(strategies).records, strict=True)
    ]
    return View("sweep", _table(jobs, strategies), records)


def _table(jobs: Sequence[Job], strategies: Sequence[Strategy]) -> Table:
    scale = scale_of(strategies)
    unit, bytes_per_unit = size_unit(s.size_bytes for s in strategies)
    metrics = {s.metric for s in strategies}
    columns = (
        Column("stage", "left"),
        Column("runs"),
        Column(f"{metrics.pop() if len(metrics) == 1 else 'metric'}\n{scale.unit}, mean"),
        Column("lowest to\nhighest"),
        Column(f"drop\n{scale.difference_unit}, mean"),
        Column("target\nmet"),
        Column(f"size\n{unit}"),
        Column("latency\nms/float"),
        Column("time\ns"),
    )
    rows: list[tuple[str, ...]] = []
    headings: list[tuple[int, str]] = []
    for name, runs in _grouped(jobs).items():
        headings.append((len(rows), name))
        for stage, found in runs.items():
            rows.append((stage, *_row(found, scale, bytes_per_unit)))
    notes = ("runs: finished ones, of as many seeds; size, latency and time are medians",)
    return Table(columns, tuple(rows), notes, tuple(headings))


def _grouped(jobs: Sequence[Job]) -> dict[str, dict[str, list[Strategy]]]:
    """By job and stage, in the order of the sweep."""
    found: dict[str, dict[str, list[Strategy]]] = {}
    for name, strategies in jobs:
        for strategy in strategies:
            found.setdefault(name, {}).setdefault(strategy.stage, []).append(strategy)
    return found


def _row(strategies: Sequence[Strategy], scale: Scale, bytes_per_unit: int) -> Iterable[str]:
    values = [s.value for s in strategies if s.value is not None]
    drops = [s.drop for s in strategies if s.drop is not None]
    sizes = [s.size_bytes for s in strategies if s.size_bytes is not None]
    yield str(len(values))
    yield scale.text(fmean(values)) if values else NONE
    yield f"{scale.text(min(values))} to {scale.text(max(values))}" if len(values) > 1 else NONE
    yield scale.text(fmean(drops)) if drops else NONE
    yield f"{sum(s.target_met is True for s in strategies)} of {len(strategies)}"
    yield size(round(median(sizes)), bytes_per_unit) if sizes else NONE
    yield _latency(strategies)
    seconds = [s.seconds for s in strategies if s.seconds is not None]
    yield number(median(seconds), 1) if seconds else NONE


def _latency(strategies: Sequence[Strategy]) -> str:
    found = [(s.latency_ms, s.float_latency_ms) for s in strategies if s.latency_ms and s.float_latency_ms]
    if not found:
        return NONE
    own, floating = (median(times) for times in zip(*found, strict=True))
    return f"{own:.3g}/{floating:.3g}"
