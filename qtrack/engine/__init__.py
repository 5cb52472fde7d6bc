"""The engine: executes a recipe on a task. The only way a quantized model ever comes to be."""

from __future__ import annotations

from qtrack.engine.execution import check_forward, execute, rebuild, settled, torch_threads
from qtrack.engine.training import Checkpoint

__all__ = ["Checkpoint", "check_forward", "execute", "rebuild", "settled", "torch_threads"]
