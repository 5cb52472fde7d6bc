"""Quantization-aware training."""

from __future__ import annotations

from typing import Literal

from qtrack.recipe import Epoch, Epochs, MovingAverage, Rate, Recipe, Seed, Training
from qtrack.stages.evidence import Evidence, needs


@needs("training", "loss")
def qat(
    recipe: Recipe,
    evidence: Evidence,
    *,
    epochs: Epochs = 4,
    optimizer: Literal["adam", "adamw", "sgd"] = "adam",
    lr: Rate = 1e-3,
    schedule: Literal["constant", "cosine"] = "constant",
    freeze_observers: Epoch | None = None,
    freeze_bn_stats: Epoch | None = 0,
    seed: Seed | None = None,
) -> Recipe:
    """Train with fake quantization, starting from calibrated observers.

    Ranges become moving averages, as in torch.ao's own QAT qconfigs: they must be able to shrink while
    weights move.
    """
    training = Training(
        epochs=epochs,
        optimizer=optimizer,
        lr=lr,
        schedule=schedule,
        freeze_observers=freeze_observers,
        freeze_bn_stats=freeze_bn_stats,
        seed=seed,
    )
    moving = MovingAverage()
    return recipe.having(training=training).with_weights(observer=moving).with_activations(observer=moving)
