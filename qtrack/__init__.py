"""qtrack: quantization remedies as pipeline stages, each recorded, compared and explained.

The public names are resolved on first use, so that ``import qtrack`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qtrack.api import diagnose, load, run
    from qtrack.engine import execute
    from qtrack.errors import QtrackError
    from qtrack.ledger import Ledger
    from qtrack.outcome import Outcome
    from qtrack.pipeline import Pipeline
    from qtrack.recipe import Recipe
    from qtrack.suite import compare_models
    from qtrack.task import Task

_HOMES = {
    "Ledger": "qtrack.ledger",
    "Outcome": "qtrack.outcome",
    "Pipeline": "qtrack.pipeline",
    "QtrackError": "qtrack.errors",
    "Recipe": "qtrack.recipe",
    "Task": "qtrack.task",
    "compare_models": "qtrack.suite",
    "diagnose": "qtrack.api",
    "execute": "qtrack.engine",
    "load": "qtrack.api",
    "run": "qtrack.api",
}

__all__ = [
    "Ledger",
    "Outcome",
    "Pipeline",
    "QtrackError",
    "Recipe",
    "Task",
    "compare_models",
    "diagnose",
    "execute",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qtrack' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
