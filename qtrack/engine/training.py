"""Quantization-aware training."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from qtrack.backends import Backend, Prepared
from qtrack.data import batches_of, size_of
from qtrack.engine.devices import CPU, calling, chance, moved, restore_chance
from qtrack.engine.evaluation import call
from qtrack.errors import DataError
from qtrack.monitor import Monitor
from qtrack.recipe import Recipe, Training
from qtrack.task import Task

log = logging.getLogger("qtrack")

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


class Checkpoint(Protocol):
    """Where training keeps itself after each epoch: tensors and plain data."""

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None where there is nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """In place of what was saved before."""


def train(
    task: Task,
    backend: Backend,
    prepared: Prepared,
    recipe: Recipe,
    monitor: Monitor,
    checkpoint: Checkpoint | None = None,
    device: torch.device = CPU,
) -> int:
    """Train the prepared model in place, from calibrated observers; the result is how many samples it saw.

    The model is on the device already, where each batch goes.
    From a checkpoint it goes on with the next epoch, bit for bit as if it had never been interrupted, as far
    as chance comes from torch's own generator.
    """
    training = recipe.training
    assert training
    torch.manual_seed(recipe.training_seed)
    optimizer = OPTIMIZERS[training.optimizer](prepared.model.parameters(), lr=training.lr)  # type: ignore[call-arg]
    schedule = LambdaLR(optimizer, lambda epoch: _rate(training, epoch))
    parts: dict[str, Any] = {"model": prepared.model, "optimizer": optimizer, "schedule": schedule}
    history, seen = _restored(checkpoint, parts, monitor, device)
    for epoch in range(len(history), training.epochs):
        _begin_epoch(backend, prepared, training, epoch)
        sizes, losses = [], []
        expected = seen // epoch if epoch else None  # how long an epoch is shows once one is over
        with monitor.phase(f"train, epoch {epoch + 1} of {training.epochs}", expected) as advance:
            for size, loss in _epoch(task, prepared, optimizer, device):
                sizes.append(size)
                losses.append(loss)
                advance(size)
        if not losses:
            raise DataError(
                f"training: {type(task).__name__}.training() yields no batch; QAT needs at least one"
            )
        history.append(float(np.average(losses, weights=sizes)))
        monitor.report("train/loss", history[-1], epoch + 1)
        seen += sum(sizes)
        schedule.step()
        if checkpoint:
            states = {name: part.state_dict() for name, part in parts.items()}
            checkpoint.save({**states, **chance(device), "history": list(history), "seen": seen})
    prepared.model.eval()
    return seen


def _restored(
    checkpoint: Checkpoint | None, parts: Mapping[str, Any], monitor: Monitor, device: torch.device
) -> tuple[list[float], int]:
    """Put the parts where they were after the last epoch; gives each epoch's loss, and samples seen."""
    state = checkpoint.load() if checkpoint else None
    if state is None:
        return [], 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    restore_chance(state, device)
    for epoch, loss in enumerate(state["history"], start=1):
        monitor.report("train/loss", loss, epoch)
    log.info("training goes on after epoch %d", len(state["history"]))
    return list(state["history"]), int(state["seen"])


def _begin_epoch(backend: Backend, prepared: Prepared, training: Training, epoch: int) -> None:
    prepared.model.train()
    backend.observe(prepared, training.freeze_observers is None or epoch < training.freeze_observers)
    if training.freeze_bn_stats is not None and epoch >= training.freeze_bn_stats:
        backend.freeze_bn_stats(prepared)


def _epoch(
    task: Task, prepared: Prepared, optimizer: Optimizer, device: torch.device
) -> Iterator[tuple[int, float]]:
    """One pass over the training data; yields each batch's size and loss."""
    for batch in (moved(batch, device) for batch in batches_of(task, "training")):
        optimizer.zero_grad()
        output = call(prepared.model, task.inputs(batch), "the prepared model refuses a training batch")
        with calling(f"{type(task).__name__}.loss", device):
            loss = task.loss(output, batch)
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
