"""Runs as rows of plain data, and how they are asked for, whichever way they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class RunRow:
    """A run of the store."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    """MLflow's: RUNNING, FINISHED, FAILED, KILLED."""
    started_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last point of each curve."""

    def having(self, tags: Mapping[str, str], metrics: Mapping[str, float]) -> RunRow:
        """The same with some tags and metrics in place of its own."""
        return replace(self, tags={**self.tags, **tags}, metrics={**self.metrics, **metrics})


class Point(NamedTuple):
    """A value on a curve."""

    step: int
    value: float


@dataclass(frozen=True)
class Query:
    """Which active runs, the latest first or the oldest; what is left out does not matter."""

    experiments: Sequence[str]
    tags: Mapping[str, str] = field(default_factory=dict)
    """Values that these tags must have."""
    beginning: tuple[str, str] | None = None
    """A tag, and how its value must begin; signs that LIKE gives a meaning match anything."""
    status: str | None = None
    ids: Sequence[str] | None = None
    id_prefix: str | None = None
    limit: int | None = None
    oldest_first: bool = False


class Source(Protocol):
    """A way to read a store."""

    def experiments(self) -> dict[str, str]:
        """Names of all active experiments, by id."""

    def runs(self, query: Query) -> Iterator[RunRow]:
        """With all their tags and metrics, read a part at a time: few are in memory at once."""

    def curves(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[tuple[str, str], list[Point]]:
        """By run and key, in the order of steps; what a run does not have is absent."""
