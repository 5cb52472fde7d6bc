"""All that is measured on a quantized model before anything is concluded.

Every figure is taken on the recipe executed anew: recorded runs hold no observers. What a remedy would bring
is measured too, on the network's outputs: ``trial`` executes a recipe and holds its outputs against the float
model's on the first TRIAL validation samples. Labels have no part in that, so a trial selects nothing by the
metric that later judges the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qtrack.backends import emulated_pair
from qtrack.backends.base import BOTH, Side
from qtrack.backends.capabilities import check
from qtrack.backends.engines import using_engine
from qtrack.data import SplitInfo, batches_of, calibration_batches, selected, size_of, split_info
from qtrack.diagnosis.inputs import Chosen, Spread, spread_of
from qtrack.engine import Parts, quantize, settled
from qtrack.engine.evaluation import evaluate
from qtrack.errors import BackendError, QtrackError
from qtrack.monitor import SILENT, Monitor, Titled
from qtrack.numerics import Comparison, Options, Pair, compare
from qtrack.numerics.kernels import KernelError, kernel_errors
from qtrack.numerics.steps import Inputs
from qtrack.outcome import Cost, Evaluation, LayerRow, Outcome
from qtrack.recipe import Recipe
from qtrack.stages import STAGES, Evidence, Judged, Target, judge
from qtrack.statistics import Drop, paired_drop
from qtrack.task import Batch, Task

TRIAL = 256
"""Validation samples on which a trial is judged, and kernels are looked at."""
SIDES: Mapping[str, tuple[Side, ...]] = {
    "weights": ("weights",),
    "activations": ("activations",),
    "both": BOTH,
}
CEILING = 1.0
"""A sample whose noise has the energy of its signal is lost; more noise loses it no further."""


def damage(sample_sqnr_db: NDArray[np.float64]) -> float:
    """Mean over samples of noise over signal at the network's output, each at most CEILING; NaN counts so."""
    with np.errstate(over="ignore"):
        ratio = np.power(10.0, -sample_sqnr_db / 10)
    return float(np.nan_to_num(ratio, nan=CEILING).clip(max=CEILING).mean())


@dataclass(frozen=True)
class Trial:
    """What a change of the recipe does to the network's output."""

    recipe: Recipe
    sample_sqnr_db: NDArray[np.float64]
    forward_samples: int
    """Of building the model."""

    @property
    def damage(self) -> float:
        return damage(self.sample_sqnr_db)


