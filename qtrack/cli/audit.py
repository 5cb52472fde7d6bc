"""``qtrack audit``: is a task's calibration data fit for quantization?"""

from __future__ import annotations

import click

from qtrack.cli.options import as_json, debug
from qtrack.cli.signals import terminating_as_interrupted

FAULTY = 1


@click.command()
@click.argument("task")
@click.option("--strict", is_flag=True, help="Exit with 1 where something is wrong.")
@as_json
@debug
@click.pass_context
def audit(ctx: click.Context, task: str, strict: bool, as_json: bool) -> None:
    """Look at the calibration data of a task before anything is quantized: enough, of all classes, its own.

    TASK is package.module:Class or file.py:Class.

    \b
    Examples:
      qtrack audit digits.py:Digits
      qtrack audit digits.py:Digits --strict
    """
    from rich.console import Console

    from qtrack import api
    from qtrack.cli import progress, render
    from qtrack.report.diagnosis import audit_screen

    with terminating_as_interrupted(), progress.monitor(Console(stderr=True)) as monitor:
        found = api.audit(task, monitor=monitor)
    if as_json:
        render.print_json([finding.to_dict() for finding in found])
    else:
        render.show_all([audit_screen(found, render.page_width())])
    if strict and any(finding.severity == "fault" for finding in found):
        ctx.exit(FAULTY)
