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
    """The value with a zero added to each of its tensors, which gathers the gradient."""
    leaves, spec = tree_flatten(value)
    with torch.no_grad():
        kernel = tree_flatten(board.kernel(site, fed))[0]
        floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
        errors = [kernel[i] - leaves[i].detach() for i in floats]
        signal = sum(float(leaves[i].detach().double().pow(2).sum()) for i in floats)
    places = [torch.zeros_like(leaves[i], requires_grad=True) for i in floats]
    for i, place in zip(floats, places, strict=True):
        leaves[i] = leaves[i] + place
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
    noise = sum(float(error.double().pow(2).sum()) for one in calls for error in one.errors)
    moved = tuple(sum(_moved(one, found) for one in calls) for found in gradients)
    return Effect(noise, sum(one.signal for one in calls), moved)


def _moved(own: _Own, gradients: dict[int, Tensor]) -> float:
    """Sum over samples, which come first in all that has as many rows; those of others add up alike."""
    total = 0.0
    for place, error in zip(own.places, own.errors, strict=True):
        if id(place) in gradients:
            total += float((gradients[id(place)] * error).flatten(1).double().sum(1).pow(2).sum())
    return total
