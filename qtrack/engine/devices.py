"""Where floats are computed: calibration, QAT and the float model's evaluation can run on a GPU.

Kernels on integers are the CPU's: a model is brought back before it is converted, and stays there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from qtrack.backends.messages import first_line
from qtrack.errors import DataError, InputError, TaskError

log = logging.getLogger("qtrack")

Nested = TypeVar("Nested")

CPU = torch.device("cpu")
_chosen: ContextVar[torch.device] = ContextVar("device", default=CPU)


def chosen() -> torch.device:
    """The device that floats are computed on now; the CPU unless ``using_device`` says otherwise."""
    return _chosen.get()


@contextmanager
def using_device(name: str) -> Iterator[None]:
    """Compute floats there: ``cpu``, ``cuda`` or ``cuda:N``; raises InputError where it is not."""
    if not available(name):
        there = ", ".join(["cpu", *(f"{name} ({kind})" for name, kind in cuda_devices().items())])
        why = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        raise InputError(f"device {name}: there is none here{why}; there is {there}")
    before = _chosen.set(torch.device(name))
    try:
        yield
    finally:
        _chosen.reset(before)


def available(name: str) -> bool:
    """Has this machine the device?"""
    device = torch.device(name)
    return device == CPU or (device.index or 0) < len(cuda_devices())


def nearest(name: str) -> str:
    """The same device or, where a scheduler has given this process others, the first of its kind."""
    return name if available(name) else torch.device(name).type


def at_hand(name: str) -> str:
    """The device that something was made on, or the CPU where it is not here, which is said."""
    if available(name):
        return name
    log.warning("what was made on %s is executed on the CPU: there is no such device here", name)
    return "cpu"


def cuda_devices() -> dict[str, str]:
    """The CUDA devices that this process sees, ``cuda:0`` and so on, with what they are called."""
    count = torch.cuda.device_count()
    return {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(count)}


def described(device: torch.device) -> str:
    """What the results of a GPU depend on: its kind, whichever of several it is."""
    return f"{device.type} ({torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda})"


def moved(batch: Nested, device: torch.device) -> Nested:
    """A batch with all its tensors there; the very same on the CPU, where batches come from."""
    if device == CPU:
        return batch
    found: Nested = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)
    return found


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a model there for the time being, and then on the CPU; raises DataError where memory runs out."""
    if device == CPU:
        yield
        return
    try:
        model.to(device)
        yield
    except torch.OutOfMemoryError as cause:
        said = f"{device} is out of memory: smaller batches need less ({first_line(cause)})"
        raise DataError(said) from cause
    finally:
        model.to(CPU)


@contextmanager
def calling(function: str, device: torch.device) -> Iterator[None]:
    """A task's own function; raises TaskError where tensors of its own have stayed on the CPU."""
    try:
        yield
    except RuntimeError as cause:
        if device == CPU or "same device" not in str(cause):
            raise
        raise TaskError(
            f"{function}() mixes devices: batch and output are on {device}, where tensors of its own must go "
            f"as well: .to(output.device) ({first_line(cause)})"
        ) from cause


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), CPU)


def follows(model: nn.Module) -> bool:
    """Can it be moved? A traced graph that names a device goes on making tensors there."""
    nodes = (node for m in model.modules() if isinstance(m, GraphModule) for node in m.graph.nodes)
    leaves = (leaf for node in nodes for leaf in tree_leaves((node.args, node.kwargs)))
    return not any(isinstance(leaf, torch.device) for leaf in leaves)


def chance(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators that training on the device draws from."""
    states = {"rng": torch.get_rng_state()}
    return states if device == CPU else {**states, "device_rng": torch.cuda.get_rng_state(device)}


def restore_chance(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators where they were."""
    torch.set_rng_state(states["rng"])
    if device != CPU:
        torch.cuda.set_rng_state(states["device_rng"], device)
