"""Parameters that torch keeps as objects of its own (recurrent layers in dynamic mode), as tensors and back.

Such an object is read back by running code; its tensors are not. What an object gives for itself is a pair of
its parts and its class, and that is what is stored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LINEAR = "__torch__.torch.classes.quantized.LinearPackedParamsBase"
CELL = "__torch__.torch.classes.rnn.CellParamsBase"


def unpacked_state(state: dict[str, Any]) -> dict[str, Any]:
    """A ``state_dict`` of tensors and plain data alone, which has the same digest."""
    return _changed(state, _unpacked)


def packed_state(state: dict[str, Any]) -> dict[str, Any]:
    """The ``state_dict`` again; raises ValueError for an object of a class that is not known."""
    return _changed(state, lambda value: _packed(value) if _is_object(value) else value)


def _changed(state: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """With what torch notes beside the values: the versions of their modules."""
    changed: dict[str, Any] = copy.copy(state)
    for name, value in state.items():
        changed[name] = change(value)
    return changed


def _unpacked(value: Any) -> Any:
    if isinstance(value, torch.ScriptObject):
        parts: Any = value.__getstate__()
        return tuple(_unpacked(part) for part in parts)
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(part) for part in value)
    return value.detach() if isinstance(value, Tensor) else value


def _is_object(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)


def _packed(value: Any) -> Any:
    parts, kind = value
    if kind == LINEAR:
        weight, bias = parts
        prepack = torch.ops.quantized.linear_prepack
        return (prepack if weight.is_quantized else torch.ops.quantized.linear_prepack_fp16)(weight, bias)
    if kind == CELL:
        return _packed_cell(*parts)
    raise ValueError(f"packed parameters of the class {kind!r} are not known")


def _packed_cell(
    kind: str, biases: list[Tensor], _: list[float], flags: list[int], linears: list[Any]
) -> Any:
    input_weights, state_weights = map(_packed, linears)
    if kind == "quantized_dynamic":
        make = torch.ops.quantized.make_quantized_cell_params_dynamic
        return make(input_weights, state_weights, *biases, bool(flags[0]))
    if kind == "quantized_fp16":
        return torch.ops.quantized.make_quantized_cell_params_fp16(input_weights, state_weights)
    raise ValueError(f"packed parameters of the kind {kind!r} are not known")
