"""One layer at each precision: its error and its time, with the conversions at its borders."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qtrack.numerics.compare import as_fed, tensors_in
from qtrack.numerics.lockstep import Lockstep, Meeting
from qtrack.numerics.sites import Pair
from qtrack.numerics.steps import Inputs
from qtrack.numerics.sums import sqnr_db

CALLS = 9


@dataclass(frozen=True)
class Rung:
    """A layer at one precision, on one batch."""

    layer: str
    dtype: str
    sqnr_db: float | None
    """Of its own output; None where it is exact."""
    milliseconds: float
    """Median of CALLS calls, conversions to and from the integers around it included."""


def rungs_of(pair: Pair, layers: Collection[str], inputs: Inputs) -> list[Rung]:
    """The rungs of these layers on one batch, as many as each has."""
    sites = tuple(site for site in pair.sites if site.layer in layers)
    found: list[Rung] = []
    with torch.inference_mode():
        for meeting in Lockstep([Pair(pair.reference, pair.actual, sites)]).run(inputs):
            if meeting.site.layer:
                found += _rungs(meeting)
    return found


def _rungs(meeting: Meeting) -> Iterator[Rung]:
    _, site, start, end, actual = meeting
    fed = as_fed(start.inputs, actual.inputs)
    kernel = tensors_in(actual.rerun(fed))[0]
    own = sqnr_db(tensors_in(end.output)[0], kernel)
    yield Rung(site.layer, site.dtype, own, _median_ms(lambda: actual.rerun(fed)))
    if not kernel.is_quantized:
        return
    back = _quantizer(kernel)
    if site.type == "Linear" and site.weight is not None:
        yield _dynamic(meeting, fed, back)
    plain_ms = _median_ms(lambda: back(tensors_in(start.rerun(_floats(fed)))[0]))
    if site.weight is not None:
        half = sqnr_db(site.weight.detach(), site.weight.detach().half().float())
        yield Rung(site.layer, "float16", half, plain_ms)  # stored so, computed in float32
    yield Rung(site.layer, "float32", None, plain_ms)


def _dynamic(meeting: Meeting, fed: tuple[Tensor, ...], back: Callable[[Tensor], Tensor]) -> Rung:
    """A linear layer whose input is measured as it runs; without its bias, which has no error."""
    assert meeting.site.weight is not None
    weight = meeting.site.weight.detach().float()
    scale = max(float(weight.abs().max()) / 127, 1e-12)
    packed = torch.ops.quantized.linear_prepack(
        torch.quantize_per_tensor(weight, scale, 0, torch.qint8), None
    )

    def run(values: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized.linear_dynamic(values, packed, True)
        return found

    expected = nn.functional.linear(meeting.start.inputs[0], weight)
    error = sqnr_db(expected, run(meeting.start.inputs[0]))
    return Rung(meeting.site.layer, "int8_dynamic", error, _median_ms(lambda: back(run(_floats(fed)[0]))))


def _floats(fed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.dequantize() if one.is_quantized else one for one in fed)


def _quantizer(like: Tensor) -> Callable[[Tensor], Tensor]:
    scale, zero_point, dtype = like.q_scale(), like.q_zero_point(), like.dtype
    return lambda value: torch.quantize_per_tensor(value, scale, zero_point, dtype)


def _median_ms(run: Callable[[], Any]) -> float:
    run()
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))
