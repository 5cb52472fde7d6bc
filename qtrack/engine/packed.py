"""Packed weights of recurrent layers as plain tensors, which can be saved and read without running code.

torch keeps them as objects of its own in the ``state_dict``. Each is replaced by what it gives for pickling:
tensors and plain data, objects within objects likewise. They go back into a model of the same structure.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from qtrack.backends.engines import quiet


def unpacked(state: dict[str, Any]) -> dict[str, Any]:
    """The same ``state_dict`` without torch's objects."""
    return _with_values(state, {name: _plain(value) for name, value in state.items()})


def read(file: Path | BinaryIO) -> Any:
    """What ``torch.save`` wrote: tensors and plain data only, nothing that would run code when it is read.

    Raises what ``torch.load`` raises, UnpicklingError where there is more than that.
    """
    with quiet():
        # torch's own, for quantized tensors
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        return torch.load(file, weights_only=True, map_location="cpu")


def load(model: nn.Module, state: dict[str, Any]) -> None:
    """Put a ``state_dict`` into a model, whether its packed weights are plain or torch's objects."""
    own = model.state_dict()
    restored = {name: _restored(own.get(name), value) for name, value in state.items()}
    model.load_state_dict(_with_values(state, restored))


def _with_values(state: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that also has what torch notes beside the values, such as the modules' versions."""
    changed = copy.copy(state)
    changed.update(values)
    return changed


def _plain(value: Any) -> Any:
    if isinstance(value, torch.ScriptObject):
        return _plain(value.__getstate__())
    if isinstance(value, list | tuple):
        return type(value)(_plain(part) for part in value)
    return value


def _restored(own: Any, value: Any) -> Any:
    """A saved value as the object that a model has in this place."""
    if isinstance(own, torch.ScriptObject) and not isinstance(value, torch.ScriptObject):
        packed: Any = torch.ScriptObject.__new__(torch.ScriptObject)
        there: Any = own
        content, kind = there.__getstate__()  # the file is not to choose the kind
        packed.__setstate__((_restored(content, value[0]), kind))
        return packed
    if isinstance(own, list | tuple) and isinstance(value, list | tuple):
        return type(value)(_restored(*pair) for pair in zip(own, value, strict=True))
    return value
