"""What a worker does: one campaign, whose record it hands over instead of sending it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from qtrack.api import page
from qtrack.campaign import run_plan
from qtrack.engine import nearest
from qtrack.errors import QtrackError
from qtrack.ledger.held import HeldLedger
from qtrack.pipeline import read_plan
from qtrack.report.figures import stage_figures
from qtrack.scratch import Scratch
from qtrack.task import Task, load_task

log = logging.getLogger("qtrack")


@dataclass(frozen=True)
class Handed:
    """What a worker hands over: plain data."""

    campaign: str
    """Its id; empty where it never began."""
    packed: bytes
    """Its record, as ``held.unpack`` takes it."""
    error: str = ""
    """Why it did not come to its end, in one line."""


def campaign(
    pipeline: str,
    settings: dict[str, Any],
    threads: int,
    code: str,
    store: str,
    experiment: str,
    scratch: str,
    tags: Mapping[str, str],
) -> Handed:
    """Run a pipeline file with these settings; what fails in it is on record and said, and no exception.

    Of a task whose files have the digest ``code`` the one that is at hand is taken. A job that comes to no
    end leaves in the folder ``scratch`` what need not be done when it is tried again, by a worker that sees
    that folder.
    """
    with tempfile.TemporaryDirectory(prefix="qtrack-") as folder:
        ledger = HeldLedger(Path(folder), store, experiment, tags, stage_figures, page)
        error = ""
        try:
            load = partial(_task, code=code)
            plan = read_plan(Path(pipeline), {"threads": threads, **settings}, load)
            device = nearest(plan.pipeline.device)
            plan = replace(plan, pipeline=plan.pipeline.model_copy(update={"device": device}))
            run_plan(plan, ledger, scratch=Scratch(Path(scratch)))
            shutil.rmtree(scratch, ignore_errors=True)
        except QtrackError as failed:
            error = "; ".join(str(failed).splitlines())
        except Exception as failed:  # of the user's code, or unforeseen: it is this job's own
            error = f"{type(failed).__name__}: {' '.join(str(failed).split())[:400]}"
        return Handed(ledger.id, ledger.packed(), error)


@lru_cache(maxsize=1)
def _task(reference: str, folder: Path, code: str) -> Task:
    """Loaded once for all jobs with it that follow each other, with whatever model and data it keeps."""
    return load_task(reference, folder)
