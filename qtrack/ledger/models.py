"""Quantized models on disk: a ``state_dict`` that is read back and compared before it counts as saved.

A statically quantized convolutional model pickles without complaint and can never be loaded again (torch
2.13), so what is kept is the parameters, the recipe and an example. Reading them executes no code.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from qtrack.errors import QtrackError, RecipeError, StoreError
from qtrack.ledger.masking import mask_secrets
from qtrack.ledger.preflight import disk_is_full
from qtrack.outcome import Outcome
from qtrack.reading import read_text
from qtrack.recipe import Recipe, recipe_from_yaml, recipe_to_yaml

if TYPE_CHECKING:
    from qtrack.task import Inputs, Task

log = logging.getLogger("qtrack")

STATE, EXAMPLE, RECIPE = "state_dict.pt", "example.pt", "recipe.yaml"


def save(task: Task, outcome: Outcome, folder: Path, reference: str = "", run_id: str = "") -> str:
    """Write the model into a new folder; returns ``saved``, or ``not saved: REASON`` and leaves no folder.

    It is an MLflow model as well, of this run and with the task found by ``reference``, where it has inputs
    and outputs that MLflow knows. A full disk is no reason but an OSError: with some space, the stage can
    be done again and be whole.
    """
    try:
        _write(outcome, folder)
        output = _compared(task, outcome, folder)
    except Exception as error:  # whatever a model of the user's may do; the stage's other results stay
        shutil.rmtree(folder, ignore_errors=True)
        _stop_if_full(error)
        reason = (mask_secrets(str(error)).strip().splitlines() or [type(error).__name__])[0][:250]
        log.warning("the model is not saved: %s", reason)
        return f"not saved: {reason}"
    _describe(folder, outcome, output, reference, run_id)
    return "saved"


def _describe(folder: Path, outcome: Outcome, output: Any, reference: str, run_id: str | None) -> None:
    """For others than qtrack; without it the model is saved all the same."""
    from qtrack.ledger.mlmodel import describe

    try:
        describe(folder, outcome, output, reference, run_id)
    except Exception as error:  # whatever a model of the user's may take and give
        _stop_if_full(error)
        log.info("the saved model is no MLflow model: %s", _reason(error))


def _stop_if_full(error: Exception) -> None:
    if disk_is_full(error):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def load(task: Task, folder: Path) -> nn.Module:
    """The model in a folder, on the CPU, in the structure that its recipe and the task give."""
    from qtrack.engine import rebuild

    return rebuild(task, recipe_of(folder), _load(folder / STATE))


def recipe_of(folder: Path) -> Recipe:
    """The recipe in a folder."""
    return recipe_from_yaml(read_text(folder / RECIPE, RecipeError), RECIPE)


def example_of(folder: Path) -> Inputs:
    """The inputs in a folder; raises StoreError where they are none."""
    try:
        example = _load(folder / EXAMPLE)
    except Exception as error:  # whatever the file holds
        raise StoreError(f"the saved model is corrupt: {_reason(error)}") from error
    if not isinstance(example, tuple | dict) or not example:
        raise StoreError(f"the saved model is corrupt: {EXAMPLE} holds no inputs")
    return example


def load_checked(task: Task, folder: Path, fingerprint: Mapping[str, Any]) -> nn.Module:
    """The same, if its recipe and its parameters are those on record; raises StoreError in one line."""
    from qtrack.engine.digests import digest_of

    try:
        same = (
            recipe_of(folder).digest == fingerprint.get("recipe"),
            digest_of(_load(folder / STATE)) == fingerprint.get("parameters"),
        )
    except Exception as error:  # whatever the files hold
        raise StoreError(f"the saved model is corrupt: {_reason(error)}") from error
    for name, holds in zip((RECIPE, STATE), same, strict=True):
        if not holds:
            raise StoreError(f"the saved model is not the recorded one: {name} has another digest")
    try:
        model = load(task, folder)
    except QtrackError:
        raise
    except Exception as error:  # torch's own, of several lines
        raise StoreError(f"the recorded parameters do not fit the task's model: {_reason(error)}") from error
    if digest_of(model.state_dict()) != fingerprint["parameters"]:
        raise StoreError("the task's model, with the recorded parameters, has another digest than recorded")
    return model


def _reason(error: Exception) -> str:
    """What an error says, in one line and without secrets."""
    return (" ".join(mask_secrets(str(error)).split()) or type(error).__name__)[:250]


def _write(outcome: Outcome, folder: Path) -> None:
    from qtrack.engine.packed import unpacked

    folder.mkdir(parents=True)
    for name, content in ((STATE, unpacked(outcome.model.state_dict())), (EXAMPLE, outcome.example)):
        with (folder / name).open("wb") as file:  # given a path, torch does not say that the disk is full
            torch.save(content, file)
    (folder / RECIPE).write_text(recipe_to_yaml(outcome.recipe), encoding="utf-8")


def _load(path: Path) -> Any:
    """Tensors and plain data only: nothing that would run code when it is read."""
    from qtrack.engine.packed import read

    try:
        return read(path)
    except UnpicklingError as cause:
        raise ValueError(
            f"{path.name} holds more than tensors and plain data; torch would have to run code to read it"
        ) from cause


def _compared(task: Task, outcome: Outcome, folder: Path) -> Any:
    """The output for the example; raises ValueError unless the model on disk gives it bit for bit."""
    example = _load(folder / EXAMPLE)
    loaded = load(task, folder)  # with gradients at hand: a task may train its model each time
    with engine_of(outcome.recipe), torch.no_grad():
        expected = run(outcome.model, outcome.example)
        found = run(loaded, example)
    if not _same(expected, found):
        raise ValueError("read back, it gives other outputs than the model in memory")
    return expected


def engine_of(recipe: Recipe) -> Any:
    """Work with the recipe's engine."""
    from qtrack.backends.engines import using_engine

    return using_engine(recipe.engine)


def run(model: nn.Module, example: Inputs) -> Any:
    """The model's output for these inputs."""
    if model.training:
        model.eval()
    return model(**example) if isinstance(example, dict) else model(*example)


def _same(first: Any, second: Any) -> bool:
    ours, shape = tree_flatten(first)
    theirs, other_shape = tree_flatten(second)
    return shape == other_shape and all(_same_leaf(a, b) for a, b in zip(ours, theirs, strict=True))


def _same_leaf(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return bool(first == second)
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(_bits(first), _bits(second))
    )


def _bits(tensor: Tensor) -> Tensor:
    """The bytes: NaN equals NaN here, and -0 is not 0."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
