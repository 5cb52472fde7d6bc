"""Do the integer kernels compute what their reference does: dequantize, the operator in float, quantize?

Each kernel is run on the very integers that the emulated network has at its place, and what it gives is held
against the emulated layer's output in steps of the output's scale. A kernel that rounds ties or accumulates
in another way is off by a step here and there, which PyTorch's guide calls expected (an average of four
integers is a tie every fourth time); what is off by a step more often than not, or by several anywhere, is
not. Layers that only move integers or cut them off promise to be equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qtrack.numerics.compare import as_fed, tensors_in
from qtrack.numerics.lockstep import Lockstep, Meeting
from qtrack.numerics.sites import Pair
from qtrack.numerics.steps import Inputs, Step

ROUNDING = 1 / 4
"""Energy of the largest error that rounding makes, half a step, in steps squared."""
SEVERAL = 4
"""Steps by which neither rounding nor the order of a sum puts an element off."""


@dataclass(frozen=True)
class KernelError:
    """One layer's kernel against its reference on equal integers."""

    layer: str
    type: str
    elements: int
    differing: float
    """Share of the elements that differ at all."""
    largest: int
    """Largest difference, in steps of the output's scale."""
    energy: float
    """Mean squared difference, in steps squared."""
    exact: bool = False
    """Does it promise to be equal bit for bit?"""

    @property
    def differs(self) -> bool:
        """Is that more than rounding explains, or anything at all where there may be nothing?"""
        return self.energy > (0.0 if self.exact else ROUNDING) or self.largest >= SEVERAL


def kernel_errors(emulated: Pair, batches: Iterable[Inputs]) -> tuple[KernelError, ...]:
    """Of every layer whose output is integers; ``emulated`` has the reference form as its reference."""
    tallies = {site.layer: _Tally(site.layer, site.type) for site in emulated.sites if site.quantized}
    moves = {node: _Tally(layer, "moves data", exact=True) for layer, node in emulated.moves.items()}
    with torch.inference_mode():
        for inputs in batches:
            for meeting in Lockstep([emulated]).run(inputs):
                if meeting.site.layer in tallies:
                    tallies[meeting.site.layer].add_meeting(meeting)
            for step in emulated.actual.run(inputs, moves):
                if step.node in moves:
                    moves[step.node].add_move(step)
    return tuple(tally.error() for tally in (*tallies.values(), *moves.values()) if tally.elements)


class _Tally:
    """Differences of one layer, summed over batches."""

    def __init__(self, layer: str, kind: str, *, exact: bool = False) -> None:
        self.layer, self.kind, self.exact = layer, kind, exact
        self.elements = self.differing = self.largest = 0
        self.energy = 0.0

    def add_meeting(self, meeting: Meeting) -> None:
        """On equal integers: where the kernel's grid is another one, the reference runs again on that.

        torch.ao gives all calls of one module the same scale where its reference has one for each.
        """
        _, _, start, end, actual = meeting
        fed = as_fed(start.inputs, actual.inputs)
        given = _floats(fed)
        if all(map(torch.equal, start.inputs, given)):
            self._compare(end.output, actual.rerun(fed))
        elif start.node == end.node:
            self._compare(start.rerun(given), actual.rerun(fed))

    def add_move(self, step: Step) -> None:
        """The same on floats, which need no reference form."""
        self._compare(step.rerun(_floats(step.inputs)), step.output)

    def _compare(self, expected: Any, given: Any) -> None:
        for one, value in zip(tensors_in(expected), tensors_in(given), strict=True):
            if value.is_quantized:
                self._count(_steps_between(one, value))

    def _count(self, steps: Tensor) -> None:
        self.elements += steps.numel()
        self.differing += int(torch.count_nonzero(steps))
        self.largest = max(self.largest, int(steps.max()) if steps.numel() else 0)
        self.energy += float(steps.double().square().sum())

    def error(self) -> KernelError:
        return KernelError(
            self.layer,
            self.kind,
            self.elements,
            self.differing / self.elements,
            self.largest,
            self.energy / self.elements,
            self.exact,
        )


def _floats(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.dequantize() if one.is_quantized else one for one in values)


def _steps_between(expected: Tensor, value: Tensor) -> Tensor:
    """How many steps apart the two are, element by element."""
    rounded = torch.quantize_per_tensor(expected, value.q_scale(), value.q_zero_point(), value.dtype)
    return (rounded.int_repr().int() - value.int_repr().int()).abs()
