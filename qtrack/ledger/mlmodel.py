"""Makes the folder of a saved model an MLflow model: ``MLmodel`` and the environment that it needs.

The requirements are written out: MLflow would load the model in another process to guess them.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.environment import _PythonEnv
from torch import Tensor, nn

from qtrack.data import size_of
from qtrack.environment import package_version
from qtrack.ledger.names import File
from qtrack.ledger.pyfunc import FLAVOR, RECORDED, TASK, Predictor, as_arrays

if TYPE_CHECKING:
    from qtrack.outcome import Outcome
    from qtrack.task import Inputs

REQUIREMENTS, ENVIRONMENT = "requirements.txt", "python_env.yaml"
PACKAGES = ("mlflow", "numpy", "pandas", "qtrack", "torch")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def describe(folder: Path, outcome: Outcome, output: Any, task: str, run_id: str | None) -> None:
    """Write what MLflow reads; ``output`` is the model's for its example, ``task`` how a pipeline names it.

    Raises ValueError or TypeError, with no file left behind, where inputs or output are not arrays by name.
    """
    signature = _signature(outcome, output)
    model = Model(artifact_path=File.MODEL, run_id=run_id or None, signature=signature)
    digests = {"recipe": outcome.recipe.digest, "parameters": outcome.digests["parameters"]}
    recorded = {TASK: task, **digests}
    model.add_flavor(
        FLAVOR,
        loader_module=Predictor.__module__,
        python_version=platform.python_version(),
        env={"virtualenv": ENVIRONMENT},
        **{RECORDED: recorded},
    )
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
    _PythonEnv.current().to_yaml(str(folder / ENVIRONMENT))
    model.save(str(folder / File.MLMODEL))


def requirements() -> list[str]:
    """The packages that loading needs, as they are here; torch's builds (``+cpu``) have one version."""
    found = {name: (package_version(name) or "").partition("+")[0] for name in PACKAGES}
    return [f"{name}=={version}" for name, version in found.items() if version]


def _signature(outcome: Outcome, output: Any) -> ModelSignature:
    example, size = outcome.example, size_of(outcome.example)
    tensors = list(example.values() if isinstance(example, dict) else example)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise ValueError("it takes inputs that are no tensors")
    arrays = as_arrays(output)
    outputs = [*arrays.items()] if isinstance(arrays, dict) else [(None, arrays)]
    names = _names(outcome.model, example)
    return ModelSignature(
        inputs=Schema([_spec(tensor.numpy(), n, size) for n, tensor in zip(names, tensors, strict=True)]),
        outputs=Schema([_spec(array, name, size) for name, array in outputs]),
    )


def _spec(array: Any, name: str | None, size: int) -> TensorSpec:
    """The first dimension is free where it is the batch."""
    batched = array.ndim and len(array) == size
    return TensorSpec(array.dtype, (-1, *array.shape[1:]) if batched else array.shape, name)


def _names(model: nn.Module, example: Inputs) -> Sequence[str | None]:
    """By which a caller gives the inputs; a single one needs none."""
    if isinstance(example, dict):
        return tuple(example)
    if len(example) == 1:
        return (None,)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in POSITIONAL][: len(example)]
    return names if len(names) == len(example) else [f"input_{i}" for i in range(len(example))]
