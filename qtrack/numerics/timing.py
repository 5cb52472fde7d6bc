"""What the nodes of graphs take in place: as they run within a whole pass, with the caches as they find them.

All graphs are run in turns, so that the machine's mood touches them alike, and a time is the median over the
rounds. Conversions are timed on each node's own output, right after the node, in passes of their own, which
come first: the nodes themselves are timed with the graph's own weights in the caches.
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

ROUNDS = 15
SECONDS = 5.0
MINIMUM = 3
SCALE, ZERO_POINT = 0.1, 64
"""Of conversions that are only timed: any do."""
Times = Mapping[str, float]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one graph, by node."""

    quantize: Times
    """Of the output of those that give floats."""
    dequantize: Times
    """Of the output of those that give integers."""
    nodes: Times
    """Of the nodes themselves."""


def timings(programs: Sequence[Program], model: nn.Module, inputs: Inputs) -> tuple[list[Timing], float, int]:
    """Of each graph, of one call of a whole model, and how often the inputs went through any of them."""
    kept: list[list[list[dict[str, float]]]] = [[[], [], []] for _ in programs]
    whole: list[float] = []
    began = time.perf_counter()
    with torch.no_grad():
        for turn in range(ROUNDS + 1):
            if turn > MINIMUM and time.perf_counter() - began > SECONDS:
                break
            for program, passes in zip(programs, kept, strict=True):
                for one, extra in zip(passes, (_quantized, _dequantized, None), strict=True):
                    one.append(program.timed(inputs, extra))
            whole.append(_called_ms(model, inputs))
    found = [Timing(*(_medians(one) for one in passes)) for passes in kept]
    return found, float(np.median(whole[1:])), len(whole) * (1 + 3 * len(programs))


def _quantized(value: Any) -> list[Tensor]:
    """All its floats as integers."""
    floats = (
        leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )
    return [torch.quantize_per_tensor(leaf, SCALE, ZERO_POINT, torch.quint8) for leaf in floats]


def _dequantized(value: Any) -> list[Tensor]:
    """All its integers as floats."""
    leaves = (leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor))
    return [leaf.dequantize() for leaf in leaves if leaf.is_quantized]


def _called_ms(model: Callable[..., Any], inputs: Inputs) -> float:
    began = time.perf_counter()
    model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return 1000 * (time.perf_counter() - began)


def _medians(rounds: list[dict[str, float]]) -> Times:
    """The first round warms up."""
    return {name: float(np.median([one[name] for one in rounds[1:]])) for name in rounds[0]}
