"""The pipeline file: which stages, on which task, towards which target.

The whole file is one model. Whatever is wrong with it, with the task it names or with the options of a stage
is found before anything runs, and reported together.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from qtrack.errors import InputError, PipelineError
from qtrack.reading import faults_of, load_yaml, read_text
from qtrack.recipe import Frozen, Module, Recipe
from qtrack.stages import STAGES, Target, absent, needed
from qtrack.task import Task, getattr_of, load_module, load_task

Load = Callable[[str, Path], Task]
MAX_THREADS = 1024
DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?", re.ASCII)


def further_name(stage: str, number: int) -> str:
    """What a stage's second answer, or its third, is called."""
    return f"{stage}.{number}"


class StageSpec(Frozen):
    """One entry of ``stages``: ``ptq``, ``qat: {epochs: 4}`` or ``mine.py:clip: {from: ptq, name: clip}``."""

    use: str = Field(min_length=1)
    name: str = Field(min_length=1)
    start: str | None = Field(None, description="name of the stage to start from; None: the one before")
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_entry(cls, entry: Any) -> Any:
        if isinstance(entry, str):
            entry = {entry: None}
        if not isinstance(entry, dict) or not entry:
            raise ValueError("write the stage's name, or its name with options: {qat: {epochs: 4}}")
        if "use" in entry:
            return entry
        if len(entry) != 1:
            raise ValueError(
                f"one stage per entry, found {', '.join(map(str, entry))}; indent its options below it"
            )
        ((use, options),) = entry.items()
        if options is not None and not isinstance(options, dict):
            raise ValueError(f"options of {use} must be a mapping, such as {{epochs: 4}}")
        options = dict(options or {})
        name = options.pop("name", str(use).rpartition(":")[2])
        return {"use": use, "name": name, "start": options.pop("from", None), "options": options}


class Pipeline(Frozen):
    """A pipeline file."""

    name: str = Field(min_length=1)
    task: str = Field(description="package.module:Class, or path/to/file.py:Class beside this file")
    target: Target = Target()
    recipe: Recipe = Recipe()
    stages: tuple[StageSpec, ...]
    until: Literal["all", "target"] = "all"
    threads: int | None = Field(
        None, ge=1, le=MAX_THREADS, description="torch's threads; None: as torch finds best"
    )
    device: str = Field(
        "cpu", description="cpu, cuda or cuda:N, for all that computes in float; integers are the CPU's"
    )

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, name: str) -> str:
        if not DEVICE.fullmatch(name):
            raise ValueError(f"{name!r} is not one of cpu, cuda, cuda:N")
        return name

    @model_validator(mode="after")
    def _names_are_known(self) -> Pipeline:
        if not self.stages:
            raise ValueError("stages: name at least one, such as float")
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(
                    f"stages: two stages are called {stage.name!r}; give one another name: in its options"
                )
            of, _, number = stage.name.rpartition(".")
            if of in {other.name for other in self.stages} and number.isdecimal():
                raise ValueError(
                    f"stages: {stage.name!r} is what a further answer of {of!r} is called; "
                    "give it another name: in its options"
                )
            if stage.start is not None and stage.start not in seen:
                known = ", ".join(seen) or "none"
                raise ValueError(
                    f"stages: {stage.name} starts from {stage.start!r}, not a stage before it ({known})"
                )
            seen.add(stage.name)
        return self


@dataclass(frozen=True)
class Plan:
    """A pipeline that was checked, with all that it names loaded."""

    pipeline: Pipeline
    task: Task
    stages: dict[str, Any]
    """The function of each stage, by the stage's name."""
    source: str
    """The text of the pipeline file."""
    folder: Path = field(default_factory=Path)


def read_plan(path: Path, settings: dict[str, Any] | None = None, load: Load = load_task) -> Plan:
    """Read, override (``{"target.max_drop": 0.02}``) and check a pipeline file; raises PipelineError.

    ``load`` gives the task by its name and the file's folder, for whoever keeps tasks.
    """
    text = read_text(path, PipelineError)
    data = load_yaml(text, str(path), PipelineError)
    if not isinstance(data, dict):
        raise PipelineError(f"{path}: expected a mapping with the fields {', '.join(Pipeline.model_fields)}")
    for key, value in (settings or {}).items():
        _set(data, key, value)
    return _check(data, text, path, load)


def plan_of(pipeline: Pipeline, task: Task, folder: Path | None = None) -> Plan:
    """The same for a pipeline built in Python, with a task at hand; raises PipelineError."""
    found = _Findings("pipeline", folder or Path())
    found.task = task
    return found.plan(pipeline, "")


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise PipelineError(f"--set {key}: {parent!r} has no fields of its own")
    data[last] = value


def _check(data: dict[str, Any], text: str, path: Path, load: Load) -> Plan:
    found = _Findings(str(path), path.parent)
    pipeline: Pipeline | None = None
    try:
        pipeline = Pipeline.model_validate(data)
    except ValidationError as error:
        found.faults += faults_of(error, Pipeline, str(path))
    found.load_task(data.get("task"), load)
    return found.plan(pipeline or _readable_parts(data), text)


