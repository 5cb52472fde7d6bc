"""``qtrack.run``: a pipeline from Python, recorded as the command line records it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtrack.campaign import StageResult, run_plan
from qtrack.monitor import SILENT, Monitor
from qtrack.pipeline import Plan, read_plan

if TYPE_CHECKING:
    from qtrack.ledger import Ledger


def run(
    pipeline: Path | str | Plan,
    *,
    tracking_uri: str | None = None,
    monitor: Monitor = SILENT,
    settings: dict[str, Any] | None = None,
) -> list[StageResult]:
    """Run a pipeline file, or a checked plan, and record every stage; ``settings`` override its fields."""
    plan = pipeline if isinstance(pipeline, Plan) else read_plan(Path(pipeline), settings)
    return run_plan(plan, open_ledger(tracking_uri), monitor)


def open_ledger(tracking_uri: str | None = None) -> Ledger:
    """The store, with figures drawn for each stage that is recorded in it."""
    from qtrack.ledger import Ledger
    from qtrack.report.figures import stage_figures

    return Ledger.open(tracking_uri, figures=stage_figures)
