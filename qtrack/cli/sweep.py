"""``qtrack sweep``: many pipelines, tasks, seeds and engines; here, on several processes, or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrack.cli import options
from qtrack.cli.options import as_json, debug, tracking_uri
from qtrack.cli.signals import terminating_as_interrupted

if TYPE_CHECKING:
    from qtrack.ledger import Ledger
    from qtrack.sweep import Sweep, Swept

FAILED = 3


@click.command()
@click.argument("sweep", type=click.Path(path_type=Path), metavar="SWEEP.yaml")
@options.executor
@options.address
@options.workers
@click.option("--resume", is_flag=True, help="Leave out the jobs that this sweep has finished before.")
@as_json
@tracking_uri
@debug
@click.pass_context
def sweep(
    ctx: click.Context,
    sweep: Path,
    executor: str | None,
    address: str | None,
    workers: int | None,
    resume: bool,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Run every job of a sweep file and record each as a campaign of its own.

    Only this command writes to the store: workers hand their records over. A worker that is lost has its job
    tried again; a job that fails stops no other, and makes the exit code 3.

    \b
    Examples:
      qtrack sweep digits-sweep.yaml
      qtrack sweep digits-sweep.yaml --executor processes --workers 4
      qtrack sweep digits-sweep.yaml --executor ray --address 10.0.0.1:6379 --resume
    """
    from rich.console import Console

    from qtrack.api import open_ledger
    from qtrack.cli.progress import monitor
    from qtrack.cli.render import remark
    from qtrack.errors import StoreAway
    from qtrack.executors import open_executor
    from qtrack.sweep import read_sweep, run_sweep

    with terminating_as_interrupted(), monitor(Console(stderr=True)) as shown:
        read = read_sweep(sweep)
        ledger = open_ledger(tracking_uri)
        try:
            threads = max(job.plan.pipeline.threads or 1 for job in read.jobs)
            with open_executor(executor, address=address, workers=workers, threads=threads) as chosen:
                found = run_sweep(read, ledger, chosen, shown, resume=resume)
        except KeyboardInterrupt:
            remark(["what was finished is recorded; the same command with --resume does the rest"])
            raise
    try:
        _show(read, found, ledger, as_json=as_json)
    except StoreAway as error:
        remark([f"{error}", "what the store has not taken waits here; it is sent by: qtrack sync"])
    remark(_closing(read, found))
    if any(one.error for one in found):
        ctx.exit(FAILED)


def _show(read: Sweep, found: list[Swept], ledger: Ledger, *, as_json: bool) -> None:
    from qtrack.cli import render
    from qtrack.report.swept import sweep_view

    names = {job.key: job.entry.having(seed=None).name for job in read.jobs}
    jobs = [(names[one.key], ledger.strategies(campaign=one.campaign)) for one in found if one.campaign]
    view = sweep_view(jobs)
    if as_json:
        render.print_json(view.records)
    else:
        render.show(view.table)


def _closing(read: Sweep, found: list[Swept]) -> list[str]:
    failed = [one for one in found if one.error]
    lines = ["", f"sweep {read.id}: {len(found) - len(failed)} of {len(found)} jobs are finished"]
    lines += [f"failed: {one.name}: {one.error}" for one in failed]
    again = sum(one.tries - 1 for one in found if one.tries)
    lines += [f"{again} tries more than jobs, where workers were lost"] if again else []
    return lines + (["the same command with --resume tries the rest again"] if failed else [])
