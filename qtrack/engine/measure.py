"""Size and latency."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from qtrack.engine.digests import tensors_in
from qtrack.engine.evaluation import call
from qtrack.outcome import Latency
from qtrack.task import Inputs

ROUNDS = 60
SECONDS = 1.0
WARM_UP = 3
MINIMUM = 3


def size_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of all tensors of a ``state_dict`` as stored, scales and zero-points included."""
    return sum(_stored_bytes(tensor) for _, tensor in tensors_in(state))


def _stored_bytes(tensor: torch.Tensor) -> int:
    if not tensor.is_quantized:
        return tensor.numel() * tensor.element_size()
    channels = tensor.q_per_channel_scales().numel() if tensor.qscheme() == torch.per_channel_affine else 1
    return tensor.numel() * tensor.element_size() + channels * 8  # a float32 scale, an int32 zero-point


def latency(model: nn.Module, baseline: nn.Module, inputs: Inputs, batch_size: int) -> Latency:
    """Wall time of one call, in turns with the float model: the machine's mood then touches both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(WARM_UP):
            _timed(model, inputs), _timed(baseline, inputs)
        began = time.perf_counter()
        while len(times[0]) < MINIMUM or (len(times[0]) < ROUNDS and time.perf_counter() - began < SECONDS):
            times[0].append(_timed(model, inputs))
            times[1].append(_timed(baseline, inputs))
    low, median, high = np.percentile(times[0], (25, 50, 75))
    return Latency(
        median_ms=float(median),
        iqr_ms=float(high - low),
        float_median_ms=float(np.median(times[1])),
        batch_size=batch_size,
        threads=torch.get_num_threads(),
        calls=len(times[0]),
    )


def _timed(model: nn.Module, inputs: Inputs) -> float:
    began = time.perf_counter()
    call(model, inputs, "the model refuses its example")
    return (time.perf_counter() - began) * 1000
