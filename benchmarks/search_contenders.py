"""The ways to a target that ``benchmarks/search.py`` puts side by side, each written plainly.

All start from what the PTQ stage left, with its layer table, and accept a model by the same rule: the whole
interval of the drop below the target. What a search came to is executed once more for the test split; that is
the same for all and in no count.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from qtrack import execute
from qtrack.campaign import run_plan
from qtrack.data import selected
from qtrack.outcome import Cost, Outcome
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Recipe
from qtrack.stages import Judged, Target, judge
from qtrack.task import Task

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
memory = import_module("memory")

RANKED_ON = 300
"""Samples that nncf ranks on, those with the largest loss: its default."""


@dataclass(frozen=True, eq=False)
class Case:
    """A network to be brought to the target, executed in float and with all layers quantized."""

    name: str
    task: Task
    recipe: Recipe
    target: Target
    baseline: Outcome
    ptq: Outcome

    @property
    def layers(self) -> list[str]:
        """Quantized layers with weights, the largest share of the error of their own first."""
        return [row.layer for row in self.ptq.by_own_share() if row.params]


@dataclass(frozen=True, eq=False)
class Found:
    """What a search chose, and what it took."""

    chosen: Judged
    evaluations: int
    """Converted models on the whole validation split."""
    models: int
    """Models prepared, calibrated and converted."""
    forwards: int
    """Samples through a model, whatever for."""
    cpu_s: float
    note: str = ""


class Bench:
    """Executes recipes for a search written here, and counts."""

    def __init__(self, case: Case, stop_s: float) -> None:
        self.case = case
        self.began, self.stop_s = time.process_time(), stop_s
        self.evaluations = self.models = self.forwards = 0

    @property
    def is_late(self) -> bool:
        return time.process_time() - self.began > self.stop_s

    def start(self) -> Judged:
        return judge(self.case.ptq, self.case.baseline, self.case.target)

    def judged(self, layers: Iterable[str]) -> Judged:
        """With these layers in float, on the whole validation split."""
        self.evaluations += 1
        return judge(self._outcome(self.case.task, layers), self.case.baseline, self.case.target)

    def score(self, layers: Iterable[str], samples: Sequence[int]) -> float:
        """With these layers in float, the metric on some of the validation samples."""
        return self._outcome(only(self.case.task, samples), layers).value

    def _outcome(self, task: Task, layers: Iterable[str]) -> Outcome:
        outcome = execute(task, self.case.recipe.keeping_float(*layers), thorough=False)
        self.models += 1
        self.forwards += outcome.cost.forward_samples
        return outcome

    def found(self, chosen: Judged) -> Found:
        spent = time.process_time() - self.began
        note = f"stopped after {spent:.0f} CPU-s" if self.is_late and not chosen.meets_target else ""
        return Found(chosen, self.evaluations, self.models, self.forwards, spent, note)


def only(task: Task, samples: Sequence[int]) -> Task:
    """The same task with some of its validation samples."""
    part, keep = copy.copy(task), frozenset(samples)
    part.validation = lambda: selected(task.validation(), keep, len(keep))
    return part


def greedy(case: Case, stop_s: float) -> Found:
    """One layer at a time: try each of those left in float, keep the best, and rank the others anew."""
    bench, kept = Bench(case, stop_s), list[str]()
    chosen = bench.start()
    while not chosen.meets_target and len(kept) < len(case.layers) and not bench.is_late:
        tried = {layer: bench.judged([*kept, layer]) for layer in case.layers if layer not in kept}
        best = max(tried, key=lambda layer: tried[layer].outcome.value)
        kept.append(best)
        chosen = tried[best]
    return bench.found(chosen)


def greedy_nncf(case: Case, stop_s: float) -> Found:
    """The same in nncf's order of things (3.4, ``accuracy_control/algorithm.py``).

    Ranked on the samples that lost most, best metric first; layers go to float in that order, each step
    evaluated on all samples. One that made it worse is taken back and the layers left are ranked anew, unless
    it was the first after a ranking.
    """
    bench, kept = Bench(case, stop_s), list[str]()
    chosen = bench.start()
    ranked, is_fresh = _ranked(bench, kept, chosen), True
    while not chosen.meets_target and ranked and not bench.is_late:
        layer, *ranked = ranked
        now = bench.judged([*kept, layer])
        if is_fresh or now.drop.value <= chosen.drop.value:
            kept, chosen, is_fresh = [*kept, layer], now, False
        else:
            ranked, is_fresh = _ranked(bench, kept, chosen), True
    return bench.found(chosen)


def _ranked(bench: Bench, kept: list[str], now: Judged) -> list[str]:
    lost = bench.case.baseline.validation.scores - now.outcome.validation.scores
    samples = np.argsort(lost)[::-1][:RANKED_ON].tolist()
    left = [layer for layer in bench.case.layers if layer not in kept]
    scores = {layer: bench.score([*kept, layer], samples) for layer in left}
    return sorted(left, key=lambda layer: -scores[layer])


def exhaustive(case: Case, stop_s: float) -> Found:
    """Every length of the one ranking by own share of the error; the shortest that meets the target."""
    bench = Bench(case, stop_s)
    tried = [bench.start(), *(bench.judged(case.layers[:k]) for k in range(1, len(case.layers) + 1))]
    met = [judged for judged in tried if judged.meets_target]
    return bench.found(met[0] if met else max(tried, key=lambda judged: judged.outcome.value))


class SearchClock(memory.Memory):
    """Remembers the CPU time of each stage's search: from its beginning until its recipe is known."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s: dict[str, float] = {}

    @contextmanager
    def stage(self, spec: Any, index: int) -> Iterator[Any]:
        began = time.process_time()
        with super().stage(spec, index) as record:
            known = record.recipe

            def recipe(*recipes: Any) -> None:
                self.cpu_s[spec.name] = time.process_time() - began
                known(*recipes)

            record.recipe = recipe
            yield record


def stage(case: Case, stop_s: float) -> Found:
    """The ``fallback`` stage, as a pipeline runs it."""
    pipeline = Pipeline(
        name=case.name,
        task=case.task.name,
        target=case.target,
        recipe=case.recipe,
        stages=["float", "ptq", "fallback"],
        threads=1,
    )
    clock = SearchClock()
    result = run_plan(plan_of(pipeline, case.task), clock)[-1]
    searched = _less(result.cost, result.outcome.cost)
    models = len(result.probes)
    return Found(
        result.judged, searched.evaluations, models, searched.forward_samples, clock.cpu_s["fallback"]
    )


def _less(whole: Cost, part: Cost) -> Cost:
    return replace(
        whole,
        forward_samples=whole.forward_samples - part.forward_samples,
        evaluations=whole.evaluations - part.evaluations,
    )


CONTENDERS: dict[str, Callable[[Case, float], Found]] = {
    "fallback": stage,
    "greedy": greedy,
    "greedy as nncf": greedy_nncf,
    "exhaustive": exhaustive,
}
