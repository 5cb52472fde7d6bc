"""The ranges of a float model's layers, before anything is quantized."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from qtrack.numerics.compare import tensors_in
from qtrack.numerics.steps import Inputs

Extent = tuple[float, float]


def extents(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, Extent]:
    """Smallest and largest element of each innermost module's output, whatever number of calls."""
    found: dict[str, Extent] = {}

    def watch(name: str) -> Any:
        def see(module: nn.Module, inputs: Any, output: Any) -> None:
            for one in tensors_in(output):
                if one.is_floating_point() and one.numel():
                    low, high = (float(value) for value in torch.aminmax(one))
                    before = found.get(name, (low, high))
                    found[name] = min(before[0], low), max(before[1], high)

        return see

    with torch.no_grad(), ExitStack() as hooks:
        for name, module in model.named_modules():
            if name and not any(True for _ in module.children()):
                hooks.callback(module.register_forward_hook(watch(name)).remove)
        for inputs in batches:
            model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return found
