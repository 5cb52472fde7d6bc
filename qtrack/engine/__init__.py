"""The engine: executes a recipe on a task. The only way a quantized model ever comes to be."""

from __future__ import annotations

from qtrack.engine.devices import at_hand, nearest, using_device
from qtrack.engine.execution import (
    Parts,
    check_forward,
    execute,
    quantize,
    rebuild,
    settled,
    torch_threads,
)
from qtrack.engine.training import Checkpoint

__all__ = [
    "Checkpoint",
    "Parts",
    "at_hand",
    "check_forward",
    "execute",
    "nearest",
    "quantize",
    "rebuild",
    "settled",
    "torch_threads",
    "using_device",
]
