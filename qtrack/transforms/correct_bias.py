"""Empirical bias correction: Nagel et al., Data-Free Quantization (2019, arXiv:1906.04721), section 4.2.

What rounding does to a layer's weights shifts the mean of each of its output channels. The shift is found by
giving the error of the weights what the float network gives the layer, and is taken off the bias.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtrack.backends.assignment import torchs_own
from qtrack.numerics import Site
from qtrack.task import Inputs
from qtrack.transforms.fold_batch_norm import fold_batch_norm
from qtrack.transforms.tracing import LAYERS, outputs_of

SAME_WEIGHT = 1e-3
"""How far a layer's weight in the comparison may be from its own: with BatchNorm folded it is another."""


def make_room(model: nn.Module, whole: Collection[str] = ()) -> None:
    """Fold BatchNorm, and give every layer a bias: zero, where there was none."""
    fold_batch_norm(model, whole)
    for module in _layers(model, whole).values():
        if module.bias is None:
            weight = module.weight
            zeros = torch.zeros(outputs_of(module), dtype=weight.dtype, device=weight.device)
            module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)


def correct_bias(
    model: nn.Module, sites: Iterable[Site], batches: Iterable[Inputs], whole: Collection[str] = ()
) -> None:
    """Take off each bias what the error of the weights at these sites adds to the mean of the output.

    ``model`` is the float one that has room for it and was quantized with these weights.
    """
    shifts = _shifts(model, _errors(sites, _layers(model, whole)), batches)
    for name, shift in shifts.items():
        module: Any = model.get_submodule(name)
        bias = module.bias
        module.bias = nn.Parameter(bias.detach() - shift.to(bias.dtype), requires_grad=bias.requires_grad)


def _layers(model: nn.Module, whole: Collection[str]) -> dict[str, Any]:
    """Those whose bias is theirs alone to use: not inside of torch's own or of what is kept whole."""
    closed = [*torchs_own(model), *whole]
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in LAYERS and not any(f"{name}.".startswith(f"{above}.") for above in closed)
    }


def _errors(sites: Iterable[Site], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of each layer's weight, where it was quantized as it stands there."""
    found = {}
    for site in sites:
        weight, actual = site.weight, site.actual_weight
        if site.layer in layers and site.quantized and weight is not None and actual is not None:
            own: Tensor = layers[site.layer].weight.detach()
            apart = SAME_WEIGHT * float(own.abs().max())
            if own.shape == weight.shape and torch.allclose(own, weight.to(own.dtype), atol=apart):
                found[site.layer] = actual.detach().to(own.dtype).reshape(own.shape) - own
    return found


def _shifts(model: nn.Module, errors: Mapping[str, Tensor], batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """The mean over samples and positions of what the errors make of each layer's input."""
    means = {name: _Mean() for name in errors}
    with _watching(model, errors, means), torch.no_grad():
        for inputs in batches:
            model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return {name: mean.value() for name, mean in means.items() if mean.count}


@contextmanager
def _watching(model: nn.Module, errors: Mapping[str, Tensor], means: Mapping[str, _Mean]) -> Iterator[None]:
    handles = [_watch(model.get_submodule(name), error, means[name]) for name, error in errors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(module: nn.Module, error: Tensor, mean: _Mean) -> Any:
    def hook(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        (x,) = (*given, *named.values())
        mean.add(*_through(module, x, error))

    return module.register_forward_hook(hook, with_kwargs=True)


def _through(module: nn.Module, x: Tensor, error: Tensor) -> tuple[Tensor, int]:
    """What the error makes of a batch: rows of channels, each the mean of so many.

    All is linear, so that the mean may be taken first.
    """
    if isinstance(module, nn.Linear):
        vectors = x.reshape(-1, x.shape[-1])
        return F.linear(vectors.mean(0, keepdim=True), error), len(vectors)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    rows: Tensor = module._conv_forward(x.mean(0, keepdim=True), error, None).flatten(2)
    return rows.squeeze(0).T, len(x)


class _Mean:
    """Of rows, over batches."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, rows: Tensor, weight: int) -> None:
        self.total = self.total + rows.double().sum(0) * weight
        self.count += len(rows) * weight

    def value(self) -> Tensor:
        return torch.as_tensor(self.total) / self.count
