"""Is anything lost, or anything doubled, when processes are killed, servers go away and disks are full?

    python benchmarks/faults.py --markdown

A small pipeline (float, ptq, per_channel, qat, fallback with a search, dynamic) runs, something is done to it
at a random moment, and the same command runs once more. Then the store is looked at, by SQL and on disk,
beside that of an undisturbed run:

* Each stage is FINISHED exactly once in the whole store; the latest campaign has all of them, executed or
  referred to; no run is RUNNING after ``qtrack repair --older-than 0``; nothing waits in the spool.
* Each metric point (key and step) of each stage is there exactly once. Values that are times differ.
* Recipe, parameters and behaviour have the undisturbed run's digests; the same files are there, and parse.
* SQLite finds no fault with its database.
* No command hangs, prints a traceback, or fails in another way than with one line and exit code 3; and such a
  failure is right only where the disk does not take the record, or the server was away before or after it.

Moments are seeded and spread evenly over the time that an undisturbed run takes while another runs beside it.
A trial that fails is kept, its folder printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

from faults_audit import Recorded, Store, Verdict, audit, expected, waiting
from faults_lab import RUN, Command, Ended, Lab, qtrack
from faults_server import Proxy, Server, Spoiling

SLOTS = 2
"""Trials at once."""
TMPFS_MB = 24
NO_RECORD, BETWEEN, AFTER = "before the record", "between stages", "after the end"


@dataclass(frozen=True)
class Trial:
    """One fault to come."""

    number: int
    kind: str
    moment: float
    """As a share of the undisturbed run's time."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind.replace(' ', '-').replace(',', '')}-{self.number:03d}"


@dataclass
class Found:
    """What became of a trial."""

    trial: Trial
    verdict: Verdict = field(default_factory=Verdict)
    completed: bool = False
    faults: list[str] = field(default_factory=list)
    hits: list[str] = field(default_factory=list)
    """What was going on when it was killed, each time."""
    seconds: float = 0.0
    folder: Path | None = None


