"""What the driver does: hands jobs out, and writes what comes back to the store; it alone does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qtrack.executors import Executor, Finished, Job, finished
from qtrack.ledger import Ledger, mask_secrets
from qtrack.ledger.names import Tag
from qtrack.monitor import SILENT, Monitor
from qtrack.sweep.plan import Planned, Sweep
from qtrack.sweep.work import Handed

log = logging.getLogger("qtrack")


@dataclass(frozen=True)
class Swept:
    """A job of a sweep, and what became of it."""

    name: str
    key: str
    campaign: str
    """Its campaign's id; empty where none is on record."""
    error: str = ""
    """Why it did not come to its end; empty where it did."""
    tries: int = 0
    """0: done by an earlier command."""


def run_sweep(
    sweep: Sweep, ledger: Ledger, executor: Executor, monitor: Monitor = SILENT, *, resume: bool = False
) -> list[Swept]:
    """Do all jobs and record each once; with ``resume`` not those that this sweep has finished before.

    A job that fails, or is lost with its worker three times, stops no other. Raises StoreError.
    """
    ledger.sync()
    done = ledger.swept(sweep.id) if resume else {}
    before = [Swept(job.entry.name, job.key, done[job.key]) for job in sweep.jobs if job.key in done]
    left = [job for job in sweep.jobs if job.key not in done]
    if before:
        log.info("%d of %d jobs were finished before", len(before), len(sweep.jobs))
    keys = {_name(job): job.key for job in left}
    names = dict.fromkeys(job.plan.task.name for job in left)
    experiments = {name: ledger.experiment_for(name) for name in names}  # asked while the store answers
    found = list(before)
    began = time.monotonic()
    with monitor.phase("sweep", len(left)) as advance:
        for one in finished(executor, _jobs(left, sweep, ledger, experiments)):
            found.append(_recorded(one, keys[one.job.name], ledger))
            advance(1)
            _tell(found[-1], len(found) - len(before), len(left), time.monotonic() - began)
    order = [job.key for job in sweep.jobs]
    return sorted(found, key=lambda swept: order.index(swept.key))


def _jobs(
    left: Sequence[Planned], sweep: Sweep, ledger: Ledger, experiments: Mapping[str, str]
) -> Iterator[Job]:
    for job in left:
        pipeline = job.plan.pipeline
        threads = pipeline.threads or 1
        arguments = {
            "pipeline": str(job.path.resolve()),
            "settings": job.entry.settings,
            "threads": threads,
            "code": job.code,
            "store": mask_secrets(ledger.uri),
            "experiment": experiments[job.plan.task.name],
            "scratch": str((ledger.scratch / job.key).resolve()),
            "tags": {Tag.SWEEP: sweep.id, Tag.JOB: job.key},
        }
        gpus = int(pipeline.device != "cpu")
        yield Job(_name(job), "qtrack.sweep.work:campaign", arguments, threads, gpus)


def _name(job: Planned) -> str:
    return f"{job.entry.name} ({job.key[:6]})"


def _recorded(one: Finished, key: str, ledger: Ledger) -> Swept:
    """Its record is in the store afterwards, or waits in the spool."""
    if one.error is not None:
        said = str(one.error).splitlines() or [""]
        name = "" if isinstance(one.error, Exception) and hasattr(one.error, "exit_code") else _kind(one)
        return Swept(one.job.name, key, "", f"{name}{said[0]}", one.tries)
    handed: Handed = one.result
    ledger.take(handed.packed)
    return Swept(one.job.name, key, handed.campaign, handed.error, one.tries)


def _kind(one: Finished) -> str:
    return f"{type(one.error).__name__}: "


def _tell(swept: Swept, done: int, total: int, seconds: float) -> None:
    left = seconds / done * (total - done)
    time_left = f", about {left:.0f} s left" if done < total else ""
    if swept.error:
        log.warning("%d of %d: %s failed: %s%s", done, total, swept.name, swept.error, time_left)
    else:
        log.info("%d of %d: %s is done%s", done, total, swept.name, time_left)
