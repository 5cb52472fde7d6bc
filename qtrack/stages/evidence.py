"""What a stage may know when it rewrites a recipe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import Field

from qtrack.errors import QtrackError, RecipeError
from qtrack.finding import Diagnosis
from qtrack.outcome import Outcome
from qtrack.recipe import Frozen, Recipe
from qtrack.search.prices import PriceTable
from qtrack.statistics import Drop, Scores, paired_drop, stricter, target_met


class Target(Frozen):
    """How much of the metric may be lost, and how sure that must be."""

    metric: str | None = Field(None, description="None: the task's own metric")
    max_drop: Annotated[float, Field(ge=0)] = 0.01
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Mixtures(Protocol):
    """A converted model whose layers can be switched back to float without converting another."""

    def coupled(self) -> Sequence[frozenset[str]]:
        """Layers, and calls of functions, that must share a scale."""

    def order(
        self, costs: Mapping[str, float], together: Mapping[str, frozenset[str]] | None = None
    ) -> tuple[str, ...]:
        """These layers by how much they are needed in float for what each costs there, most first.

        ``together`` says what is switched with a layer, itself among it.
        """

    def gains(self) -> Mapping[str, float]:
        """By what factor the noise over signal of each layer's own output comes out of the network."""

    def harm(self, off: Collection[str]) -> float:
        """Of leaving these in float, on calibration samples; comparable between mixtures."""

    def scores(self, off: Collection[str], positions: Sequence[int]) -> Scores:
        """Of these validation samples, with these layers in float."""


class SearchOver(Exception):
    """The budget is spent: a stage lets it pass, and what it proposed last is its answer."""


class ProbeFailed(QtrackError):
    """A recipe could not be executed; the search may go on with others."""


@dataclass(frozen=True, eq=False)
class Judged:
    """An outcome against the baseline and the target; ``meets_target`` None means not sure."""

    outcome: Outcome
    drop: Drop
    meets_target: bool | None


def judge(outcome: Outcome, baseline: Outcome, target: Target) -> Judged:
    """Compare an outcome with the float baseline on the same samples; against itself it has no drop."""
    if outcome is baseline:
        return Judged(outcome, Drop(0.0, 0.0, 0.0, target.confidence, len(outcome.validation.scores)), True)
    drop = paired_drop(baseline.validation.scores, outcome.validation.scores, target.confidence)
    return Judged(outcome, drop, target_met(drop, target.max_drop))


def nothing_to_diagnose() -> Diagnosis:
    """Where a stage starts from none that quantizes."""
    raise RecipeError("there is nothing to diagnose: start from a stage that quantizes, such as ptq")


def nothing_to_price() -> PriceTable:
    """Where a stage starts from none that quantizes."""
    raise RecipeError("there is nothing to price: start from a stage that quantizes statically, such as ptq")


def _unplanned(*_: Any, **__: Any) -> None:
    """Where nobody keeps count of a search."""


def _none() -> None:
    """Where there are none."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The float baseline, what earlier stages left, the target, and a way to try a recipe out."""

    target: Target
    baseline: Judged | None
    """None until the float stage has run."""
    previous: Judged | None
    """The stage that this one starts from; None where it starts from the pipeline's recipe."""
    earlier: Mapping[str, Judged]
    """All stages so far, by name."""
    probe: Callable[..., Judged]
    """Execute a recipe and judge it; each new one is counted and recorded as a step of this stage.

    With ``timed=True`` its latency is measured as well; ``until`` is given the scores so far, after each
    batch, and where it holds Stopped is raised. Raises ProbeFailed where the recipe cannot be executed, and
    SearchOver where the budget is spent.
    """
    plan: Callable[[int], None] = _unplanned
    """Say before a search how many evaluations it takes at most."""
    spared: Callable[[int], None] = _unplanned
    """Say how many of them what earlier runs found has made needless."""
    expect: Callable[[Sequence[Recipe]], None] = _unplanned
    """Say which recipes may be tried next, the likeliest first: others may begin on them meanwhile."""
    propose: Callable[[Recipe], None] = _unplanned
    """Say what the answer would be if the search ended now."""
    mixtures: Callable[[], Mixtures | None] = _none
    """Of the recipe that this stage starts from; None where its layers cannot be switched."""
    outlook: Callable[[], None] = _unplanned
    """Say early where weights alone, or activations alone, on integers already miss the target."""
    winners: Callable[[], Sequence[Recipe]] = tuple
    """Recipes of earlier runs, of this task or architecture, that met their target; the latest first."""
    diagnose: Callable[[], Diagnosis] = nothing_to_diagnose
    """Diagnose the stage that this one starts from; recorded with its run, and counted to this stage."""
    rungs: Callable[[], PriceTable] = nothing_to_price
    """What each layer of the stage that this one starts from costs on each rung; counted to this stage."""
    table: Callable[[str, Sequence[Mapping[str, Any]]], None] = _unplanned
    """Record rows of the same columns with this stage, under a name; those of the same name are replaced."""
    also: Callable[[Recipe], None] = _unplanned
    """Name a further answer: it becomes a stage of its own after this one, ``NAME.2`` and so on."""
    storage: Callable[[Any], Any] = _unplanned
    """Where the trials that belong to a question are kept for a later run; None where they can't be.

    A question is plain data; the task, the target and the recipe that the stage starts from are part of it.
    """

    def floating(self) -> Judged:
        """The float model's outcome; there is one where a stage before has been executed."""
        assert self.baseline is not None
        return self.baseline

    def holds(self, judged: Judged, looks: int) -> bool:
        """Does it surely meet the target even where it is chosen among so many on the same samples?"""
        if not judged.meets_target or self.baseline is None:
            return judged.meets_target is True
        confidence = stricter(self.target.confidence, looks)
        scores = self.floating().outcome.validation.scores
        drop = paired_drop(scores, judged.outcome.validation.scores, confidence)
        return target_met(drop, self.target.max_drop) is True

    def starting_point(self) -> Judged:
        """The stage that this one starts from; raises RecipeError where there is none to learn from."""
        if self.previous is None:
            raise RecipeError("this stage searches: let it start from a stage that quantizes, such as ptq")
        return self.previous


class Stage(Protocol):
    """Rewrites a recipe; touches no model, no file, no MLflow. Options are keyword arguments."""

    def __call__(self, recipe: Recipe, evidence: Evidence, /, **options: Any) -> Recipe: ...


S = TypeVar("S")


def needs(*methods: str, **options: Any) -> Callable[[S], S]:
    """Say which optional methods of the task a stage cannot do without; checked before anything runs.

    With ``options`` it needs them only where these have these values.
    """

    def mark(stage: S) -> S:
        stage.needs = methods, options  # type: ignore[attr-defined]  # a plain attribute on a function
        return stage

    return mark


def requires(package: str, extra: str) -> Callable[[S], S]:
    """Say which package a stage cannot do without, and the extra of qtrack that brings it."""

    def mark(stage: S) -> S:
        stage.requires = package, extra  # type: ignore[attr-defined]  # a plain attribute on a function
        return stage

    return mark


def absent(stage: Any) -> str | None:
    """What to do where the package that a stage requires is not installed; None where nothing."""
    package, extra = getattr(stage, "requires", (None, None))
    if package is None or find_spec(package):
        return None
    return f"{package} is not installed: pip install 'qtrack[{extra}]'"


def needed(stage: Any, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The methods that a stage needs with these options."""
    methods, where = getattr(stage, "needs", ((), {}))
    return methods if all(options.get(name) == value for name, value in where.items()) else ()
