"""A model on a split, sample by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from qtrack.data import size_of
from qtrack.engine.devices import CPU, calling, moved, on_device
from qtrack.errors import DataError, TaskError
from qtrack.outcome import Evaluation, Until
from qtrack.recipe import Recipe
from qtrack.task import Batch, Inputs, Split, Task


def call(model: nn.Module, inputs: Inputs, complaint: str) -> Any:
    """The model's output; raises DataError, beginning with the complaint, where it refuses these inputs."""
    try:
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as cause:
        shapes = ", ".join(_shape(leaf) for leaf in tree_flatten(inputs)[0])
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise DataError(f"{complaint} of shape {shapes}: {reason}") from cause


def _shape(leaf: Any) -> str:
    return "x".join(map(str, leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__


class Enough(Exception):
    """Carries the scores until then."""

    def __init__(self, scores: NDArray[np.float64]) -> None:
        super().__init__()
        self.scores = scores


class Part(NamedTuple):
    """What a model did on one batch: plain data, so that it can come from another process."""

    scores: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    predictions: NDArray[np.int64] | None
    outputs: tuple[bytes, ...]
    """Of the output's tensors, as they go into the digest."""
    nonfinite: int


class Begun(NamedTuple):
    """An evaluation of which the first batches are done."""

    recipe: Recipe
    model: nn.Module
    split: Split
    batches: int
    """That are done."""
    batch_s: float
    """What the model took for the last of them."""
    model_s: float
    """What it took to make the model, calibration and training aside."""


Elsewhere = Callable[[Begun], Iterable[Part]]
"""What the model does on the batches that come next, in order, as far as others evaluate them; or nothing."""


def evaluate(task: Task, model: nn.Module, split: Split, batches: Iterable[Batch]) -> Evaluation:
    """Score every sample of a split on the CPU; raises DataError where it is empty."""
    return joined(
        task, model, split, (part(task, model, split, place, one) for place, one in enumerate(batches))
    )


def part(
    task: Task, model: nn.Module, split: Split, place: int, batch: Batch, device: torch.device = CPU
) -> Part:
    """What a model does on the batch in this place of a split; the model is on the device."""
    batch = moved(batch, device)
    output = call(model, task.inputs(batch), f"the model refuses {split} batch {place}")
    with calling(f"{type(task).__name__}.score", device):
        scores = _scores(task, output, batch)
    labels, predictions = task.labels(batch), task.predictions(output, batch)
    return Part(
        scores=scores.double().cpu().numpy(),
        labels=_vector(labels),
        predictions=_vector(predictions),
        outputs=tuple(_bytes(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)),
        nonfinite=_nonfinite(output, size_of(batch)),
    )


def joined(
    task: Task,
    model: nn.Module,
    split: Split,
    parts: Iterable[Part],
    until: Until | None = None,
    device: torch.device = CPU,
) -> Evaluation:
    """What the parts of a split amount to, whoever makes them.

    The model is on the device while they are made; the task's own ``evaluate`` has it on the CPU. Raises
    DataError where there are none, and Enough where ``until`` says so.
    """
    scores: list[NDArray[np.float64]] = []
    labels: list[NDArray[np.int64] | None] = []
    predictions: list[NDArray[np.int64] | None] = []
    digest = hashlib.sha256()
    nonfinite = 0
    with torch.no_grad(), on_device(model, device):
        for one in parts:
            scores.append(one.scores)
            labels.append(one.labels)
            predictions.append(one.predictions)
            nonfinite += one.nonfinite
            for output in one.outputs:
                digest.update(output)
            if until and until(np.concatenate(scores)):
                raise Enough(np.concatenate(scores))
    if not scores:
        raise DataError(
            f"{split}: {type(task).__name__}.{split}() yields no batch; at least one sample is needed"
        )
    return Evaluation(
        scores=np.concatenate(scores),
        labels=_whole(labels),
        predictions=_whole(predictions),
        output_digest=digest.hexdigest(),
        extra=dict(task.evaluate(model, split)),
        nonfinite=nonfinite,
    )


def _scores(task: Task, output: Any, batch: Batch) -> Tensor:
    scores = task.score(output, batch)
    if len(scores) != size_of(batch):
        raise TaskError(
            f"{type(task).__name__}.score() gives {len(scores)} numbers for {size_of(batch)} samples"
        )
    return scores


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _nonfinite(output: Any, size: int) -> int:
    """How many samples hold NaN or infinity."""
    bad = torch.zeros(size, dtype=torch.bool)
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() and len(leaf) == size:
            bad |= ~torch.isfinite(leaf).reshape(size, -1).all(1).cpu()
    return int(bad.sum())


def _vector(values: Tensor | None) -> NDArray[np.int64] | None:
    """One number per sample, or None where the task has no such thing or gives more."""
    return None if values is None or values.dim() > 1 else values.reshape(-1).long().cpu().numpy()


def _whole(parts: list[NDArray[np.int64] | None]) -> NDArray[np.int64] | None:
    """One vector, or None where a part has none."""
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if len(found) == len(parts) else None
