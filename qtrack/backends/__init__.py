"""Backends by the name that a recipe uses; each library is imported only when its backend is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

from torch import nn
from torch.fx import GraphModule

from qtrack.backends.base import Backend, Prepared, Quantized, layers_with_weights
from qtrack.backends.capabilities import PACKAGES, missing
from qtrack.backends.messages import hushed
from qtrack.errors import BackendUnavailable
from qtrack.numerics import Pair
from qtrack.numerics.graph import Program
from qtrack.numerics.hooks import HookedModel
from qtrack.numerics.steps import Inputs

BACKENDS = {
    "fx": "qtrack.backends.fx:FxBackend",
    "eager": "qtrack.backends.eager:EagerBackend",
    "pt2e": "qtrack.backends.pt2e:Pt2eBackend",
    "torchao": "qtrack.backends.torchao_:TorchaoBackend",
}


def load_backend(name: str) -> Backend:
    """The backend of that name; raises BackendUnavailable where its package is not installed."""
    module, _, cls = BACKENDS[name].partition(":")
    if absent := missing(name):
        raise BackendUnavailable(f"backend {name!r}: {absent}")
    try:
        with hushed() if name in PACKAGES else nullcontext():
            backend: Backend = getattr(import_module(module), cls)()
    except ImportError as error:
        raise BackendUnavailable(f"backend {name!r} cannot be imported: {error}") from error
    return backend


def pair_models(float_model: nn.Module, quantized: Sequence[nn.Module], example: Inputs) -> list[Pair]:
    """Pairs with one reference for quantized models that torch.ao made, in whichever mode."""
    from qtrack.backends.pairing import pair_models as pair

    return pair(float_model, quantized, example)


def emulated_pair(reference: nn.Module, pair: Pair) -> Pair:
    """The pair with the reference form of the quantized network in place of the float one."""
    graph = getattr(reference, "program", reference)  # an export holds its graph inside
    runner = Program(graph) if isinstance(graph, GraphModule) else HookedModel(reference)
    return Pair(runner, pair.actual, pair.sites, pair.moves)


__all__ = [
    "BACKENDS",
    "Backend",
    "Prepared",
    "Quantized",
    "emulated_pair",
    "layers_with_weights",
    "load_backend",
    "pair_models",
]