class Slot:
    """Where one trial after another takes place, with a server that starts when it is needed."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab = lab
        self.known: dict[str, Recorded] = expected(Store(lab.undisturbed / "mlflow.db"))
        self.server = Server(lab.root / f"server-{number}")

    def running_server(self) -> Server:
        if not self.server.folder.exists():
            self.server.folder.mkdir()
            shutil.copy(self.lab.empty, self.server.folder)
        if self.server.process is None:
            self.server.start()
            self.server.answers()
        return self.server

    def tried(self, trial: Trial) -> Found:
        """One trial; its folder is removed unless something failed."""
        began, found = time.monotonic(), Found(trial)
        try:
            KINDS[trial.kind](self, trial, found)
        except Exception:  # of the benchmark itself, which must not pass for a success
            found.faults.append(traceback.format_exc())
        found.faults += found.verdict.faults
        found.seconds = time.monotonic() - began
        if found.faults:
            found.folder = self.lab.root / trial.name
        else:
            shutil.rmtree(self.lab.root / trial.name, ignore_errors=True)
        return found

    def completed(self, folder: Path, found: Found, *options: str) -> None:
        """The same command again, which must do, and the look at what came of it all."""
        ended = qtrack(folder, *RUN, *options)
        found.completed = ended.code == 0
        found.faults += ended.complaints()
        found.faults += qtrack(folder, "repair", "--older-than", "0", *options).complaints()


# ---- Kills ----


def kill(slot: Slot, trial: Trial, found: Found, times: int = 1) -> None:
    folder, chance = slot.lab.folder(trial.name), random.Random(trial.seed)
    moments = [trial.moment, *(chance.uniform(0, 0.7) for _ in range(times - 1))]  # what is left takes less
    for moment in moments:
        command = Command(folder, *RUN)
        over = command.wait(moment * slot.lab.seconds)
        ended = command.end() if over else command.kill()
        found.hits.append("" if over else _hit(folder, command.pid))
        found.faults += ended.complaints()
    slot.completed(folder, found)
    found.verdict = audit(Store(folder / "mlflow.db"), folder, slot.known)


def _hit(folder: Path, pid: int) -> str:
    """What that process was at, as the spool tells: it has the records of the runs that are open."""
    headers = [json.loads((path / "run.json").read_text())["tags"] for path in waiting(folder)]
    runs = [tags for tags in headers if _process(tags) == pid]
    stages = [tags["qtrack.stage"] for tags in runs if tags["qtrack.kind"] == "stage"]
    if runs:
        return str(stages[-1]) if stages else BETWEEN
    ended = any(_process(run.tags) == pid for run in Store(folder / "mlflow.db").runs())
    return AFTER if ended else NO_RECORD


def _process(tags: Mapping[str, str]) -> int:
    return int(json.loads(tags["qtrack.process"])["pid"])


# ---- Servers ----


def stop(slot: Slot, trial: Trial, found: Found, by: int, back_during: bool) -> None:
    """The server is stopped, and comes back while the run goes on, or after its end."""
    server, chance = slot.running_server(), random.Random(trial.seed)
    folder = slot.lab.folder(trial.name, trial.name)
    command = Command(folder, *RUN, "--tracking-uri", server.uri)
    command.wait(trial.moment * slot.lab.seconds)
    server.stop(by)
    if back_during:
        command.wait(chance.uniform(0, 2))
        server.start()
    ended = command.end()
    after_loss(slot, trial, found, ended)


def spoil(slot: Slot, trial: Trial, found: Found, *kinds: str) -> None:
    """Requests or answers are spoiled: all of them for a while, or a third of them throughout."""
    server, chance = slot.running_server(), random.Random(trial.seed)
    kind, begin_s = kinds[trial.number % len(kinds)], trial.moment * slot.lab.seconds
    always = trial.number % 3 == 2
    span = (0.0, 1e9) if always else (begin_s, begin_s + chance.uniform(0.2, 2.0))
    slow_s = chance.choice((0.5, 2.0, 12.0)) if not always else 0.3
    proxy = Proxy(server, Spoiling(kind, *span, 0.3 if always else 1.0, trial.seed, slow_s))
    folder = slot.lab.folder(trial.name, trial.name)
    try:
        ended = Command(folder, *RUN, "--tracking-uri", proxy.uri).end()
    finally:
        proxy.stop()
    _readdress(folder, proxy.uri, server.uri)
    after_loss(slot, trial, found, ended)


def _readdress(folder: Path, was: str, now: str) -> None:
    """What waits in the spool is for the proxy, behind which the server is reached directly from now on."""
    for path in waiting(folder):
        header = path / "run.json"
        header.write_text(header.read_text().replace(was, now))


def after_loss(slot: Slot, trial: Trial, found: Found, ended: Ended) -> None:
    """With the server back, sync sends the rest; a run that had not begun its record is begun again."""
    folder, server = slot.lab.root / trial.name, slot.running_server()
    server.answers()
    uri = ("--tracking-uri", server.uri)
    found.faults += ended.complaints(may_fail=True)
    found.hits.append("ended well" if ended.code == 0 else "ended with 3")
    if ended.code == 0:
        found.faults += qtrack(folder, "sync", *uri).complaints()
        found.faults += [f"{path.name} waits after sync" for path in waiting(folder)]
    slot.completed(folder, found, *uri)
    store = Store(server.folder / "mlflow.db", trial.name, server.folder / "artifacts")
    found.verdict = audit(store, folder, slot.known)


# ---- Disks ----


def fill(slot: Slot, trial: Trial, found: Found) -> None:
    """All space is taken at once, and given back after the run has failed, or has not noticed."""
    with small_disk(slot, trial, found) as folder:
        command = Command(folder, *RUN)
        command.wait(trial.moment * slot.lab.seconds)
        ballast = folder / "ballast"
        _fill_up(ballast)
        ended = command.end()
        ballast.unlink()
        found.hits.append("ended well" if ended.code == 0 else f"ended with {ended.code}")
        found.faults += ended.complaints(may_fail=True)


def limit(slot: Slot, trial: Trial, found: Found) -> None:
    """No file may grow beyond a limit, which the database is the first to meet."""
    folder = slot.lab.folder(trial.name)
    allowed = (folder / "mlflow.db").stat().st_size + int(trial.moment * 120_000)
    ended = Command(folder, *RUN, limit_bytes=allowed).end()
    found.hits.append("ended well" if ended.code == 0 else f"ended with {ended.code}")
    found.faults += ended.complaints(may_fail=True)
    slot.completed(folder, found)
    found.verdict = audit(Store(folder / "mlflow.db"), folder, slot.known)


def lock(slot: Slot, trial: Trial, found: Found) -> None:
    """The folder cannot be written to at all."""
    with small_disk(slot, trial, found) as folder:
        _mount(folder, "remount,ro")
        ended = qtrack(folder, *RUN)
        _mount(folder, "remount,rw")
        found.hits.append("ended well" if ended.code == 0 else f"ended with {ended.code}")
        found.faults += ended.complaints(may_fail=True)
        if ended.code == 0:
            found.faults.append("it ran in a folder that cannot be written to")


@contextmanager
def small_disk(slot: Slot, trial: Trial, found: Found) -> Iterator[Path]:
    """A small file system with a trial's folder; at the end all is done again on it, and looked at."""
    folder = slot.lab.root / trial.name
    folder.mkdir()
    _mount(folder, f"size={TMPFS_MB}m")
    try:
        yield slot.lab.folder(trial.name, at=folder)
        slot.completed(folder, found)
        found.verdict = audit(Store(folder / "mlflow.db"), folder, slot.known)
        if found.faults + found.verdict.faults:
            shutil.copytree(folder, folder.with_name(f"{folder.name}-kept"))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def may_mount() -> bool:
    """Does this machine let us have a small file system?"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], stderr=subprocess.DEVNULL)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def _fill_up(ballast: Path) -> None:
    """To the last byte."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:  # full
                continue


