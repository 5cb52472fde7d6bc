"""Rankings of layers, the harm of a mixture, and an order in which layers go back to float."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qtrack.backends.base import Side
from qtrack.backends.engines import using_engine
from qtrack.data import batches_of, calibration_batches, selected, size_of
from qtrack.engine import Parts, quantize, settled
from qtrack.errors import BackendError
from qtrack.monitor import SILENT, Monitor, Titled
from qtrack.numerics.effects import effects
from qtrack.numerics.switchboard import Switchboard
from qtrack.ranking import Ranking, Share
from qtrack.recipe import Recipe
from qtrack.sensitivity.batch import Measured
from qtrack.sensitivity.elimination import eliminated
from qtrack.sensitivity.legs import legs
from qtrack.statistics import Scores
from qtrack.task import Batch, Split, Task

log = logging.getLogger("qtrack")

SAMPLES = 256
"""Calibration samples on which the harm of a mixture is measured."""
HELD_BYTES = 1 << 30
"""Of values that are kept so that only what changes is computed again; batches beyond are run whole."""


class Switched(NamedTuple):
    """What the layers of one batch do, each switched by itself: sums over its samples."""

    alone: dict[str, float]
    """Noise at the output with this layer alone quantized."""
    back: dict[str, float]
    """What goes away of it with this layer alone back in float."""
    samples: int
    forwards: float


class Sensitivity:
    """The layers of one recipe on one task."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        monitor: Monitor = SILENT,
        *,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """Raises what ``quantize`` raises, and BackendError where the backend gives no graph to switch."""
        self.task = task
        self.recipe = settled(recipe)
        self.monitor = monitor
        began = time.perf_counter()
        self.parts: Parts = quantize(task, self.recipe, Titled("layers", monitor), sizes=sizes)
        self.board = self._board()
        self._forward = float(self.parts.forward_samples)
        self.seconds = time.perf_counter() - began

    @property
    def forward_samples(self) -> int:
        """Samples that went through a network; of a part of it, as large a part."""
        return round(self._forward)

    def _board(self) -> Switchboard:
        example = self.task.inputs(next(iter(self._calibration())))
        try:
            with using_engine(self.recipe.engine):
                return Switchboard(self.parts.quantized.pair, example)
        except TypeError as cause:
            raise BackendError(f"backend {self.recipe.backend!r}: {cause}: take fx or pt2e") from cause

    # Rankings -----------------------------------------------------------------------------------------------

    @cached_property
    def ranking(self) -> Ranking:
        """Of all quantized layers and functions, from one sweep over the calibration samples."""
        began, before = time.perf_counter(), self._forward
        sums = {name: np.zeros(4) for name in self.board.layers}
        samples = 0
        with using_engine(self.recipe.engine):
            for batch in self._watched("rank layers", self._calibration()):
                one = self._measured(batch)
                found = effects(self.board, one.inputs, one.objectives())
                for name, effect in found.items():
                    sums[name] += (effect.noise, effect.signal, *(*effect.moved, 0.0)[:2])
                samples += size_of(batch)
                self._forward += 2 * size_of(batch)
        shares = tuple(self._share(name, sums[name], samples) for name in sums)
        seconds = time.perf_counter() - began
        self.seconds += seconds
        return Ranking(shares, samples, round(self._forward - before), seconds)

    def _share(self, name: str, sums: NDArray[np.float64], samples: int) -> Share:
        site = self.board.switches[name][0]
        noise, signal, output, loss = map(float, sums)
        own = noise / signal if signal else 0.0
        change = loss / samples if self.uses_loss else None
        return Share(name, site.type, site.params, own, output / samples, change)

    def exact(self, ranking: Ranking, switched: Iterable[Switched] | None = None) -> Ranking:
        """With what each layer does alone, and what it alone back in float takes away.

        ``switched`` are all batches in their order, where others have switched the layers.
        """
        began, before = time.perf_counter(), self._forward
        order, samples = self.board.layers, 0
        alone, back = dict.fromkeys(order, 0.0), dict.fromkeys(order, 0.0)
        for one in self.switched() if switched is None else switched:
            for name in order:
                alone[name] += one.alone[name]
                back[name] += one.back[name]
            samples += one.samples
            self._forward += one.forwards
        seconds = time.perf_counter() - began
        self.seconds += seconds
        alone = {name: noise / samples for name, noise in alone.items()}
        back = {name: noise / samples for name, noise in back.items()}
        return ranking.with_exact(alone, back, round(self._forward - before), seconds)

    def switched(self, share: int = 0, of: int = 1) -> Iterator[Switched]:
        """Every layer switched by itself, batch by batch; of so many shares of the batches one.

        Each batch runs whole twice, in float and quantized; every layer is then switched from there, so that
        what stands before it is not computed again. Memory is that of two traces of one batch.
        """
        every = frozenset(self.board.layers)
        batches = islice(self._calibration(), share, None, of)
        with using_engine(self.recipe.engine):
            for batch in self._watched("switch layers", batches):
                one = self._measured(batch)
                floating, quantized = one.run(every), one.run(())
                whole = one.noise(quantized)
                alone = {name: one.noise(one.switched(floating, every - {name})) for name in every}
                back = {name: whole - one.noise(one.switched(quantized, {name})) for name in every}
                yield Switched(alone, back, one.samples, one.forwards)

    def scores_alone(self, split: Split) -> dict[str, float]:
        """The task's mean score with each layer alone quantized."""
        every = frozenset(self.board.layers)
        sums, samples = dict.fromkeys(self.board.layers, 0.0), 0
        with using_engine(self.recipe.engine):
            for batch in self._watched("switch layers", batches_of(self.task, split)):
                one = self._measured(batch)
                floating = one.run(every)
                for name in sums:
                    sums[name] += float(one.scores(one.switched(floating, every - {name})).sum())
                samples += one.samples
                self._forward += one.forwards
        return {name: total / samples for name, total in sums.items()}

    def gains(self) -> dict[str, float]:
        """By what factor the noise of a layer's own output, over its signal, comes out of the network."""
        shares = self.ranking.shares
        return {one.layer: one.output / one.own for one in shares if one.output is not None and one.own > 0}

    def legs(self) -> dict[Side, Scores]:
        """Scores of the first validation samples with weights alone, or activations alone, on integers."""
        began = time.perf_counter()
        found = legs(self.task, self.parts)
        self._forward += sum(map(len, found.values()))
        self.seconds += time.perf_counter() - began
        return found

    # Mixtures -----------------------------------------------------------------------------------------------

    def coupled(self) -> list[frozenset[str]]:
        """Layers, and calls of functions, that share a scale: in float they help together alone."""
        return self.board.coupled()

    def order(
        self, costs: Mapping[str, float], together: Mapping[str, frozenset[str]] | None = None
    ) -> tuple[str, ...]:
        """Layers by how much they are needed in float for their cost, most first.

        Found backwards: all are in float, and the one goes back to integers next that does the least harm
        for what it saves, given all that went before. Layers that only help together are thus kept together.
        ``together`` says what is switched with a layer, itself among it.
        """
        groups = {layer: (together or {}).get(layer, frozenset({layer})) for layer in costs}

        def switched(off: frozenset[str]) -> frozenset[str]:
            return frozenset[str]().union(*(groups[layer] for layer in off))

        with self._working(), self.monitor.phase("order layers", len(costs)) as advance:
            return eliminated(
                costs,
                lambda off: self._harm(switched(off)),
                lambda off: self._settle(switched(off)),
                advance,
            )

    def harm(self, off: Collection[str]) -> float:
        """Of a mixture with these layers in float, on calibration samples: what the loss rises by.

        Where the task has no loss it is noise over signal at the output, each sample at most 1.
        """
        with self._working():
            return self._harm(frozenset(off))

    def scores(self, off: Collection[str], positions: Sequence[int]) -> NDArray[np.float64]:
        """The task's scores of these validation samples, in the split's order, with these layers in float."""
        wanted = set(positions)
        found = []
        with self._working():
            for batch in selected(batches_of(self.task, "validation"), wanted, len(wanted)):
                one = self._measured(batch)
                found.append(one.scores(one.run(off)))
                self._forward += one.forwards
        return np.concatenate(found)

    # How that is done ---------------------------------------------------------------------------------------

    def _harm(self, off: frozenset[str]) -> float:
        return sum(one.harm(one.run(off)) for one in self._batches) / sum(
            one.samples for one in self._batches
        )

    def _settle(self, off: frozenset[str]) -> None:
        """Keep this mixture's values, of as many batches as fit."""
        for one in self._batches:
            one.hold(off, HELD_BYTES // len(self._batches))

    @cached_property
    def _batches(self) -> list[Measured]:
        found, samples = [], 0
        for batch in self._calibration():
            found.append(self._measured(batch))
            samples += found[-1].samples
            if samples >= SAMPLES:
                break
        return found

    def _measured(self, batch: Batch) -> Measured:
        return Measured(self.task, self.board, batch, self._like, uses_loss=self.uses_loss)

    @cached_property
    def uses_loss(self) -> bool:
        """Has the task a loss, and does it take calibration batches, which may have no labels?"""
        if not self.task.offers("loss"):
            return False
        try:
            with torch.no_grad():
                self.task.loss(self._like, next(iter(self._calibration())))
        except Exception as error:  # the user's own function
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("loss() does not take calibration batches (%s): noise at the output is used", said)
            return False
        return True

    @cached_property
    def _like(self) -> object:
        """An output of the quantized model, for its structure."""
        inputs = self.task.inputs(next(iter(self._calibration())))
        model = self.parts.quantized.model
        with using_engine(self.recipe.engine), torch.inference_mode():
            return model(**inputs) if isinstance(inputs, dict) else model(*inputs)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """On the recipe's engine, counted and timed."""
        began = time.perf_counter()
        with using_engine(self.recipe.engine):
            yield
        for one in self._batches:
            self._forward += one.forwards
            one.forwards = 0.0
        self.seconds += time.perf_counter() - began

    def _calibration(self) -> Iterator[Batch]:
        return calibration_batches(
            self.task, self.recipe.calibration, self.recipe.seed, self.recipe.training_seed
        )

    def _watched(self, title: str, batches: Iterator[Batch]) -> Iterator[Batch]:
        with self.monitor.phase(title, None) as advance:
            for batch in batches:
                yield batch
                advance(size_of(batch))
