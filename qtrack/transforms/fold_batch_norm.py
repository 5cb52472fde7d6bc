"""BatchNorm into the layer before it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from qtrack.backends.base import replace_module
from qtrack.transforms.tracing import Folded, Normed, normed, parts_of


def fold_batch_norm(model: nn.Module, whole: Collection[str] = ()) -> None:
    """Fold every BatchNorm that can be, as it works in evaluation; what stands between goes as well.

    Were a Dropout left there, the layer could not be fused with the ReLU behind BatchNorm.
    """
    modules = dict(model.named_modules())
    for pair in normed(parts_of(model, whole)):
        _fold(model.get_submodule(pair.layer), model.get_submodule(pair.norm))
        for name in (pair.norm, *(name for name in pair.between if name in modules)):
            replace_module(model, name, Folded())


def unfused_batch_norms(model: nn.Module, non_traceable: Collection[str] = ()) -> list[Normed]:
    """The BatchNorms that are folded here and that torch.ao leaves, because something stands before them.

    Of these torchao's export sees past Identity, and past nothing else.
    """
    return [pair for pair in normed(parts_of(model, non_traceable)) if pair.between]


def _fold(layer: Any, norm: Any) -> None:
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    with torch.no_grad():
        layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