KINDS: dict[str, Callable[[Slot, Trial, Found], None]] = {
    "killed": kill,
    "killed twice": lambda *a: kill(*a, times=2),
    "killed three times": lambda *a: kill(*a, times=3),
    "server killed, back soon": lambda *a: stop(*a, SIGKILL, True),
    "server killed, back later": lambda *a: stop(*a, SIGKILL, False),
    "server stopped, back soon": lambda *a: stop(*a, SIGTERM, True),
    "server stopped, back later": lambda *a: stop(*a, SIGTERM, False),
    "connections cut": lambda *a: spoil(*a, "cut", "torn"),
    "done, but not heard": lambda *a: spoil(*a, "unheard"),
    "500, 503": lambda *a: spoil(*a, "500", "503"),
    "done, but 500": lambda *a: spoil(*a, "500 once done"),
    "slow answers": lambda *a: spoil(*a, "slow"),
    "disk full": fill,
    "file too large": limit,
    "read-only folder": lock,
}
KILLS = ("killed", "killed", "killed", "killed twice", "killed", "killed", "killed three times")
LOSSES = (
    *("server killed, back soon", "done, but not heard", "500, 503", "server stopped, back later"),
    *("connections cut", "done, but 500", "server killed, back later", "server stopped, back soon"),
    *("slow answers",),
)
DISKS = ("disk full", "file too large", "disk full", "disk full", "read-only folder")


def trials(kills: int, losses: int, disks: int, seed: int) -> list[Trial]:
    """All that are to come, in an order in which the slow ones are spread."""
    chance, made = random.Random(seed), []
    of_disks = DISKS if may_mount() else ("file too large",)
    for count, kinds in ((kills, KILLS), (losses, LOSSES), (disks, of_disks)):
        moments = [(index + chance.random()) / count for index in range(count)]
        chance.shuffle(moments)
        made += [
            Trial(index, kinds[index % len(kinds)], moment, chance.getrandbits(32))
            for index, moment in enumerate(moments)
        ]
    chance.shuffle(made)
    return made


Tell = Callable[[Found, int], None]


