"""What the user brings: a trained float model and the data to calibrate, judge and train it with."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qtrack.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = Any
Inputs = tuple[Any, ...] | dict[str, Any]
Split = Literal["calibration", "validation", "test", "training"]


class Task(ABC):
    """A float model with its data; subclass it and name it in a pipeline file.

    A batch is whatever the data loader yields. The defaults understand ``(inputs, labels)``; others override
    ``inputs``, ``labels`` and ``predictions`` or ``score``. Every split but training must yield the same
    samples in the same order each time it is asked for.

    Where the pipeline's device is a GPU, batches are moved there as they come; tensors that ``loss`` or
    ``score`` hold themselves are theirs to move: ``.to(output.device)``. ``evaluate`` gets the model on the
    CPU.
    """

    name: ClassVar[str]
    """Becomes the MLflow experiment."""

    metric: ClassVar[str] = "accuracy"
    """What the mean of ``score`` over a split is called."""

    @abstractmethod
    def model(self) -> nn.Module:
        """The trained float model, fresh at each call."""

    @abstractmethod
    def calibration(self) -> Iterable[Batch]:
        """Observers see this, and layers are compared on it."""

    @abstractmethod
    def validation(self) -> Iterable[Batch]:
        """Decisions are taken on this."""

    def test(self) -> Iterable[Batch]:
        """Optional: a final check that no decision has seen."""
        raise TaskError(f"{type(self).__name__} has no test()")

    def training(self) -> Iterable[Batch]:
        """Optional, needed by QAT: one epoch, shuffled by torch's own generator, which the recipe seeds."""
        raise TaskError(f"{type(self).__name__} has no training(), which QAT needs")

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Optional, needed by QAT: mean loss of a batch, to be minimised."""
        raise TaskError(f"{type(self).__name__} has no loss(output, batch), which QAT needs")

    def inputs(self, batch: Batch) -> Inputs:
        """What the model is called with: a tuple of positional or a dict of keyword arguments."""
        return (batch[0],)

    def labels(self, batch: Batch) -> Tensor | None:
        """One class index per sample, or None where there are no classes."""
        return batch[1]  # type: ignore[no-any-return]  # a batch is the user's own type

    def predictions(self, output: Any, batch: Batch) -> Tensor | None:
        """One class index per sample, or None where the output is no classification."""
        return output.argmax(-1)  # type: ignore[no-any-return]  # so is the model's output

    def score(self, output: Any, batch: Batch) -> Tensor:
        """One number per sample, higher is better; by default 1 where the top class is right, else 0."""
        labels, predictions = self.labels(batch), self.predictions(output, batch)
        if labels is None or predictions is None:
            raise TaskError(f"{type(self).__name__} has no labels or predictions: it needs its own score()")
        return (predictions == labels).float()

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Optional: corpus metrics, such as F1, under names of their own; recorded beside the mean score."""
        return {}

    def offers(self, method: str) -> bool:
        """Has the subclass this optional method?"""
        return getattr(type(self), method) is not getattr(Task, method)


def load_task(reference: str, folder: Path | None = None) -> Task:
    """The task named as ``package.module:Class`` or, relative to ``folder``, ``path/to/file.py:Class``."""
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise TaskError(f"task {reference!r}: write package.module:Class or path/to/file.py:Class")
    return _instance(getattr_of(load_module(source, folder, "task"), name, f"task {reference!r}"), reference)


def reference_to(task: Task) -> str:
    """The name by which another process loads the same: in its file, or in a package's module."""
    module, name = inspect.getmodule(type(task)), type(task).__qualname__
    if module is not None and module.__package__:
        return f"{module.__name__}:{name}"
    try:
        return f"{Path(inspect.getfile(type(task))).resolve()}:{name}"
    except (OSError, TypeError) as cause:
        raise TaskError(f"the task {name} has no file from which another process could load it") from cause


def load_recorded_task(reference: str) -> Task:
    """The task of a record: its file is looked for in this folder and one level below it.

    A record is not to choose code from elsewhere; raises TaskError where it does.
    """
    source, _, name = reference.rpartition(":")
    if source.endswith(".py"):
        if Path(source).is_absolute() or ".." in Path(source).parts:
            raise TaskError(f"task {reference!r} is recorded outside of this folder; name it yourself")
        source = str(located(source) or source)
    return load_task(f"{source}:{name}")


def located(source: str) -> Path | None:
    """The file of a recorded task: in this folder, or the only one of that name one level below it."""
    found = [Path(source)] if Path(source).is_file() else sorted(Path().glob(f"*/{source}"))
    return found[0] if len(found) == 1 else None


def load_module(source: str, folder: Path | None, what: str) -> ModuleType:
    """Import a module by dotted name, or by the path of its file; raises TaskError in one line."""
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        return _module_from_file((folder or Path()) / source)
    except FileNotFoundError as cause:
        raise TaskError(f"{what}: {cause.filename}: no such file") from cause
    except Exception as cause:  # whatever the user's module raises while it is imported
        raise TaskError(f"{what}: cannot import {source}: {type(cause).__name__}: {cause}") from cause


def getattr_of(module: ModuleType, name: str, what: str) -> Any:
    """A module's attribute, or one line about what it has instead."""
    try:
        return getattr(module, name)
    except AttributeError as cause:
        public = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise TaskError(f"{what}: {module.__name__} has no {name!r}; it has {public}") from cause


def _module_from_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # so that a task may import files beside it
    try:
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _instance(cls: Any, reference: str) -> Task:
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise TaskError(
            f"task {reference!r}: {getattr(cls, '__name__', cls)} is not a subclass of qtrack.Task"
        )
    missing = sorted(cls.__abstractmethods__)
    if missing:
        raise TaskError(f"task {reference!r}: {cls.__name__} lacks {', '.join(f'{m}()' for m in missing)}")
    if not isinstance(getattr(cls, "name", None), str):
        raise TaskError(f"task {reference!r}: {cls.__name__} lacks name, a string that names the experiment")
    return cls()
