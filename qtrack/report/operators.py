"""What each backend makes of each operator, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qtrack.backends.capabilities import CAPABILITIES, missing
from qtrack.backends.operators import OPERATORS, Trial, trials
from qtrack.monitor import Monitor
from qtrack.report.tables import Column, Table

NOTES = (
    "a mode's name: it ran on fewer bits in that mode, and the layer comparison has a line for it",
    "fused: a part of the layer before it; passes: moves or cuts off integers, and adds no error of its own",
    "float: it stays in float, behind a conversion where the layer before it is quantized",
)


def try_operators(monitor: Monitor) -> dict[str, list[Trial]]:
    """Each operator in each mode, by backend; without the backends whose package is not installed."""
    present = [backend for backend in CAPABILITIES if not missing(backend)]
    with monitor.phase("operators", len(OPERATORS) * len(present)) as advance:
        return {backend: list(_counted(trials(backend), advance)) for backend in present}


def _counted(found: Iterator[Trial], advance: Any) -> Iterator[Trial]:
    for trial in found:
        yield trial
        advance(1)


def operators(found: Mapping[str, Sequence[Trial]]) -> Table:
    """Operators by backends."""
    rows = [(trials[0].operator, *map(str, trials)) for trials in zip(*found.values(), strict=True)]
    columns = (Column("operator", "left"), *(Column(backend, "left") for backend in found))
    refused = sorted(
        {
            f"{t.backend}, {t.operator}: {why}"
            for all_ in found.values()
            for t in all_
            for why in t.refused.values()
        }
    )
    absent = [f"{name} {why}" for name in CAPABILITIES if (why := missing(name))]
    return Table(columns, tuple(rows), (*NOTES, *absent, *refused))


def records(found: Mapping[str, Sequence[Trial]]) -> list[dict[str, Any]]:
    """Ready for JSON."""
    return [
        {**trial._asdict(), "refused": dict(trial.refused)} for trials in found.values() for trial in trials
    ]
