"""One side of the quantization at a time: can integers for weights alone, or for activations alone, do?"""

from __future__ import annotations

import numpy as np
import torch

from qtrack.backends.base import BOTH, Side
from qtrack.backends.engines import using_engine
from qtrack.data import batches_of, selected
from qtrack.engine import Parts
from qtrack.engine.evaluation import call
from qtrack.errors import BackendError
from qtrack.statistics import Scores
from qtrack.task import Task

SAMPLES = 512
"""Validation samples, the first ones: enough to tell what cannot work at all."""


def legs(task: Task, parts: Parts) -> dict[Side, Scores]:
    """Scores of the first SAMPLES validation samples with one side on integers, emulated, the other in float.

    What the backend cannot emulate is absent.
    """
    found: dict[Side, Scores] = {}
    for side in BOTH:
        try:
            model = parts.backend.reference(parts.prepared, (side,)).eval()
        except BackendError:  # it has no such form of this model, which is an answer
            continue
        with using_engine(parts.prepared.recipe.engine), torch.no_grad():
            batches = selected(batches_of(task, "validation"), range(SAMPLES), SAMPLES)
            scores = [
                task.score(call(model, task.inputs(batch), f"{side} alone: the model refuses a batch"), batch)
                for batch in batches
            ]
        found[side] = torch.cat(scores).double().cpu().numpy().astype(np.float64)
    return found
