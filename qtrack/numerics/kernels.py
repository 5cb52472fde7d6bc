"""Do the integer kernels compute what their reference does: dequantize, the operator in float, quantize?

Each kernel is run on the very integers that the emulated network has at its place, and what it gives is held
against the emulated layer's output in steps of the output's scale. A kernel that rounds or accumulates in
another way is off by a step here and there, which PyTorch's guide calls expected; what exceeds rounding to
the output's grid itself, which has an energy of a twelfth of a step squared, is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qtrack.numerics.compare import as_fed, tensors_in
from qtrack.numerics.lockstep import Lockstep, Meeting
from qtrack.numerics.sites import Pair, Site
from qtrack.numerics.steps import Inputs

ROUNDING = 1 / 12
"""Energy of rounding to a grid, in steps squared."""


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

    @property
    def exceeds_rounding(self) -> bool:
        """Does the kernel add more noise than the rounding of its output does?"""
        return self.energy > ROUNDING


def kernel_errors(emulated: Pair, batches: Iterable[Inputs]) -> tuple[KernelError, ...]:
    """Of every layer whose output is integers; ``emulated`` has the reference form as its reference."""
    tallies = {site.layer: _Tally(site) for site in emulated.sites if site.quantized}
    with torch.inference_mode():
        for inputs in batches:
            for meeting in Lockstep([emulated]).run(inputs):
                if meeting.site.layer in tallies:
                    tallies[meeting.site.layer].add(meeting)
    return tuple(tally.error() for tally in tallies.values() if tally.elements)


class _Tally:
    """Differences of one layer, summed over batches."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.elements = self.differing = self.largest = 0
        self.energy = 0.0

    def add(self, meeting: Meeting) -> None:
        _, _, start, end, actual = meeting
        given = actual.rerun(as_fed(start.inputs, actual.inputs))
        for expected, value in zip(tensors_in(end.output), tensors_in(given), strict=True):
            if value.is_quantized:
                self._count(_steps_between(expected, value))

    def _count(self, steps: Tensor) -> None:
        self.elements += steps.numel()
        self.differing += int(torch.count_nonzero(steps))
        self.largest = max(self.largest, int(steps.max()) if steps.numel() else 0)
        self.energy += float(steps.double().square().sum())

    def error(self) -> KernelError:
        return KernelError(
            self.site.layer,
            self.site.type,
            self.elements,
            self.differing / self.elements,
            self.largest,
            self.energy / self.elements,
        )


def _steps_between(expected: Tensor, value: Tensor) -> Tensor:
    """How many steps apart the two are, element by element."""
    rounded = torch.quantize_per_tensor(expected, value.q_scale(), value.q_zero_point(), value.dtype)
    return (rounded.int_repr().int() - value.int_repr().int()).abs()
