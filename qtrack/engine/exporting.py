"""A recorded model as a ``.pt2`` file, which runs without qtrack, task or recipe.

The kernels' packed weights do not export, and torchao's tensors would need torchao again. Such a model is
therefore written in its reference form: the recorded integers and scales, with the arithmetic between them in
float. How far its outputs are from those of the kernels is measured, because it is not zero.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from qtrack.backends import load_backend
from qtrack.backends.engines import using_engine
from qtrack.backends.export import exported
from qtrack.backends.layer_weights import is_packed
from qtrack.backends.messages import unheard
from qtrack.data import size_of
from qtrack.engine.evaluation import call
from qtrack.engine.execution import _first_batch, settled
from qtrack.errors import BackendError, InputError
from qtrack.recipe import Recipe
from qtrack.task import Batch, Inputs, Task
from qtrack.transforms import transformed

ENDING = ".pt2"


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its outputs are from the recorded model's on an example."""

    form: Literal["model", "reference"]
    """reference: the integer arithmetic in float, without the integer kernels."""
    bit_identical: bool
    max_abs_difference: float
    equal_predictions: float | None
    """Share of the samples; None where the task has no predictions."""
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def export_model(task: Task, recipe: Recipe, model: nn.Module, path: Path) -> Exported:
    """Write a recorded model for any batch size; it counts once read back and equal, bit for bit.

    Raises BackendError where torch cannot export it, and InputError where the file cannot be written.
    """
    if path.suffix != ENDING:
        raise InputError(f"{path}: the name of an exported model must end in {ENDING}")
    recipe = settled(recipe)
    batch = _first_batch(task)
    inputs = task.inputs(batch)
    with using_engine(recipe.engine), torch.no_grad(), unheard():
        kernels = _has_kernels(recipe, model)
        written = _reference(task, recipe, model, inputs) if kernels else model
        expected = call(written.eval(), inputs, "the model refuses its example")
        with _replacing(path) as file:
            torch.export.save(exported(written, inputs), file)
            loaded = torch.export.load(file).module()
            if not _equal(expected, call(loaded, inputs, "the exported model refuses the example")):
                raise BackendError("the exported model, read back, gives other outputs than before")
        recorded = call(model.eval(), inputs, "the model refuses its example")
        return _compared(task, batch, recorded, expected, "reference" if kernels else "model")


def _has_kernels(recipe: Recipe, model: nn.Module) -> bool:
    """Does it hold what runs only in the library that made it?"""
    static = any(scheme.mode == "static" for scheme in recipe.schemes())
    return static or any(map(is_packed, model.parameters()))


def _reference(task: Task, recipe: Recipe, model: nn.Module, inputs: Inputs) -> nn.Module:
    backend = load_backend(recipe.backend)
    with torch.enable_grad():  # a task may train its model each time
        floating = task.model().eval()
    prepared = backend.prepare(transformed(floating, recipe, inputs), recipe, inputs)
    call(prepared.model.eval(), inputs, "the prepared model refuses its example")
    return backend.reference_of(prepared, model)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside it that takes the path's place at the end, if all goes well."""
    try:
        with tempfile.TemporaryDirectory(prefix=".qtrack-", dir=path.parent) as folder:
            file = Path(folder) / path.name
            yield file
            os.replace(file, path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def _equal(first: Any, second: Any) -> bool:
    pairs = zip(tree_flatten(first)[0], tree_flatten(second)[0], strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def _compared(
    task: Task, batch: Batch, recorded: Any, written: Any, form: Literal["model", "reference"]
) -> Exported:
    leaves = zip(tree_flatten(recorded)[0], tree_flatten(written)[0], strict=True)
    apart = [float((a - b).abs().max()) for a, b in leaves if isinstance(a, Tensor) and a.is_floating_point()]
    was, now = task.predictions(recorded, batch), task.predictions(written, batch)
    return Exported(
        form=form,
        bit_identical=_equal(recorded, written),
        max_abs_difference=max(apart, default=0.0),
        equal_predictions=None if was is None or now is None else float((was == now).double().mean()),
        samples=size_of(batch),
    )