def conduct(lab: Lab, planned: list[Trial], tell: Tell = lambda *_: None) -> list[Found]:
    """All trials, so many at once as there are slots, each in a process that itself has no threads."""
    context = multiprocessing.get_context("fork")
    following, results = context.Value("i", 0), context.SimpleQueue()
    slots = [context.Process(target=_work, args=(lab, n, planned, following, results)) for n in range(SLOTS)]
    for slot in slots:
        slot.start()
    found: list[Found] = []
    while len(found) < len(planned):
        found.append(results.get())
        tell(found[-1], len(found))
    for slot in slots:
        slot.join()
    return found


def _work(lab: Lab, number: int, planned: list[Trial], following: Any, results: SimpleQueue[Found]) -> None:
    slot = Slot(lab, number)
    try:
        while True:
            with following:
                index, following.value = following.value, following.value + 1
            if index >= len(planned):
                return
            results.put(slot.tried(planned[index]))
    finally:
        slot.server.stop()


# ---- The table ----

HEADER = (
    *("fault", "trials", "completed", "stages once", "points lost", "doubled", "database faults"),
    *("digests equal", "failures", "s each"),
)


def rows(found: list[Found]) -> Iterator[tuple[str, ...]]:
    """One for each kind of fault, and one for all."""
    for kind in (*KINDS, "all"):
        of_kind = [one for one in found if kind in (one.trial.kind, "all")]
        if of_kind:
            yield (
                kind,
                *map(str, _counts(of_kind)),
                f"{sum(one.seconds for one in of_kind) / len(of_kind):.1f}",
            )


def _counts(found: list[Found]) -> tuple[int, ...]:
    verdicts = [one.verdict for one in found]
    return (
        len(found),
        sum(one.completed for one in found),
        sum(one.once for one in verdicts),
        sum(one.lost for one in verdicts),
        sum(one.doubled for one in verdicts),
        sum(not one.whole for one in verdicts),
        sum(one.equal for one in verdicts),
        sum(bool(one.faults) for one in found),
    )


def spread(found: list[Found], kinds: Iterable[str]) -> str:
    """How often what was going on, or how the disturbed command ended."""
    hits = Counter(hit for one in found if one.trial.kind in kinds for hit in one.hits if hit)
    return f"{sum(hits.values())}: " + ", ".join(f"{name} {count}" for name, count in hits.most_common())


def _tell(total: int) -> Tell:
    began = time.monotonic()

    def tell(found: Found, done: int) -> None:
        left = (time.monotonic() - began) / done * (total - done)
        said = "; ".join(found.faults) or "nothing lost"
        where = f" (kept: {found.folder})" if found.folder else ""
        print(
            f"{done}/{total}, {left:.0f} s left. {found.trial.name}: {said}{where}",
            file=sys.stderr,
            flush=True,
        )

    return tell


def main() -> int:
    from numerics import machine, markdown, plain

    parser = argparse.ArgumentParser(description="Is anything lost or doubled when things break?")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--losses", type=int, default=50, help="of the server")
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="NAME", help="this trial alone")
    parser.add_argument("--markdown", action="store_true", help="the table in Markdown")
    asked = parser.parse_args()
    began, root = time.monotonic(), Path(tempfile.mkdtemp(prefix="qtrack-faults-"))
    lab = Lab(root)
    print(f"an undisturbed run takes {lab.seconds:.1f} s; trials in {root}", file=sys.stderr, flush=True)
    planned = trials(asked.kills, asked.losses, asked.disks, asked.seed)
    planned = [trial for trial in planned if asked.only in (None, trial.name)]
    found = conduct(lab, planned, _tell(len(planned)))
    print(machine(), end="\n\n")
    print((markdown if asked.markdown else plain)(HEADER, rows(found)))
    print(f"\nkills, {spread(found, KILLS)}")
    print(f"runs that lost their server, {spread(found, LOSSES)}")
    print(f"runs that lost their disk, {spread(found, DISKS)}")
    print(f"undisturbed {lab.seconds:.1f} s, in all {time.monotonic() - began:.0f} s, seed {asked.seed}")
    failed = any(one.faults for one in found)
    if not failed:
        shutil.rmtree(root)
    return 1 if failed else 0


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])
    sys.exit(main())
