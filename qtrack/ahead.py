"""Recipes that other processes execute before the campaign comes to them.

A campaign goes through its stages, and a search through its probes, one after the other, so that neither what
they come to nor what is recorded depends on where they were executed. But many a recipe is known before its
turn: that of a stage that asks for no evidence, and those that a search says it may try next. Workers begin
on these. What the campaign never asks for is thrown away: a wrong guess costs time, and no more. What it
executes itself they help to evaluate, where most of them have nothing else to do.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import NamedTuple

from qtrack.engine import Checkpoint
from qtrack.engine.evaluation import Begun, Part
from qtrack.errors import TaskError
from qtrack.executors import TRIES, Executor, Job, Watched, WorkerLost
from qtrack.monitor import Monitor
from qtrack.outcome import Outcome, Stopped, Until
from qtrack.recipe import Recipe
from qtrack.records import Setting
from qtrack.remote import OtherIngredients, Sent, Terms, executed
from qtrack.shards import evaluated, is_worth_it
from qtrack.task import reference_to

log = logging.getLogger("qtrack")

Key = tuple[str, bool, bool]


class Wanted(NamedTuple):
    """An execution, as ``engine.execute`` is asked for it."""

    recipe: Recipe
    thorough: bool = True
    timed: bool = False

    @property
    def key(self) -> Key:
        return self.recipe.digest, self.thorough, self.thorough or self.timed


@dataclass
class _Begun:
    """A job that a worker has."""

    job: Job
    future: Future[Sent]
    guess: bool


class Ahead:
    """What the workers of an executor do for a campaign; without an executor nothing."""

    def __init__(
        self,
        setting: Setting,
        executor: Executor | None = None,
        checkpoint: Callable[[Recipe], Checkpoint | None] = lambda recipe: None,
    ) -> None:
        self._setting = setting
        self._checkpoint = checkpoint
        self._executor = Watched(executor) if executor and executor.aside else None
        self._terms: Terms | None = None
        if self._executor:
            try:
                self._terms = _terms(setting)
            except TaskError as error:
                log.warning("%s: all is executed here", error)
                self._executor = None
        self._begun: dict[Key, _Begun] = {}
        self._losses = Counter[Key]()
        self._planned: dict[Key, Wanted] = {}
        self._guessed: dict[Key, Wanted] = {}

    def __bool__(self) -> bool:
        """Is there anyone to begin?"""
        return self._executor is not None

    def plan(self, wanted: Iterable[Wanted]) -> None:
        """These will be asked for, in this order."""
        self._planned = {one.key: one for one in wanted}
        self._fill()

    def guess(self, wanted: Iterable[Wanted]) -> None:
        """These may be asked for next, the likeliest first; what was guessed before is forgotten."""
        self._guessed = {one.key: one for one in wanted if one.key not in self._begun}
        done = [key for key, begun in self._begun.items() if begun.guess and begun.future.done()]
        for key in done:
            if key not in {one.key for one in wanted}:
                del self._begun[key]
        self._fill()

    def outcome(self, wanted: Wanted, monitor: Monitor, until: Until | None = None) -> Outcome | None:
        """What a worker came to, waited for; None where nobody was to begin, or can do the same.

        Raises what ``engine.execute`` raises, and WorkerLost where one worker after another was lost.
        """
        key = wanted.key
        if self._executor is None:
            return None
        if key not in self._begun:
            if not (self._planned.pop(key, None) or self._guessed.pop(key, None)):
                return None
            self._guessed = {key: wanted, **self._guessed}  # as soon as a worker is free
        try:
            with monitor.phase("wait for a worker", None):
                sent = self._received(wanted)
        except OtherIngredients as error:
            self._leave(error)
            return None
        for point in sent.points:
            monitor.report(*point)
        _stop(sent, until)
        return sent.whole(self._setting.plan.task)

    def parts(self, begun: Begun) -> Iterator[Part]:
        """What a model does on a split's next batches, as far as workers do the same, and are at hand.

        On no batch where each worker has a GPU for itself. Raises what ``outcome`` raises.
        """
        if self._executor is None or self._terms is None or self._terms.device != "cpu":
            return
        others, workers = self._executor.running(), self._executor.at_once(self._terms.threads)
        batches = self._setting.splits[begun.split].batches
        if 2 * len(others) >= workers or not is_worth_it(begun, batches, workers - len(others)):
            return
        try:
            yield from evaluated(self._executor, self._terms, begun, batches, others)
        except OtherIngredients as error:
            self._leave(error)

    def _leave(self, error: OtherIngredients) -> None:
        """Workers are of no use."""
        log.warning("%s: all is executed here", error)
        self._executor = None
        self._begun.clear()

    def _received(self, wanted: Wanted) -> Sent:
        assert self._executor
        key = wanted.key
        while True:
            mine = self._begun.get(key)
            if mine and mine.future.done():
                del self._begun[key]
                error = mine.future.exception()
                self._losses[key] += isinstance(error, WorkerLost)
                if not isinstance(error, WorkerLost) or self._losses[key] == TRIES:
                    return mine.future.result()
                log.warning("%s: %s; it is tried again", mine.job.name, error)
                self._guessed = {key: wanted, **self._guessed}  # its worker may have another job by now
            self._fill()
            wait(self._executor.running(), return_when=FIRST_COMPLETED)

    def _fill(self) -> None:
        """Keep all workers busy."""
        while self._executor and len(self._executor.running()) < self._executor.slots:
            source = self._guessed or self._planned
            if not source:
                return
            key = next(iter(source))
            job = self._job(source.pop(key))
            self._begun[key] = _Begun(job, self._executor.submit(job), guess=source is self._guessed)

    def _job(self, wanted: Wanted) -> Job:
        assert self._terms
        return self._terms.job(
            f"recipe {wanted.recipe.digest[:8]}",
            executed,
            recipe=wanted.recipe,
            sizes={name: split.samples for name, split in self._setting.splits.items()},
            thorough=wanted.thorough,
            timed=wanted.timed,
            checkpoint=self._checkpoint(wanted.recipe),
        )


def _terms(setting: Setting) -> Terms:
    pipeline = setting.plan.pipeline
    task = reference_to(setting.plan.task)
    return Terms(task, dict(setting.ingredients), pipeline.threads or 1, pipeline.device)


def _stop(sent: Sent, until: Until | None) -> None:
    """Where the evaluation would have been stopped, had it been done here; raises Stopped."""
    scores = sent.outcome.validation.scores
    for count in sent.batches:
        if until and until(scores[:count]):
            raise Stopped(scores[:count], sent.outcome.cost)