@dataclass(eq=False)
class Examination:
    """The float model, the quantized one, and everything between them."""

    task: Task
    recipe: Recipe
    target: Target
    splits: Mapping[str, SplitInfo]
    monitor: Monitor = SILENT
    forward_samples: int = 0
    trials: dict[str, Trial] = field(default_factory=dict)
    """By digest of the recipe."""

    def __post_init__(self) -> None:
        self.recipe = settled(self.recipe)

    # What is there ------------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> Parts:
        """The recipe's model with its observers."""
        return self._counted(quantize(self.task, self.recipe, self._titled("quantize"), sizes=self.sizes))

    @cached_property
    def model(self) -> nn.Module:
        """The float model."""
        return self.task.model().eval()

    @property
    def pair(self) -> Pair:
        return self.parts.quantized.pair

    @property
    def sizes(self) -> dict[str, int]:
        return {name: split.samples for name, split in self.splits.items()}

    @cached_property
    def inputs(self) -> list[Inputs]:
        """Of the first TRIAL validation samples, in the task's batches."""
        found: list[Inputs] = []
        seen = 0
        for batch in batches_of(self.task, "validation"):
            found.append(self.task.inputs(batch))
            seen += size_of(batch)
            if seen >= TRIAL:
                break
        return found

    # What it does -------------------------------------------------------------------------------------------

    @cached_property
    def floating(self) -> Evaluation:
        """The float model on the validation split."""
        return self._evaluated(self.model, "float")

    @cached_property
    def quantized(self) -> Evaluation:
        """The quantized model on the validation split."""
        with using_engine(self.recipe.engine):
            return self._evaluated(self.parts.quantized.model, "quantized")

    @cached_property
    def legs(self) -> dict[str, Evaluation]:
        """One side on integers, or both, emulated in float; what the backend cannot emulate is absent."""
        found = {}
        for name, sides in SIDES.items():
            model = self.emulated if sides == BOTH else self._emulated(sides)
            if model is not None:
                found[name] = self._evaluated(model, f"{name} alone" if name != "both" else "emulated")
        return found

    @cached_property
    def emulated(self) -> nn.Module | None:
        """The quantized model by its reference arithmetic; None where the backend has no such form of it."""
        return self._emulated(BOTH)

    def _emulated(self, sides: Sequence[Side]) -> nn.Module | None:
        parts = self.parts
        try:
            return parts.backend.reference(parts.prepared, sides).eval()
        except BackendError:  # it has no such form of this model, which is an answer
            return None

    @cached_property
    def drop(self) -> Drop:
        """Of the metric, float less quantized, on the same samples."""
        return paired_drop(self.floating.scores, self.quantized.scores, self.target.confidence)

    @property
    def lost(self) -> float:
        """Of the metric; never negative."""
        return max(self.drop.value, 0.0)

    @cached_property
    def suffers(self) -> bool:
        """Is the loss more than chance, and not surely within the target?"""
        return self.drop.low > 0 and self.drop.high > self.target.max_drop

    @property
    def weight_share(self) -> float | None:
        """Of what weights alone and activations alone lose; None where neither is known or loses anything."""
        value = self.floating.value
        losses = {name: max(value - leg.value, 0.0) for name, leg in self.legs.items() if name != "both"}
        total = sum(losses.values())
        return losses["weights"] / total if len(losses) == 2 and total else None

    # Where it comes from ------------------------------------------------------------------------------------

    @cached_property
    def compared(self) -> Comparison:
        """Layer by layer on the first TRIAL validation samples."""
        return self._compare(self.pair, self.inputs)

    @cached_property
    def calibrated(self) -> Comparison:
        """The same on the samples that the observers saw."""
        return self._compare(self.pair, map(self.task.inputs, self._calibration()))

    @cached_property
    def rows(self) -> Mapping[str, LayerRow]:
        """The quantized layers on validation samples, by name in execution order."""
        return {row.layer: row for row in self.compared.rows if row.dtype != "float32"}

    @cached_property
    def sample_sqnr_db(self) -> NDArray[np.float64]:
        """Of the network's output on every validation sample."""
        batches = map(self.task.inputs, batches_of(self.task, "validation"))
        bare = Pair(self.pair.reference, self.pair.actual, ())
        return self._compare(bare, batches).sample_sqnr_db

    @cached_property
    def kernels(self) -> tuple[KernelError, ...] | None:
        """Each integer kernel against its reference; None where the backend has no reference form."""
        if self.emulated is None:
            return None
        with using_engine(self.recipe.engine):
            return kernel_errors(emulated_pair(self.emulated, self.pair), self.inputs)

    @cached_property
    def chosen(self) -> Chosen:
        """The calibration samples that the recipe takes, by content."""
        return Chosen(split_info(self.task, "calibration", self._calibration()), self.splits)

    @cached_property
    def spreads(self) -> Mapping[str, Spread]:
        """How the inputs of each split are distributed: those of the calibration samples that are chosen."""
        return {
            "calibration": spread_of(map(self.task.inputs, self._calibration())),
            "validation": spread_of(map(self.task.inputs, batches_of(self.task, "validation"))),
        }

    def compared_on(self, samples: Sequence[int]) -> Comparison:
        """Layer by layer, as errors accumulate, on these validation samples alone."""
        batches = selected(batches_of(self.task, "validation"), set(samples), len(samples))
        return self._compare(self.pair, map(self.task.inputs, batches), own_share=False)

    # What would do ------------------------------------------------------------------------------------------

    @cached_property
    def evidence(self) -> Evidence:
        """What a stage may know that changes this recipe."""
        judged = self._judged(self.quantized, self.calibrated.rows)
        baseline = self._judged(self.floating, ())
        return Evidence(self.target, baseline, judged, {}, _no_probe)

    def changed(self, stage: str, options: Mapping[str, Any]) -> Recipe:
        """What a stage makes of the recipe; raises RecipeError where it cannot be used on it."""
        recipe: Recipe = STAGES[stage](self.recipe, self.evidence, **options)
        check(recipe)
        return settled(recipe)

    def trial(self, recipe: Recipe) -> Trial | None:
        """Execute a recipe and look at its outputs; None where it cannot be executed on this model."""
        if recipe.digest not in self.trials:
            try:
                self.trials[recipe.digest] = self._try(recipe)
            except QtrackError:  # such as a backend that refuses the layer: no remedy then
                return None
        return self.trials[recipe.digest]

    def _try(self, recipe: Recipe) -> Trial:
        parts = self._counted(quantize(self.task, recipe, self._titled("try a remedy"), sizes=self.sizes))
        with using_engine(recipe.engine):
            bare = Pair(self.pair.reference, parts.quantized.pair.actual, ())
            found = self._compare(bare, self.inputs)
        return Trial(recipe, found.sample_sqnr_db, parts.forward_samples)

    @cached_property
    def damage(self) -> float:
        """Of the recipe itself, on the samples of a trial."""
        return damage(self.compared.sample_sqnr_db)

    def gain(self, recipe: Recipe) -> float | None:
        """Share of the damage at the output that this recipe takes away; None where it cannot be tried."""
        trial = self.trial(recipe)
        if trial is None or not self.damage:
            return None
        return max(1.0 - trial.damage / self.damage, 0.0)

    @property
    def explained(self) -> float:
        """Share of the damage that the best remedy tried so far takes away."""
        gains = (1.0 - trial.damage / self.damage for trial in self.trials.values() if self.damage)
        return max(gains, default=0.0)

    def improved(self, recipe: Recipe) -> float | None:
        """Share of the samples whose output comes closer to the float model's than it was."""
        trial = self.trial(recipe)
        if trial is None:
            return None
        before, after = (
            np.nan_to_num(found, nan=-np.inf)
            for found in (self.compared.sample_sqnr_db, trial.sample_sqnr_db)
        )
        return float((after > before).mean())

    def cost(self, recipe: Recipe) -> float:
        """Samples that building and judging the recipe's model takes, in whole times of this one's.

        Counted, not timed, so that the order of remedies does not depend on what else the machine does.
        """
        trial, judging = self.trial(recipe), self.sizes["validation"]
        if trial is None:
            return 1.0
        ratio = (trial.forward_samples + judging) / (self.parts.forward_samples + judging)
        return float(max(round(ratio), 1))

    # How that is done ---------------------------------------------------------------------------------------

    def _judged(self, evaluation: Evaluation, rows: Sequence[LayerRow]) -> Judged:
        outcome = Outcome(
            recipe=self.recipe,
            build=lambda: self.model,
            example=None,
            metric=self.task.metric,
            validation=evaluation,
            cost=Cost(0.0, {}, 0, 0),
            size_bytes=0,
            layers=tuple(rows),
        )
        floating = outcome if evaluation is self.floating else self._judged(self.floating, ()).outcome
        return judge(outcome, floating, self.target)

    def _calibration(self) -> Iterator[Batch]:
        return calibration_batches(
            self.task, self.recipe.calibration, self.recipe.seed, self.recipe.training_seed
        )

    def _evaluated(self, model: nn.Module, title: str) -> Evaluation:
        with self.monitor.phase(title, self.sizes.get("validation")) as advance:
            return evaluate(self.task, model, "validation", self._advancing("validation", advance))

    def _advancing(self, split: Any, advance: Any) -> Iterator[Batch]:
        for batch in batches_of(self.task, split):
            yield batch
            advance(size_of(batch))
            self.forward_samples += size_of(batch)

    def _compare(self, pair: Pair, inputs: Any, *, own_share: bool = True) -> Comparison:
        with using_engine(self.recipe.engine), torch.no_grad():
            activation = getattr(self.recipe.default, "activation", None)
            found = compare(pair, inputs, Options(own_share, activation=activation))
        self.forward_samples += 2 * found.samples
        return found

    def _counted(self, parts: Parts) -> Parts:
        self.forward_samples += parts.forward_samples
        return parts

    def _titled(self, title: str) -> Monitor:
        return Titled(title, self.monitor)


def _no_probe(recipe: Recipe) -> Judged:
    raise AssertionError("stages that search are named as remedies, not tried")
