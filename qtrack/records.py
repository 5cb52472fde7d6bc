"""What a campaign tells whoever keeps its record, and asks of earlier ones.

Plain data and protocols: the ledger implements them, and so does a recorder in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from qtrack.data import SplitInfo
    from qtrack.finding import Diagnosis, Worked
    from qtrack.outcome import Cost, Outcome
    from qtrack.pipeline import Plan, StageSpec
    from qtrack.recipe import Recipe
    from qtrack.stages import Judged
    from qtrack.task import Task


@dataclass(frozen=True, eq=False)
class Setting:
    """All that is known before the first stage runs."""

    plan: Plan
    splits: Mapping[str, SplitInfo]
    environment: Mapping[str, Any]
    ingredients: Mapping[str, str] = field(default_factory=dict)
    """Those that all stages share."""


@dataclass(frozen=True, eq=False)
class Known:
    """A finished stage on record, that came from the same ingredients."""

    run_id: str
    stage: str
    campaign: str
    execution: str
    """Its ``execution_key``."""
    outcome: Outcome
    cost: Cost
    """Of the stage with its search."""
    diagnosis: Diagnosis | None = None
    """None where it was not diagnosed."""
    also: tuple[Recipe, ...] = ()
    """Its further answers."""


@dataclass(frozen=True)
class Failure:
    """A recipe that a search could not try, or not to the end."""

    step: int
    recipe_digest: str
    error: str
    cost: Cost | None = None
    """Of one that was stopped; None where it is not known."""


@dataclass(frozen=True)
class Searched:
    """How a stage's search went."""

    ended: str
    """complete, budget, or interrupted."""
    planned: int | None
    """Evaluations at most, as it said before; None where it did not say."""
    evaluations: int
    """Recipes tried, those that failed among them."""
    saved: int = 0
    """Evaluations that an earlier search made needless."""
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, eq=False)
class StageResult:
    """A finished stage: its outcome, judged against the float baseline, and the probes of its search."""

    name: str
    index: int
    judged: Judged
    baseline: Outcome
    probes: tuple[Judged, ...] = ()
    ingredients: Mapping[str, str] = field(default_factory=dict)
    """What went into it, by name."""
    question: str | None = None
    """Digest of all that the stage was asked with; None where not all of it can be known by content."""
    known: Known | None = None
    """The finished stage that this one refers to, instead of having been executed."""
    diagnosis: Diagnosis | None = None
    """What was found about it, if a stage after it asked for that."""
    measuring: Cost | None = None
    """What it spent on what it asked of the stage that it started from: diagnosis, sensitivity, prices."""
    followed: str | None = None
    """The stage whose remedy it took, where a diagnosis named that."""
    searched: Searched | None = None
    """How its search went, where it made one."""
    also: tuple[Recipe, ...] = ()
    """Further answers, each of which becomes a stage of its own after it."""

    @property
    def outcome(self) -> Outcome:
        return self.judged.outcome

    @property
    def cost(self) -> Cost:
        """Of the stage with its search and all that was measured for it, whenever that was."""
        if self.known:
            return self.known.cost
        spent = [probe.outcome.cost for probe in self.probes]
        spent += [self.measuring] if self.measuring else []
        spent += [one.cost for one in self.searched.failures if one.cost] if self.searched else []
        return sum(spent, self.outcome.cost)


class StageRecord(Protocol):
    """Where one stage is written while it runs."""

    def begin(self) -> None:
        """Open the record, before the work begins; whatever is written to it opens it as well."""

    def recipe(self, recipe: Recipe, previous: Recipe | None) -> None:
        """The recipe about to be executed, and that of the stage it started from."""

    def report(self, key: str, value: float, step: int) -> None:
        """A point on a curve."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """What a search has measured, as rows of the same columns, under a name of its own."""

    def result(self, result: StageResult) -> None:
        """What came out."""


class CampaignRecord(Protocol):
    """Where one campaign is written while it runs."""

    id: str

    def stage(self, spec: StageSpec, index: int) -> AbstractContextManager[StageRecord]:
        """A stage's record; left by an exception it ends as failed, by Ctrl-C as killed.

        Where it was never begun and nothing failed, nothing is recorded.
        """

    def refer(self, result: StageResult) -> None:
        """A stage that was not executed: what is known stands for it."""

    def diagnosed(self, result: StageResult, found: Diagnosis) -> None:
        """What was found about a stage that has come to its end, here or in an earlier campaign."""

    def summary(self, results: Sequence[StageResult]) -> None:
        """What all stages came to."""


class Recorder(Protocol):
    """Keeps campaigns."""

    def campaign(self, setting: Setting) -> AbstractContextManager[CampaignRecord]:
        """Open a campaign's record."""

    def known(self, task: Task, *, question: str | None = None, execution: str | None = None) -> Known | None:
        """The finished stage that was asked the same, or came from the same ingredients, if there is one."""

    def winners(self, task: Task) -> Sequence[Recipe]:
        """What earlier searches ended with that met their target, of the task or its architecture."""

    def worked(self) -> Callable[[str], Mapping[str, Worked]]:
        """Says of a cause how often each stage, by its function, has worked in earlier campaigns."""
