"""The ledger: records campaigns in MLflow and reads them back as plain data. The only part that knows MLflow.

The names are resolved on first use, so that ``mask_secrets`` is at hand without the second that MLflow's
import takes. MLflow reads its settings while it is imported, so they are settled here, before that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qtrack.ledger.masking import mask_secrets
from qtrack.ledger.quiet import settle_environment

if TYPE_CHECKING:
    from qtrack.ledger.ledger import Ledger
    from qtrack.ledger.strategy import Strategy

settle_environment()

_HOMES = {"Ledger": "qtrack.ledger.ledger", "Strategy": "qtrack.ledger.strategy"}

__all__ = ["Ledger", "Strategy", "mask_secrets"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qtrack.ledger' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
