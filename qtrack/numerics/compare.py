"""The streaming comparison of two networks, layer by layer, in one lockstep pass.

For each layer and batch: the error of its output as it accumulates through the network, and its own share,
found by running the quantized layer once more on the float network's input, quantized as its real input is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from qtrack.numerics.graph import Inputs, Step
from qtrack.numerics.lockstep import Meeting, meetings
from qtrack.numerics.sites import Pair, Site
from qtrack.numerics.sums import BAD_SAMPLE_DB, ErrorSums, sqnr_db
from qtrack.outcome import LayerRow


@dataclass(frozen=True)
class Comparison:
    """The layer table, and the error of the network's own output."""

    rows: tuple[LayerRow, ...]
    output: ErrorSums
    samples: int
    nonfinite: tuple[str, ...]
    """Layers whose output holds NaN or infinity in either network."""


def compare(pair: Pair, batches: Iterable[Inputs]) -> Comparison:
    """Compare over all batches of inputs; memory is that of one batch, whatever their number."""
    tallies = {site: _Tally(site) for site in (*pair.sites, pair.output)}
    samples = 0
    with torch.no_grad():
        for inputs in batches:
            size = batch_size(inputs)
            samples += size
            for tally, meeting in zip(tallies.values(), meetings(pair, inputs), strict=True):
                tally.add(meeting, size)
    *layers, output = tallies.values()
    bad = tuple(tally.site.layer for tally in layers if tally.nonfinite)
    return Comparison(tuple(tally.row() for tally in layers), output.accumulated, samples, bad)


def batch_size(inputs: Inputs) -> int:
    """Samples in a batch: the first dimension of its first tensor."""
    return next(len(leaf) for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor) and leaf.dim())


@dataclass
class _Tally:
    """One layer's running statistics."""

    site: Site
    accumulated: ErrorSums = field(default_factory=ErrorSums)
    own: ErrorSums = field(default_factory=ErrorSums)
    ranges: list[Tensor] = field(default_factory=list)
    samples: int = 0
    bad: int = 0
    clipped: int = 0
    elements: int = 0
    macs: int | None = None
    nonfinite: bool = False

    def add(self, meeting: Meeting, size: int) -> None:
        _, start, end, actual = meeting
        for reference, value in zip(tensors_of(end.output), _raw_tensors(actual.output), strict=True):
            difference = self.accumulated.add(reference, _plain(value))
            self._add_samples(reference, difference, size)
            self._add_clipping(reference, value)
        if self.site.quantized:
            replayed = actual.rerun(_as_fed(start.inputs, actual.inputs))
            for reference, value in zip(tensors_of(end.output), tensors_of(replayed), strict=True):
                self.own.add(reference, value)
        self._add_input_range(start, size)
        self.macs = self.macs or _macs(self.site, start, end, size)
        self.nonfinite |= not math.isfinite(self.accumulated.noise)

    def _add_samples(self, reference: Tensor, difference: Tensor, size: int) -> None:
        if len(reference) != size or not reference.numel():
            return
        signal = reference.reshape(size, -1).pow(2).sum(1)
        noise = difference.reshape(size, -1).pow(2).sum(1)
        self.samples += size
        self.bad += int((noise * 10 ** (BAD_SAMPLE_DB / 10) > signal).sum())

    def _add_clipping(self, reference: Tensor, value: Tensor) -> None:
        if not value.is_quantized:
            return
        low, high = _representable(value)
        self.clipped += int(((reference < low) | (reference > high)).sum())
        self.elements += reference.numel()

    def _add_input_range(self, start: Step, size: int) -> None:
        if start.inputs and start.inputs[0].is_floating_point() and len(start.inputs[0]) == size:
            rows = start.inputs[0].reshape(size, -1)
            if rows.shape[1]:
                low, high = rows.aminmax(dim=1)
                self.ranges.append(high - low)

    def row(self) -> LayerRow:
        site, compared = self.site, self.accumulated
        return LayerRow(
            index=site.index,
            layer=site.layer,
            type=site.type,
            dtype=site.dtype,
            params=site.params,
            macs=self.macs,
            sqnr_db=compared.sqnr_db,
            own_sqnr_db=self.own.sqnr_db if site.quantized else None,
            weight_sqnr_db=_weight_sqnr(site),
            cosine=compared.cosine,
            nmse=compared.nmse,
            max_abs_error=compared.max_abs_error,
            saturation=self.clipped / self.elements if self.elements else None,
            range_variation=_variation(self.ranges),
            bad_samples=self.bad / self.samples if self.samples else None,
        )


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of an output, dequantized, in float32."""
    return [_plain(leaf) for leaf in _raw_tensors(value)]


def _raw_tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _plain(value: Tensor) -> Tensor:
    return value.dequantize() if value.is_quantized else value.float()


def _as_fed(floats: tuple[Tensor, ...], actual: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The float network's inputs, quantized with the scale and zero-point of the real ones."""
    return tuple(_like(one, other) for one, other in zip(floats, actual, strict=True))


def _like(value: Tensor, actual: Tensor) -> Tensor:
    if not actual.is_quantized:
        return value
    return torch.quantize_per_tensor(value, actual.q_scale(), actual.q_zero_point(), actual.dtype)


def _representable(value: Tensor) -> tuple[float, float]:
    """The smallest and largest number that the tensor's type can hold, half a step beyond included."""
    bounds = torch.iinfo(torch.uint8 if value.dtype == torch.quint8 else torch.int8)
    scale, zero_point = value.q_scale(), value.q_zero_point()
    return (bounds.min - zero_point - 0.5) * scale, (bounds.max - zero_point + 0.5) * scale


def _weight_sqnr(site: Site) -> float | None:
    if site.weight is None or site.actual_weight is None or not site.quantized:
        return None
    return sqnr_db(site.weight.detach().float(), site.actual_weight.detach().float())


def _variation(ranges: list[Tensor]) -> float | None:
    """Standard deviation of the samples' ranges over their mean."""
    if not ranges:
        return None
    values = torch.cat(ranges).double()
    mean = float(values.mean())
    return float(values.std(correction=0)) / mean if mean and math.isfinite(mean) else None


def _macs(site: Site, start: Step, end: Step, size: int) -> int | None:
    """For one sample: each element of the output (of the input, where transposed) times its weights."""
    if (
        site.weight is None
        or site.weight.dim() < 2
        or not start.inputs
        or not start.inputs[0].is_floating_point()
    ):
        return None
    elements = start.inputs[0] if "Transpose" in site.type else tensors_of(end.output)[0]
    return elements.numel() // size * site.weight[0].numel()
