"""Pairs a float model with quantized ones that somebody else made of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx import GraphModule

from qtrack.backends.assignment import user_modules
from qtrack.backends.eager_pairing import pair_modules
from qtrack.backends.engines import quiet
from qtrack.backends.fx_pairing import pair_graphs
from qtrack.backends.fx_tracing import explain
from qtrack.errors import BackendError
from qtrack.numerics import Pair
from qtrack.numerics.steps import Inputs


def pair_models(float_model: nn.Module, quantized: Sequence[nn.Module], example: Inputs) -> list[Pair]:
    """One pair for each quantized model, all with one reference; raises BackendError where none is found."""
    graphs = [isinstance(model, GraphModule) for model in quantized]
    if all(graphs):
        pairs = _pair_graphs(float_model, quantized, example)
    elif not any(graphs):
        pairs = [pair_modules(float_model, model, example) for model in quantized]
    else:
        raise BackendError("candidates of FX and of eager mode have no reference in common: compare apart")
    if not all(pair.sites for pair in pairs):
        raise BackendError("the quantized model has no layer of the float one: are their names the same?")
    return [Pair(pairs[0].reference, pair.actual, pair.sites) for pair in pairs]


def _pair_graphs(float_model: nn.Module, quantized: Sequence[nn.Module], example: Inputs) -> list[Pair]:
    """FX: the float model is traced and fused as prepare_fx would do."""
    try:
        with quiet():
            fused = fuse_fx(copy.deepcopy(float_model).eval())
    except Exception as cause:  # torch.fx raises whatever the model's code led to
        raise BackendError(explain(cause, float_model, [])) from cause
    modules = user_modules(float_model)
    return [
        pair_graphs(fused, model, modules, example) for model in quantized if isinstance(model, GraphModule)
    ]
