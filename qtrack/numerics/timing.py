"""What the nodes of graphs take in place: as they run within a whole pass, with the caches as they find them.

All graphs are run in turns, so that the machine's mood touches them alike, and a time is the lower
quartile over the rounds: what disturbs (pages that the allocator gave back, others' use of the caches) only
adds. Conversions are timed on each node's own output, right after the node, in passes of their own, which
come first: the nodes themselves are timed with the graph's own weights in the caches. With one torch thread
time is that of the thread, which on a quiet machine is the wall's: what else runs there does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from qtrack.numerics.graph import Program
from qtrack.numerics.steps import Inputs

ROUNDS = 30
SECONDS = 10.0
MINIMUM = 5
QUARTILE = 25
SCALE, ZERO_POINT = 0.1, 64
"""Of conversions that are only timed: any do."""
Times = Mapping[str, float]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one graph, by node."""

    nodes: Times
    conversions: Times
    """Of the node's output to integers where it is floats, and to floats where it is integers."""


def timings(programs: Sequence[Program], model: nn.Module, inputs: Inputs) -> tuple[list[Timing], float, int]:
    """Of each graph, of one call of a whole model, and how often the inputs went through any of them."""
    kept: list[tuple[list[Times], list[Times]]] = [([], []) for _ in programs]
    whole: list[float] = []
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    began = time.perf_counter()
    with torch.no_grad():
        for turn in range(ROUNDS + 1):
            if turn > MINIMUM and time.perf_counter() - began > SECONDS:
                break
            for program, (nodes, conversions) in zip(programs, kept, strict=True):
                conversions.append(program.timed(inputs, clock, _converted))
                nodes.append(program.timed(inputs, clock))
            model(**inputs) if isinstance(inputs, dict) else model(*inputs)
            whole.append(_called_ms(model, inputs, clock))
    found = [Timing(_quartiles(nodes), _quartiles(conversions)) for nodes, conversions in kept]
    return found, float(np.percentile(whole[1:], QUARTILE)), len(whole) * 2 * (1 + len(programs))


def _converted(value: Any) -> list[Tensor]:
    """All its tensors in the other type."""
    return [_other_type(leaf) for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _other_type(value: Tensor) -> Tensor:
    if value.is_quantized:
        return value.dequantize()
    if value.is_floating_point():
        return torch.quantize_per_tensor(value, SCALE, ZERO_POINT, torch.quint8)
    return value


def _called_ms(model: nn.Module, inputs: Inputs, clock: Callable[[], float]) -> float:
    began = clock()
    model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return 1000 * (clock() - began)


def _quartiles(rounds: Sequence[Times]) -> Times:
    """The first round warms up."""
    return {name: float(np.percentile([one[name] for one in rounds[1:]], QUARTILE)) for name in rounds[0]}
