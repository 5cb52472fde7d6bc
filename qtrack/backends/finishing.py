"""What is left to do of the schemes once torch.ao has converted a model, the same in both of its modes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.ao.nn.quantized import ELU

from qtrack.backends.kernels import (
    has_dynamic_kernel,
    has_lookup_kernel,
    is_half_recurrent,
    keep_scale,
    make_dynamic,
    make_half,
    narrow,
    use_lookup_kernel,
)
from qtrack.backends.weights import store_small, weighted
from qtrack.recipe import AnyScheme, Dynamic, Float16, Static, WeightOnly


def finish(model: nn.Module, schemes: Mapping[str, AnyScheme]) -> None:
    """Give each module what its scheme says and it has not got yet; fusion has done away with some."""
    there = dict(model.named_modules())
    for name, scheme in schemes.items():
        if name in there and isinstance(scheme, Static | Dynamic):
            _finish_integers(model, name, scheme)
        elif isinstance(scheme, WeightOnly | Float16):
            _store_small(model, name, scheme)
    for module in model.modules():
        if isinstance(module, ELU):
            keep_scale(module)


def _finish_integers(model: nn.Module, name: str, scheme: Static | Dynamic) -> None:
    if isinstance(scheme, Dynamic) and has_dynamic_kernel(model.get_submodule(name)):
        make_dynamic(model, name, scheme)
    narrow(model.get_submodule(name), scheme.weight)


def _store_small(model: nn.Module, name: str, scheme: WeightOnly | Float16) -> None:
    module = model.get_submodule(name)
    if is_half_recurrent(module, scheme):
        make_half(model, name)
    elif has_lookup_kernel(module, scheme):
        use_lookup_kernel(model, name)
    else:
        store_small(weighted(module), scheme)
