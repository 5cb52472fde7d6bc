"""A model on a split, sample by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from qtrack.data import size_of
from qtrack.engine.devices import CPU, calling, moved, on_device
from qtrack.errors import DataError, TaskError
from qtrack.outcome import Evaluation, Until
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


def evaluate(
    task: Task,
    model: nn.Module,
    split: Split,
    batches: Iterable[Batch],
    until: Until | None = None,
    device: torch.device = CPU,
) -> Evaluation:
    """Score every sample of a split; raises DataError where it is empty, Enough where ``until`` says so.

    The model is on the device for that; the task's own ``evaluate`` has it on the CPU.
    """
    scores: list[Tensor] = []
    labels: list[Tensor | None] = []
    predictions: list[Tensor | None] = []
    outputs = hashlib.sha256()
    nonfinite = 0
    with torch.no_grad(), on_device(model, device):
        for index, batch in enumerate(moved(batch, device) for batch in batches):
            output = call(model, task.inputs(batch), f"the model refuses {split} batch {index}")
            with calling(f"{type(task).__name__}.score", device):
                scores.append(_scores(task, output, batch))
            labels.append(task.labels(batch))
            predictions.append(task.predictions(output, batch))
            nonfinite += _digest_output(output, outputs, size_of(batch))
            if until and until(_numbers(scores)):
                raise Enough(_numbers(scores))
    if not scores:
        raise DataError(
            f"{split}: {type(task).__name__}.{split}() yields no batch; at least one sample is needed"
        )
    return Evaluation(
        scores=_numbers(scores),
        labels=_joined(labels),
        predictions=_joined(predictions),
        output_digest=outputs.hexdigest(),
        extra=dict(task.evaluate(model, split)),
        nonfinite=nonfinite,
    )


def _numbers(scores: list[Tensor]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = torch.cat(scores).double().cpu().numpy()
    return found


def _scores(task: Task, output: Any, batch: Batch) -> Tensor:
    scores = task.score(output, batch)
    if len(scores) != size_of(batch):
        raise TaskError(
            f"{type(task).__name__}.score() gives {len(scores)} numbers for {size_of(batch)} samples"
        )
    return scores


def _digest_output(output: Any, digest: Any, size: int) -> int:
    """Add a batch's outputs to the digest; the result is how many samples hold NaN or infinity."""
    bad = torch.zeros(size, dtype=torch.bool)
    for leaf in tree_flatten(output)[0]:
        if isinstance(leaf, Tensor):
            digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            if leaf.is_floating_point() and leaf.dim() and len(leaf) == size:
                bad |= ~torch.isfinite(leaf).reshape(size, -1).all(1).cpu()
    return int(bad.sum())


def _joined(parts: list[Tensor | None]) -> np.ndarray[Any, Any] | None:
    """One vector, or None where the task has no such thing or gives more than one number per sample."""
    found = [part.reshape(-1).long().cpu() for part in parts if part is not None and part.dim() <= 1]
    return torch.cat(found).numpy() if len(found) == len(parts) else None
