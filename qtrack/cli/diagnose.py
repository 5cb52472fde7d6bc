"""``qtrack diagnose``: which kind of error a quantized model has, on what evidence, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from qtrack.cli.files import write_file
from qtrack.cli.options import as_json, debug, tracking_uri
from qtrack.cli.signals import terminating_as_interrupted

if TYPE_CHECKING:
    from qtrack.case import Case
    from qtrack.finding import Diagnosis

NOT_HEALTHY = 1
REMEDIES = "remedies.yaml"


@click.command()
@click.argument("subject", metavar="RUN|PIPELINE")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the diagnosed recipe and each remedy as the stages of a pipeline file.",
)
@click.option("--task", metavar="TASK", help="Where the task is now, instead of the one recorded.")
@click.option(
    "--target-drop",
    type=click.FloatRange(min=0),
    metavar="X",
    help="How much of the metric may be lost, instead of the pipeline's target.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 where something is wrong.")
@as_json
@tracking_uri
@debug
@click.pass_context
def diagnose(
    ctx: click.Context,
    subject: str,
    output: Path | None,
    task: str | None,
    target_drop: float | None,
    strict: bool,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Say which kind of error a quantized model has, on what evidence, and which remedies to try first.

    The verdict is recorded with the run. RUN is a run id or a unique beginning of one, CAMPAIGN/STAGE, or a
    stage of the latest campaign; its task is found as 'qtrack reproduce' finds it. Of a PIPELINE file, the
    first recipe that quantizes is diagnosed, and nothing is recorded.

    \b
    Examples:
      qtrack diagnose ptq
      qtrack diagnose ptq -o remedies.yaml && qtrack run remedies.yaml
      qtrack diagnose digits.yaml --strict
    """
    from rich.console import Console

    from qtrack import api
    from qtrack.cli import progress

    with terminating_as_interrupted(), progress.monitor(Console(stderr=True)) as monitor:
        ledger, case = api.case_of(subject, task, tracking_uri)
        found = api.diagnosed(case, ledger, target_drop, monitor)
    _show(found, as_json=as_json)
    if output is not None:
        _write(output, case, found)
    elif found.remedies:
        _advise(_next(subject, task, tracking_uri))
    if strict and found.category != "healthy":
        ctx.exit(NOT_HEALTHY)


def _show(found: Diagnosis, *, as_json: bool) -> None:
    from qtrack.cli import render
    from qtrack.report.diagnosis import screen

    if as_json:
        render.print_json(found.to_dict())
    else:
        render.show_all(screen(found, render.page_width()))


def _write(path: Path, case: Case, found: Diagnosis) -> None:
    """As ``qtrack export`` writes a recipe."""
    from qtrack.case import remedies_of
    from qtrack.cli.export import relocated
    from qtrack.report.cells import visible

    plain = remedies_of(case, found, relocated(case.task_reference, path.parent))
    heading = visible(f"# {case.subject}, recipe {case.recipe.digest[:12]}, and its remedies, best first")
    write_file(path, f"{heading}\n{yaml.safe_dump(plain, sort_keys=False)}".encode())
    click.echo(f"wrote {path}", err=True)
    _advise([f"qtrack run {shlex.quote(str(path))}"])


def _next(subject: str, task: str | None, tracking_uri: str | None) -> Iterator[str]:
    """The same again, written as a pipeline; with the options that it needs to find the same."""
    from qtrack.ledger import mask_secrets

    store = ["--tracking-uri", mask_secrets(tracking_uri)] if tracking_uri else []
    yield shlex.join(
        ["qtrack", "diagnose", subject, *(["--task", task] if task else []), *store, "-o", REMEDIES]
    )
    yield shlex.join(["qtrack", "run", REMEDIES, *store])


def _advise(commands: Iterator[str] | list[str]) -> None:
    from qtrack.cli.render import remark

    remark(f"{'next:' if i == 0 else '':<6}{command}" for i, command in enumerate(commands))
