"""Optuna: proposes points of a space, learns from what they come to, and keeps both.

What is proposed hangs on the seed and on the trials before alone, so that a search that was interrupted goes
on as if it had not been: each trial has a seed of its own, and one that came to no end is proposed again.
Where several are proposed at a time, those that have no end yet count as bad ones, so that the next lie
elsewhere (the "constant liar" of Ginsbourger, Le Riche and Carraro, "Kriging is well-suited to parallelize
optimization", 2010).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from qtrack.errors import StoreError
from qtrack.search.space import Params, Space

log = logging.getLogger("qtrack")

How = Literal["complete", "stopped", "failed", "again"]
"""``again``: its recipe was that of an earlier trial, or there was none at its point."""

STARTUP = 5
"""Trials by chance, before any is proposed or stopped on account of others."""
PARTS = 4
"""Of the validation split; at the end of each but the last a trial is held against others."""
FACTS, END = "facts", "end"


@dataclass(frozen=True)
class Ended:
    """A trial that has come to its end, in this search or in an earlier one."""

    number: int
    params: Params
    how: How
    facts: Mapping[str, Any]
    """Plain data."""


class Trial:
    """One point, while it is tried."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial, params: Params) -> None:
        self.params = params
        self._study = study
        self._trial = trial
        self._parts = 0

    def behind(self, scores: NDArray[Any], samples: int) -> bool:
        """With these scores of the first of so many samples, is it worse than the median of the others?"""
        before = self._parts
        while self._parts < PARTS - 1 and len(scores) >= (end := self._end(self._parts + 1, samples)):
            self._parts += 1
            with _quiet():
                self._trial.report(float(scores[:end].mean()), self._parts)
        with _quiet():
            return before < self._parts and len(scores) < samples and self._trial.should_prune()

    @staticmethod
    def _end(part: int, samples: int) -> int:
        return math.ceil(part * samples / PARTS)

    def end(self, how: How, facts: Mapping[str, Any], values: Sequence[float] | None = None) -> Ended:
        """Say what it came to; ``values`` are those of the objectives, None where it has none."""
        state = TrialState.COMPLETE if values else TrialState.FAIL if how == "failed" else TrialState.PRUNED
        with _quiet():
            self._trial.set_user_attr(FACTS, dict(facts))
            self._trial.set_user_attr(END, how)
            self._study.tell(self._trial, values, state, skip_if_finished=True)
        return Ended(self._trial.number, self.params, how, facts)


class Study:
    """The trials of one question: which point has the largest metric, and the smallest of so many costs."""

    def __init__(self, storage: Path | None, space: Space, costs: int, seed: int) -> None:
        self.space = space
        self.seed = seed
        with _quiet():
            self._study = _opened(storage, costs)
            self._take_up()

    def _take_up(self) -> None:
        """What an interrupted search has left open comes first."""
        for trial in [one for one in self._trials if one.state == TrialState.RUNNING]:
            self._study.enqueue_trial(trial.params)
            self._study.tell(trial.number, state=TrialState.FAIL)

    @property
    def ended(self) -> list[Ended]:
        """In their order."""
        return [
            Ended(trial.number, trial.params, trial.user_attrs[END], trial.user_attrs[FACTS])
            for trial in self._trials
            if END in trial.user_attrs and trial.state.is_finished()
        ]

    @property
    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def first(self, points: Sequence[Params]) -> None:
        """Propose these before all others, but for those that have been tried or are waiting."""
        known = [one.params for one in self.ended]
        waiting = [trial for trial in self._trials if trial.state == TrialState.WAITING]
        known += [trial.system_attrs["fixed_params"] for trial in waiting]
        for point in points:
            if point not in known:
                known.append(point)
                with _quiet():
                    self._study.enqueue_trial(dict(point))

    def ask(self) -> Trial:
        """The next point to try."""
        with _quiet():
            self._study.sampler = self._sampler()
            trial, params = self._study.ask(), dict[str, Any]()
            for choice in self.space:
                if choice.where(params):
                    params[choice.name] = trial.suggest_categorical(choice.name, choice.values)
        return Trial(self._study, trial, params)

    def batch(self, size: int) -> list[Trial]:
        """The next points, as many as are left of a batch of this size."""
        return [self.ask() for _ in range(size - len(self.ended) % size)]

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """By chance where the last proposal was nothing new."""
        ended = self.ended
        running = sum(trial.state == TrialState.RUNNING for trial in self._trials)
        seed = (self.seed * 10_000 + len(ended) + running) % 2**32
        if ended and ended[-1].how == "again":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)


def _opened(storage: Path | None, costs: int) -> optuna.Study:
    """Kept in a file where there may be one; else in memory."""
    if storage is None:
        return _created(None, costs)
    try:
        storage.parent.mkdir(parents=True, exist_ok=True)
        return _created(JournalStorage(JournalFileBackend(str(storage))), costs)
    except OSError as error:
        log.warning(
            "%s cannot be written: %s: the trials are kept in memory", storage, error.strerror or error
        )
        return _created(None, costs)
    except (ValueError, KeyError, TypeError, AssertionError) as error:  # Optuna's, for a file of another kind
        log.warning("%s cannot be used (%s): the search begins anew", storage, type(error).__name__)
        storage.unlink()
        return _created(JournalStorage(JournalFileBackend(str(storage))), costs)


def _created(storage: BaseStorage | None, costs: int) -> optuna.Study:
    directions: list[Literal["maximize", "minimize"]] = ["maximize"]
    directions += ["minimize"] * costs
    return optuna.create_study(
        storage=storage,
        study_name="search",
        directions=directions,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's own lines and warnings are no affair of the user; that its file cannot be written is."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"{error.filename or 'the trials'} cannot be written: {reason}") from error
    finally:
        optuna.logging.set_verbosity(before)
