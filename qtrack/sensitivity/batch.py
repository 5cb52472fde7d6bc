"""One batch of a task on a switchboard: what each mixture makes of it."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from qtrack.data import size_of
from qtrack.numerics.compare import tensors_in
from qtrack.numerics.effects import Objective
from qtrack.numerics.switchboard import Switchboard, Trace
from qtrack.task import Batch, Task

SEED = 0
TINY = 1e-12


class Measured:
    """A batch, the float network's answer to it, and optionally a trace from which others are switched."""

    def __init__(self, task: Task, board: Switchboard, batch: Batch, like: Any, *, uses_loss: bool) -> None:
        self.task = task
        self.board = board
        self.batch = batch
        self.inputs = task.inputs(batch)
        self.samples = size_of(batch)
        self.forwards = 0.0
        """Samples run, of a part of the network as large a part."""
        self.uses_loss = uses_loss
        self._like = tree_flatten(like)[1]
        self._base: Trace | None = None

    def run(self, off: Collection[str]) -> Trace:
        """This mixture, from what is held where something is."""
        if self._base is not None:
            return self.switched(self._base, off)
        return self._counted(self.board.run(self.inputs, off))

    def switched(self, trace: Trace, off: Collection[str]) -> Trace:
        """Another mixture from one at hand."""
        return self._counted(self.board.switched(trace, off))

    def hold(self, off: Collection[str], bound: int) -> None:
        """Keep this mixture's values, so that others cost only what differs; not where they are too large."""
        trace = self.run(off)
        self._base = trace if trace.bytes <= bound else None

    def _counted(self, trace: Trace) -> Trace:
        self.forwards += self.samples * trace.computed / self.board.nodes
        if "_float" not in vars(self) and trace.off.issuperset(self.board.layers):
            self._float = self._output_of(trace)
        return trace

    def output(self, trace: Trace) -> Any:
        """As the task knows it."""
        return self._shaped(self.board.program.output(trace.values))

    def _shaped(self, output: Any) -> Any:
        leaves = tree_flatten(output)[0]
        return tree_unflatten(leaves, self._like) if self._like.num_leaves == len(leaves) else leaves[0]

    def scores(self, trace: Trace) -> NDArray[np.float64]:
        """By sample."""
        return self.task.score(self.output(trace), self.batch).double().cpu().numpy()

    def noise(self, trace: Trace) -> float:
        """Noise over signal at the output, each sample at most 1; the sum over samples."""
        noise, signal = np.zeros(self.samples), np.zeros(self.samples)
        for floating, other in zip(self._floating, tensors_in(self.output(trace)), strict=True):
            if floating.is_floating_point() and len(floating) == self.samples:
                rows = (self.samples, -1)
                noise += (other - floating).reshape(rows).double().pow(2).sum(1).numpy()
                signal += floating.reshape(rows).double().pow(2).sum(1).numpy()
        ratio = np.nan_to_num(noise / np.maximum(signal, TINY), nan=1.0, posinf=1.0)
        return float(np.minimum(ratio, 1.0).sum())

    def harm(self, trace: Trace) -> float:
        """Rise of the task's loss, or noise where that is not used; the sum over samples."""
        if not self.uses_loss:
            return self.noise(trace)
        rise = self._loss(trace) - self._float_loss
        return rise if math.isfinite(rise) else math.inf

    def _loss(self, trace: Trace) -> float:
        with torch.no_grad():
            return float(self.task.loss(self.output(trace), self.batch)) * self.samples

    @cached_property
    def _float(self) -> Trace:
        return self._output_of(self._counted(self.board.run(self.inputs, self.board.layers)))

    def _output_of(self, trace: Trace) -> Trace:
        """The same without what the output does not need, where that is one node's value."""
        return Trace(trace.off, {self._last: trace.values[self._last]} if self._last else trace.values, 0)

    @cached_property
    def _last(self) -> Any:
        """The node that the output is, where it is one."""
        (output,) = (node for node in self.board.program.nodes if node.op == "output")
        return output.args[0] if output.args[0] in self.board.order else None

    @cached_property
    def _floating(self) -> list[Tensor]:
        return tensors_in(self.output(self._float))

    @cached_property
    def _float_loss(self) -> float:
        return self._loss(self._float)

    def objectives(self) -> tuple[Objective, ...]:
        """What can be asked how far it moves: the output, and the loss where it is used."""

        def loss(output: Any) -> Tensor:
            return self.task.loss(self._shaped(output), self.batch) * self.samples

        return (_projected, loss) if self.uses_loss else (_projected,)


def _projected(output: Any) -> Tensor:
    """The output on random signs, each sample's by its own energy."""
    generator = torch.Generator().manual_seed(SEED)
    parts = [leaf for leaf in tensors_in(output) if leaf.is_floating_point() and leaf.dim()]
    energy = torch.stack([part.detach().flatten(1).pow(2).sum(1) for part in parts]).sum(0)
    scale = energy.clamp_min(TINY).rsqrt()
    total = torch.zeros(())
    for part in parts:
        signs = (torch.randint(0, 2, part.shape, generator=generator) * 2 - 1).to(part.dtype)
        total = total + (part * signs * scale.reshape(-1, *[1] * (part.dim() - 1))).sum()
    return total
