"""A saved model as MLflow's ``python_function``: numpy in, numpy out, on the recipe's engine.

MLflow imports this module by the name in ``MLmodel`` and calls ``_load_pyfunc``: other files rely on both
names. No tensor is unpickled; the structure comes from the task, which is the user's own code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from mlflow.models import Model
from torch import Tensor, nn

from qtrack.errors import DataError, StoreError, TaskError
from qtrack.ledger import models
from qtrack.recipe import Recipe
from qtrack.task import Inputs, Task, load_recorded_task, load_task

if TYPE_CHECKING:
    import numpy as np

    Arrays = np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]

FLAVOR, RECORDED, TASK = "python_function", "recorded", "task"
TASK_VARIABLE = "QTRACK_TASK"
_ENGINE = Lock()
"""torch has one quantized engine for the whole process."""


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry.

    Raises TaskError where the task is not found, and StoreError where files or digests are not as recorded.
    """
    folder = Path(path)
    recorded = _recorded(folder)
    model = models.load_checked(_task(str(recorded.get(TASK, ""))), folder, recorded)
    return Predictor(model, models.recipe_of(folder), models.example_of(folder))


def _recorded(folder: Path) -> Mapping[str, Any]:
    try:
        found = Model.load(str(folder)).flavors[FLAVOR][RECORDED]
    except Exception as error:  # whatever the file holds
        raise StoreError(f"the saved model is corrupt: MLmodel has no {RECORDED} ({error!r:.200})") from error
    return found if isinstance(found, Mapping) else {}


def _task(recorded: str) -> Task:
    named = os.environ.get(TASK_VARIABLE)
    try:
        return load_task(named) if named else load_recorded_task(recorded)
    except TaskError as error:
        advice = f"work in its folder, or name it: {TASK_VARIABLE}=path/to/file.py:Class"
        raise TaskError(f"the model needs its task for its structure; {error}; {advice}") from error


class Predictor:
    """What MLflow calls: a model with the engine that its recipe names."""

    def __init__(self, model: nn.Module, recipe: Recipe, example: Inputs) -> None:
        self.model = model.eval()
        self.recipe = recipe
        self.example = example

    def predict(self, data: Any) -> Arrays:
        """Outputs for a batch: an array, or arrays by input name; MLflow makes these of data frames."""
        inputs = self._inputs(data)
        with _ENGINE, models.engine_of(self.recipe), torch.no_grad():
            return as_arrays(models.run(self.model, inputs))

    def _inputs(self, data: Any) -> Inputs:
        if not isinstance(data, Mapping):
            if len(self.example) != 1:
                raise DataError(f"the model takes {len(self.example)} inputs: give a dict of arrays by name")
            data = dict.fromkeys(self.example, data) if isinstance(self.example, dict) else {"": data}
        tensors = {name: torch.tensor(values) for name, values in data.items()}
        return tensors if isinstance(self.example, dict) else tuple(tensors.values())


def as_arrays(output: Any) -> Arrays:
    """A tensor as an array; several by their names, or as ``output_0``, ``output_1``, ..."""
    if isinstance(output, Tensor):
        array: Arrays = output.detach().cpu().numpy()
        return array
    named = output if isinstance(output, Mapping) else {f"output_{i}": part for i, part in enumerate(output)}
    return {str(name): part.detach().cpu().numpy() for name, part in named.items()}
