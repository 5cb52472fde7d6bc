"""torch.export with a free batch size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from qtrack.backends.messages import first_line, hushed
from qtrack.errors import BackendError
from qtrack.numerics.compare import batch_size
from qtrack.task import Inputs


def exported(model: nn.Module, inputs: Inputs) -> Any:
    """The exported program; raises BackendError where torch cannot export it for any batch size."""
    inputs = _at_least_two(inputs)
    batch, size = torch.export.Dim("batch"), batch_size(inputs)
    free = tree_map(lambda leaf: {0: batch} if _batched(leaf, size) else None, inputs)
    positional, named = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    try:
        with hushed():  # where it fails, torch prints the graph so far
            return torch.export.export(model, positional, named, dynamic_shapes=free, strict=False)
    except Exception as cause:  # torch.export raises whatever the model's code led to
        raise BackendError(f"torch does not export the model: {_reason(cause)}") from cause


def _at_least_two(inputs: Inputs) -> Inputs:
    """Of a batch of one torch would take the size for a constant."""
    size = batch_size(inputs)
    if size > 1:
        return inputs
    doubled: Inputs = tree_map(lambda leaf: torch.cat([leaf, leaf]) if _batched(leaf, size) else leaf, inputs)
    return doubled


def _batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size


def _reason(cause: Exception) -> str:
    if "__obj_flatten__" in str(cause):
        return "it has packed weights, as layers in dynamic mode have them"
    return first_line(cause)
