"""Quantization-aware training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from qtrack.backends import Backend, Prepared
from qtrack.data import batches_of, size_of
from qtrack.engine.evaluation import call
from qtrack.errors import DataError
from qtrack.monitor import Monitor
from qtrack.recipe import Recipe, Training
from qtrack.task import Task

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


def train(task: Task, backend: Backend, prepared: Prepared, recipe: Recipe, monitor: Monitor) -> int:
    """Train the prepared model in place, from calibrated observers; the result is how many samples it saw."""
    training = recipe.training
    assert training
    torch.manual_seed(recipe.seed if training.seed is None else training.seed)
    optimizer = OPTIMIZERS[training.optimizer](prepared.model.parameters(), lr=training.lr)  # type: ignore[call-arg]
    schedule = LambdaLR(optimizer, lambda epoch: _rate(training, epoch))
    seen = 0
    for epoch in range(training.epochs):
        _begin_epoch(backend, prepared, training, epoch)
        sizes, losses = [], []
        expected = seen // epoch if epoch else None  # how long an epoch is shows once one is over
        with monitor.phase(f"train, epoch {epoch + 1} of {training.epochs}", expected) as advance:
            for size, loss in _epoch(task, prepared, optimizer):
                sizes.append(size)
                losses.append(loss)
                advance(size)
        if not losses:
            raise DataError(
                f"training: {type(task).__name__}.training() yields no batch; QAT needs at least one"
            )
        monitor.report("train/loss", float(np.average(losses, weights=sizes)), epoch + 1)
        seen += sum(sizes)
        schedule.step()
    prepared.model.eval()
    return seen


def _begin_epoch(backend: Backend, prepared: Prepared, training: Training, epoch: int) -> None:
    prepared.model.train()
    backend.observe(prepared, training.freeze_observers is None or epoch < training.freeze_observers)
    if training.freeze_bn_stats is not None and epoch >= training.freeze_bn_stats:
        backend.freeze_bn_stats(prepared)


def _epoch(task: Task, prepared: Prepared, optimizer: Optimizer) -> Iterator[tuple[int, float]]:
    """One pass over the training data; yields each batch's size and loss."""
    for batch in batches_of(task, "training"):
        optimizer.zero_grad()
        loss = task.loss(
            call(prepared.model, task.inputs(batch), "the prepared model refuses a training batch"), batch
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(
                "training: the loss is NaN or infinite; lower training.lr or freeze the BN statistics"
            )
        yield size_of(batch), value


def _rate(training: Training, epoch: int) -> float:
    """The learning rate of an epoch as a share of ``lr``."""
    if training.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
