"""Is there room for a record? Found out before the work begins, as far as the disk can tell."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from qtrack.errors import StoreError
from qtrack.ledger.journal import writing

if TYPE_CHECKING:
    from qtrack.records import Setting

STAGE_BYTES = 1_000_000
"""Of figures, tables and the log of one stage, with some to spare."""


def check_room(folder: Path, setting: Setting) -> None:
    """Raise StoreError where the folder cannot be written, or its disk has less room than a campaign takes.

    Each stage leaves a model no larger than the float one; it stands in the spool and in the store at once.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    state = setting.plan.task.model().state_dict().values()
    model_bytes = sum(tensor.nbytes for tensor in state if hasattr(tensor, "nbytes"))
    needed = 2 * (model_bytes + STAGE_BYTES) * len(setting.plan.pipeline.stages)
    if free < needed:
        raise StoreError(
            f"{folder}: {free / 1e6:.1f} MB are free and the record takes up to {needed / 1e6:.1f} MB: free "
            "some, or keep the store on another disk"
        )
