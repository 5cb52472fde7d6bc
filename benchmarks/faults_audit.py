"""What must hold of a store after a fault and a second run, read straight from its database and files."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from faults_lab import STAGES

DIGESTS = ("recipe", "parameters", "behaviour")
MUST_PARSE = ("layers.json", "outcome.json", "fingerprint.json", "environment.json")
TORSO = ".artifact.uploading."
"""What a killed server of MLflow's leaves of a file on its way, under a name kept for that."""
RUNS = """
SELECT run_uuid, status, artifact_uri FROM runs JOIN experiments USING (experiment_id)
WHERE experiments.name = ? ORDER BY start_time
"""


@dataclass(frozen=True)
class Recorded:
    """A run as the store holds it."""

    id: str
    status: str
    files: Path
    tags: Mapping[str, str]
    points: Counter[tuple[str, int]]

    @property
    def stage(self) -> str:
        return self.tags.get("qtrack.stage", "")

    @cached_property
    def paths(self) -> frozenset[str]:
        files = [path for path in self.files.rglob("*") if path.is_file()]
        return frozenset(str(path.relative_to(self.files)) for path in files if TORSO not in path.name)

    @cached_property
    def digests(self) -> tuple[Any, ...]:
        try:
            found = json.loads((self.files / "fingerprint.json").read_text())
        except (OSError, ValueError):
            return ()
        return tuple(found.get(name) for name in DIGESTS)


@dataclass(frozen=True)
class Store:
    """A database and where its artifacts lie."""

    database: Path
    experiment: str = "faults"
    artifacts: Path | None = None
    """Of a server; None where the runs say themselves."""

    def runs(self) -> list[Recorded]:
        """All of the experiment, the oldest first."""
        with closing(sqlite3.connect(self.database, timeout=30)) as database:
            return [
                self._run(database, *row) for row in database.execute(RUNS, (self.experiment,)).fetchall()
            ]

    def _run(self, database: sqlite3.Connection, run: str, status: str, uri: str) -> Recorded:
        tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run,)).fetchall())
        points = database.execute("SELECT key, step FROM metrics WHERE run_uuid = ?", (run,)).fetchall()
        relative = uri.removeprefix("mlflow-artifacts:/").lstrip("/")
        return Recorded(
            run, status, self.artifacts / relative if self.artifacts else Path(uri), tags, Counter(points)
        )

    def is_whole(self) -> bool:
        """Does SQLite find no fault with its file?"""
        with closing(sqlite3.connect(self.database, timeout=30)) as database:
            return database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@dataclass
class Verdict:
    """What was found after one trial."""

    once: bool = False
    """Is every stage finished exactly once?"""
    lost: int = 0
    doubled: int = 0
    whole: bool = False
    """Does SQLite find no fault?"""
    equal: bool = False
    """Are the digests of all stages those of the undisturbed run?"""
    faults: list[str] = field(default_factory=list)


def expected(store: Store) -> dict[str, Recorded]:
    """By stage, the runs of an undisturbed campaign."""
    found = {run.stage: run for run in store.runs() if run.stage}
    assert tuple(found) == STAGES, found
    assert found["fallback"].points["search/accuracy", 2] == 1, "the search makes too few probes"
    return found


def audit(store: Store, folder: Path, known: Mapping[str, Recorded]) -> Verdict:
    """Look at the store, and at the spool in the folder that the commands ran in."""
    runs = store.runs()
    finished = [run for run in runs if run.stage and run.status == "FINISHED"]
    pairs = [(run, known[run.stage]) for run in finished]
    verdict = Verdict(
        once=sorted(run.stage for run in finished) == sorted(STAGES),
        lost=sum(len(right.points.keys() - run.points.keys()) for run, right in pairs),
        doubled=sum(sum((run.points - right.points).values()) for run, right in pairs),
        whole=store.is_whole(),
        equal=all(run.digests == right.digests for run, right in pairs) and len(pairs) >= len(STAGES),
    )
    verdict.faults += _faults(verdict)
    verdict.faults += _faults_of_files(pairs)
    verdict.faults += _faults_of_campaign(runs, {run.id for run in finished})
    verdict.faults += [f"{run.stage or 'campaign'} is RUNNING" for run in runs if run.status == "RUNNING"]
    verdict.faults += [f"{path.name} waits in the spool" for path in waiting(folder)]
    return verdict


def waiting(folder: Path) -> list[Path]:
    """Records in the spool that the store has not all of."""
    headers = (folder / ".qtrack/spool").glob("*/run.json")
    return [path.parent for path in headers if not path.parent.name.startswith("done-")]


def _faults(verdict: Verdict) -> Iterator[str]:
    if not verdict.once:
        yield "not every stage is finished exactly once"
    if verdict.lost or verdict.doubled:
        yield f"{verdict.lost} points lost, {verdict.doubled} doubled"
    if not verdict.whole:
        yield "the database is corrupt"
    if not verdict.equal:
        yield "digests differ from the undisturbed run's"


def _faults_of_files(pairs: list[tuple[Recorded, Recorded]]) -> Iterator[str]:
    for run, right in pairs:
        if run.paths != right.paths:
            yield f"files of {run.stage} differ: {sorted(run.paths ^ right.paths)}"
        for name in MUST_PARSE:
            try:
                json.loads((run.files / name).read_text())
            except (OSError, ValueError) as error:
                yield f"{name} of {run.stage}: {error}"


def _faults_of_campaign(runs: list[Recorded], finished: set[str]) -> Iterator[str]:
    """The latest campaign must have every stage: as its own run, or as a reference to one that finished."""
    campaigns = [run for run in runs if run.tags.get("qtrack.kind") == "campaign"]
    if not campaigns:
        yield "there is no campaign"
        return
    latest = campaigns[-1]
    own = [run for run in runs if run.stage and run.tags["qtrack.campaign"] == latest.tags["qtrack.campaign"]]
    referred = [json.loads(text) for name, text in latest.tags.items() if name.startswith("qtrack.refers.")]
    stages = [(run.stage, run.id) for run in own] + [(one["stage"], one["run"]) for one in referred]
    if sorted(name for name, _ in stages) != sorted(STAGES) or latest.status != "FINISHED":
        yield f"the latest campaign is {latest.status} and has {sorted(name for name, _ in stages)}"
    if any(run not in finished for _, run in stages):
        yield "the latest campaign has stages that are not finished"
