"""How far the own error of each layer moves what the network gives, to first order, in one sweep.

One float run of a batch with its gradients, one run of each kernel on the float values: the error e of a
layer's output moves a quantity L by about g e, where g is the gradient of L with respect to that output.
Where L is the output projected on random signs, the mean square of g e is the energy of the output's error
(Hutchinson's estimator); where L is the loss, it is the layer's share in the Fisher information (as in
Liu et al. 2021, BRECQ, and Dong et al. 2019, HAWQ, which use curvature for the same purpose).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from qtrack.numerics.sites import Site
from qtrack.numerics.steps import Inputs
from qtrack.numerics.switchboard import Switchboard

Objective = Callable[[Any], Tensor]
"""From the network's output to a sum over its samples."""


@dataclass(frozen=True)
class Effect:
    """One layer's own error on one batch; sums over its samples."""

    noise: float
    """Energy of the error of the layer's output, and of the output itself."""
    signal: float
    moved: tuple[float, ...]
    """Squares of what each objective moves by."""


@dataclass(frozen=True, eq=False)
class _Own:
    """A layer's output as a place to take gradients at, and its error there."""

    places: list[Tensor]
    errors: list[Tensor]
    """By sample, as ``_rows`` lays them out."""
    signal: float


def effects(board: Switchboard, inputs: Inputs, objectives: Sequence[Objective]) -> dict[str, Effect]:
    """By layer; one forward run, one of the kernels, and a backward run for each objective."""
    own, output = _run(board, inputs)
    places = [place for one in own.values() for place in one.places]
    gradients = [_gradients(objective, output, places) for objective in objectives]
    found: dict[str, Effect] = {}
    for name, group in board.switches.items():
        found[name] = _effect([own[site] for site in group if site in own], gradients)
    return found


def _run(board: Switchboard, inputs: Inputs) -> tuple[dict[Site, _Own], Any]:
    program = board.program
    values = program.given(inputs)
    ends = {span[0]: site for site, span in board.spans.items()}
    fed: dict[Site, tuple[Tensor, ...]] = {}
    own: dict[Site, _Own] = {}
    for node in program.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node in board.starts:
            fed[board.starts[node]] = tuple(one.detach() for one in program.fed(node, values))
        with torch.enable_grad():
            values[node] = program.value(node, values, keep=True)
            if node in ends:
                site = ends[node]
                own[site], values[node] = _opened(values[node], board, site, fed.pop(site))
    return own, program.output(values)


def _opened(value: Any, board: Switchboard, site: Site, fed: tuple[Tensor, ...]) -> tuple[_Own, Any]:
    """The value with each of its tensors in the graph of gradients, whether parameters are or not."""
    leaves, spec = tree_flatten(value)
    floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    places = [leaves[i] if leaves[i].requires_grad else leaves[i].detach().requires_grad_() for i in floats]
    with torch.no_grad():
        kernel = tree_flatten(board.kernel(site, fed))[0]
        rows = [_rows(place, place) for place in places]
        given = [_rows(kernel[i], place) for i, place in zip(floats, places, strict=True)]
        errors = [one - other for one, other in zip(given, rows, strict=True)]
        signal = sum(map(_energy, rows))
    for i, place in zip(floats, places, strict=True):
        leaves[i] = place
    return _Own(places, errors, signal), tree_unflatten(leaves, spec)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _gradients(objective: Objective, output: Any, places: list[Tensor]) -> dict[int, Tensor]:
    """By identity of the place; those that the objective does not depend on are absent."""
    with torch.enable_grad():
        value = objective(output)
        if not value.requires_grad:
            return {}
        found = torch.autograd.grad(value, places, retain_graph=True, allow_unused=True)
    return {id(place): one for place, one in zip(places, found, strict=True) if one is not None}


def _effect(calls: Sequence[_Own], gradients: Sequence[dict[int, Tensor]]) -> Effect:
    noise = sum(_energy(error) for one in calls for error in one.errors)
    moved = tuple(sum(_moved(one, found) for one in calls) for found in gradients)
    return Effect(noise, sum(one.signal for one in calls), moved)


def _moved(own: _Own, gradients: dict[int, Tensor]) -> float:
    """Sum over samples, which come first in all that has as many rows; those of others add up alike."""
    total = 0.0
    for place, error in zip(own.places, own.errors, strict=True):
        if id(place) in gradients:
            gradient = _rows(gradients[id(place)], place)
            total += float(torch.linalg.vecdot(gradient, error).double().pow(2).sum())
    return total


def _energy(rows: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows, dim=1).double().pow(2).sum())


def _rows(tensor: Tensor, like: Tensor) -> Tensor:
    """One row for each sample, in the order in which the other tensor lies in memory."""
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
