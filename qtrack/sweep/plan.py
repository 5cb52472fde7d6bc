"""The sweep file: which pipelines, on which tasks, with which seeds and engines."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from qtrack.errors import PipelineError
from qtrack.pipeline import Plan, read_plan
from qtrack.reading import faults_of, load_yaml, read_text
from qtrack.recipe import Frozen
from qtrack.sources import defining, digest_of_files, imported
from qtrack.task import load_task


class Entry(Frozen):
    """One job: a pipeline file beside this one, and what is to be different in it."""

    pipeline: str = Field(min_length=1)
    task: str | None = Field(None, description="instead of the pipeline's own")
    seed: int | None = None
    engine: str | None = None
    set: dict[str, Any] = Field(default_factory=dict, description="as qtrack run --set: {target.max_drop: 0}")

    @property
    def settings(self) -> dict[str, Any]:
        """What it overrides in the pipeline file."""
        named = {"task": self.task, "recipe.seed": self.seed, "recipe.engine": self.engine}
        return {name: value for name, value in named.items() if value is not None} | self.set

    @property
    def name(self) -> str:
        """For people."""
        told = [f"seed {self.seed}"] if self.seed is not None else []
        told += [self.engine] if self.engine else []
        told += [f"{key}={value}" for key, value in self.set.items()]
        return " ".join([Path(self.pipeline).stem, *([self.task] if self.task else []), *told])


class Grid(Frozen):
    """Every combination of these."""

    pipelines: tuple[str, ...] = Field(min_length=1)
    tasks: tuple[str | None, ...] = (None,)
    seeds: tuple[int | None, ...] = (None,)
    engines: tuple[str | None, ...] = (None,)

    def entries(self) -> Iterator[Entry]:
        """In the order of the file, the engines changing fastest."""
        for choice in itertools.product(self.pipelines, self.tasks, self.seeds, self.engines):
            pipeline, task, seed, engine = choice
            yield Entry(pipeline=pipeline, task=task, seed=seed, engine=engine)


class SweepFile(Frozen):
    """A sweep file: a grid, a list of jobs, or both."""

    name: str = Field(min_length=1)
    grid: Grid | None = None
    jobs: tuple[Entry, ...] = ()

    @model_validator(mode="after")
    def _has_jobs(self) -> SweepFile:
        if not self.entries():
            raise ValueError("name at least one job: grid: {pipelines: [digits.yaml], seeds: [0, 1, 2]}")
        return self

    def entries(self) -> list[Entry]:
        """All jobs, those of the grid first; one that is there twice is one."""
        found = [*(self.grid.entries() if self.grid else ()), *self.jobs]
        return list({json.dumps(entry.model_dump(mode="json")): entry for entry in found}.values())


@dataclass(frozen=True)
class Planned:
    """A job that was checked."""

    entry: Entry
    path: Path
    """Of the pipeline file."""
    plan: Plan

    @cached_property
    def code(self) -> str:
        """A digest of the task's files."""
        task = defining([type(self.plan.task)])
        return digest_of_files(task | imported(task))

    @cached_property
    def key(self) -> str:
        """Over what the job does, as far as files say it: the same job of an edited pipeline is another."""
        told = [self.plan.source, self.code, self.entry.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was checked, with all that it names."""

    name: str
    jobs: tuple[Planned, ...]

    @property
    def id(self) -> str:
        """The same for the same jobs, so that a sweep can be resumed."""
        told = "".join(job.key for job in self.jobs)
        return f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file and every pipeline that it names; raises PipelineError with all faults."""
    data = load_yaml(read_text(path, PipelineError), str(path), PipelineError)
    if not isinstance(data, dict):
        raise PipelineError(f"{path}: expected a mapping with the fields {', '.join(SweepFile.model_fields)}")
    try:
        file = SweepFile.model_validate(data)
    except ValidationError as error:
        raise PipelineError(faults_of(error, SweepFile, str(path))) from error
    jobs, faults, load = [], dict[str, None](), cache(load_task)
    for entry in file.entries():
        beside = path.parent / entry.pipeline
        try:
            jobs.append(Planned(entry, beside, read_plan(beside, entry.settings, load)))
        except PipelineError as error:
            faults |= dict.fromkeys(f"{path}: {entry.name}: {fault}" for fault in error.faults)
    if faults:
        raise PipelineError(list(faults))
    return Sweep(file.name, tuple(jobs))