def _readable_parts(data: dict[str, Any]) -> Pipeline:
    """What can be understood of a faulty file, so that the faults of the rest are found as well."""

    def read(name: str, part: Any) -> Any:
        try:
            annotation: Any = Pipeline.model_fields[name].annotation
            return TypeAdapter(annotation).validate_python(part)
        except ValidationError:
            return None

    entries = data.get("stages") if isinstance(data.get("stages"), list) else []
    stages = tuple(spec for entry in entries or [] for spec in read("stages", [entry]) or ())
    return Pipeline.model_construct(
        name="",
        task="",
        target=read("target", data.get("target", {})) or Target(),
        recipe=read("recipe", data.get("recipe", {})) or Recipe(),
        stages=stages,
    )


class _Findings:
    """Gathers the faults of a file and of everything that it names."""

    def __init__(self, where: str, folder: Path) -> None:
        self.where = where
        self.folder = folder
        self.faults: list[str] = []
        self.task: Task | None = None

    def load_task(self, reference: Any, load: Load) -> None:
        if not isinstance(reference, str):
            return
        try:
            self.task = load(reference, self.folder)
        except InputError as error:
            self.faults.append(f"{self.where}: {error}")

    def plan(self, pipeline: Pipeline, source: str) -> Plan:
        stages = {spec.name: self._stage(spec, i) for i, spec in enumerate(pipeline.stages)}
        if self.task is not None:
            self._check_target(pipeline.target, self.task)
            self._check_needs(pipeline, stages, self.task)
            self._check_names(pipeline.recipe, self.task)
        self._check_backend(pipeline.recipe)
        if self.faults or self.task is None:
            raise PipelineError(self.faults)
        return Plan(pipeline, self.task, stages, source, self.folder)

    def _stage(self, spec: StageSpec, index: int) -> Any:
        at = f"{self.where}: stages[{index}]"
        stage = self._function(spec.use, at)
        if stage is not None:
            missing = absent(stage)
            self.faults += [f"{at}: {spec.use}: {missing}"] if missing else []
            self.faults += [f"{at}.{fault}" for fault in _option_faults(stage, spec)]
        return stage

    def _function(self, use: str, at: str) -> Any:
        if ":" not in use:
            if use not in STAGES:
                self.faults.append(
                    f"{at}: unknown stage {use!r}; known stages are {', '.join(STAGES)}, or module:function"
                )
            return STAGES.get(use)
        source, _, name = use.rpartition(":")
        try:
            return getattr_of(load_module(source, self.folder, f"stage {use!r}"), name, f"stage {use!r}")
        except InputError as error:
            self.faults.append(f"{at}: {error}")
            return None

    def _check_target(self, target: Target, task: Task) -> None:
        if target.metric not in (None, task.metric):
            self.faults.append(
                f"{self.where}: target.metric: {target.metric!r} has no score per sample, which an interval "
                f"needs; the mean score of {type(task).__name__} is called {task.metric!r}"
            )

    def _check_needs(self, pipeline: Pipeline, stages: dict[str, Any], task: Task) -> None:
        wanted = [
            (f"stages[{i}] ({spec.name})", needed(stages[spec.name], spec.options))
            for i, spec in enumerate(pipeline.stages)
        ]
        if pipeline.recipe.training:
            wanted.append(("recipe.training", ("training", "loss")))
        if pipeline.recipe.calibration.source == "training":
            wanted.append(("recipe.calibration.source", ("training",)))
        for asker, methods in wanted:
            missing = [f"{method}()" for method in methods if not task.offers(method)]
            if missing:
                self.faults.append(
                    f"{self.where}: {asker} needs {' and '.join(missing)}, which {type(task).__name__} lacks"
                )

    def _check_backend(self, recipe: Recipe) -> None:
        from qtrack.backends import capabilities  # the package imports torch

        self.faults += capabilities.faults(recipe, f"{self.where}: recipe")

    def _check_names(self, recipe: Recipe, task: Task) -> None:
        """Modules that the recipe names; calls of functions are known once the model is traced."""
        named = [(i, override) for i, override in enumerate(recipe.overrides) if not override.names_calls]
        if not named and not recipe.non_traceable:
            return
        modules = [
            Module(name, type(module).__name__) for name, module in task.model().named_modules() if name
        ]
        for i, override in named:
            if not any(override.matches(module) for module in modules):
                at = f"{self.where}: recipe.overrides[{i}]"
                self.faults.append(f"{at}: {override} matches no layer of {type(task).__name__}'s model")
        for i, name in enumerate(recipe.non_traceable):
            if name not in {module.name for module in modules}:
                at = f"{self.where}: recipe.non_traceable[{i}]"
                self.faults.append(f"{at}: {type(task).__name__}'s model has no module {name!r}")


def _option_faults(stage: Any, spec: StageSpec) -> Iterator[str]:
    parameters = inspect.signature(stage).parameters.values()
    known = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    hints = get_type_hints(stage, include_extras=True)
    for name, value in spec.options.items():
        if name not in known:
            options = ", ".join((*known, "from", "name"))
            yield f"{spec.name}: unknown option {name!r}; known options are {options}"
            continue
        try:
            TypeAdapter(hints.get(name, Any)).validate_python(value)
        except ValidationError as error:
            yield f"{spec.name}.{name}: {value!r}: {error.errors()[0]['msg']}"
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in spec.options:
            yield f"{spec.name}.{name}: is missing"
