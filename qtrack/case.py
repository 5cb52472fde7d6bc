"""What is to be diagnosed: a recorded run, or the first recipe of a pipeline that quantizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtrack.engine import at_hand
from qtrack.errors import InputError, PipelineError
from qtrack.finding import Diagnosis
from qtrack.ledger import Ledger
from qtrack.ledger.files import plain
from qtrack.pipeline import Pipeline, read_plan
from qtrack.recipe import Recipe
from qtrack.rewriting import first_quantized
from qtrack.task import Task

FLOAT, RECIPE = "float", "recipe"


@dataclass(frozen=True, eq=False)
class Case:
    """A recipe with what it is executed on, and where it comes from."""

    subject: str
    """As the user named it."""
    stage: str
    recipe: Recipe
    task: Task
    pipeline: Pipeline
    task_reference: str
    """The task's file as it is reached from here, or its module."""
    threads: int | None
    device: str
    run_id: str | None = None
    """None where it is no run."""


def recorded_case(ledger: Ledger, run: str, task: Task, given: Task | str | None = None) -> Case:
    """A run, as it was executed, on its task wherever that was given; raises InputError on a float model."""
    recorded, pipeline = ledger.recorded(run), ledger.pipeline(run)
    if not recorded.recipe.quantizes:
        raise InputError(f"the run {run!r} quantizes nothing: name one that does")
    return Case(
        run,
        recorded.stage,
        recorded.recipe,
        task,
        pipeline,
        given if isinstance(given, str) else pipeline.task,
        recorded.threads,
        at_hand(recorded.device),
        recorded.run_id,
    )


def is_pipeline(what: Path | str) -> bool:
    """Is it a file, and none of the names that runs have?"""
    return Path(what).suffix in (".yaml", ".yml") and Path(what).is_file()


def planned_case(path: Path, task: Task | str | None = None) -> Case:
    """A pipeline file's first recipe that quantizes, with its own task unless one is given."""
    plan = read_plan(path, {"task": _absolute(task)} if isinstance(task, str) else None)
    try:
        spec, recipe = first_quantized(plan)
    except PipelineError as error:
        raise PipelineError([f"{path}: {fault}" for fault in error.faults]) from error
    pipeline = plan.pipeline
    found = task if isinstance(task, Task) else plan.task
    reference = _placed(pipeline.task, path.parent)
    return Case(str(path), spec.name, recipe, found, pipeline, reference, pipeline.threads, pipeline.device)


def _absolute(task: str) -> str:
    return _placed(task, Path.cwd())


def _placed(task: str, folder: Path) -> str:
    """A task whose file is named relative to a folder, as it is reached from here; a module as it is."""
    source, _, name = task.rpartition(":")
    return f"{(folder / source).as_posix()}:{name}" if source.endswith(".py") else task


def remedies_of(case: Case, found: Diagnosis, task_reference: str) -> dict[str, Any]:
    """A pipeline that executes the diagnosed recipe, and then each remedy from there; as plain data."""
    names = {FLOAT}
    start = _unused(case.stage, names)
    stages: list[Any] = [FLOAT, {RECIPE: {"name": start}}]
    for remedy in found.remedies:
        usual = remedy.stage.rpartition(":")[2]
        name = _unused(usual, names)
        named = {} if name == usual else {"name": name}
        stages.append({remedy.stage: {**named, "from": start, **plain(remedy.options)}})
    changes = {"task": task_reference, "recipe": case.recipe.model_dump(mode="json"), "stages": stages}
    return case.pipeline.model_dump(mode="json", exclude_none=True) | changes


def _unused(name: str, names: set[str]) -> str:
    """The name, or with a number after it the first that no other stage has."""
    found, number = name, 2
    while found in names:
        found, number = f"{name}_{number}", number + 1
    names.add(found)
    return found
