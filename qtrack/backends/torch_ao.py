"""The part of torch.ao that its backends share: a recipe's schemes as qconfigs, and observers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from torch.ao import quantization
from torch.ao.nn.intrinsic.qat import freeze_bn_stats as freeze_fused_bn
from torch.ao.quantization import (
    FakeQuantize,
    FakeQuantizeBase,
    FusedMovingAvgObsFakeQuantize,
    PlaceholderObserver,
    QConfig,
)

from qtrack.backends.base import Prepared
from qtrack.backends.messages import first_line as first_line
from qtrack.backends.observers import (
    SCHEMES,
    activation_bounds,
    arguments_of,
    observer_class,
    weight_bounds,
)
from qtrack.recipe import ActivationSpec, AnyScheme, Dynamic, Static, WeightSpec

Model = TypeVar("Model", bound=nn.Module)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def static_qconfig(scheme: Static, *, training: bool) -> Any:
    """Observers for a static scheme, inside fake quantization where the model is trained."""
    wrap = _fake_quantize if training else _observe
    return QConfig(
        activation=wrap(scheme.activation.observer, "per_tensor", _activation_range(scheme.activation)),
        weight=wrap(scheme.weight.observer, scheme.weight.granularity, weight_range(scheme.weight)),
    )


def layer_qconfig(module: nn.Module, scheme: AnyScheme, *, training: bool) -> Any:
    """Observers for one layer, None where it needs none.

    Transposed convolutions have no per-channel weights in torch.ao.
    """
    if isinstance(scheme, Static):
        return (per_tensor_qconfig if isinstance(module, TRANSPOSED) else static_qconfig)(
            scheme, training=training
        )
    return dynamic_qconfig(scheme) if isinstance(scheme, Dynamic) else None


def per_tensor_qconfig(scheme: Static, *, training: bool) -> Any:
    """The same with one scale for all of a weight."""
    weight = scheme.weight.having(granularity="per_tensor")
    return static_qconfig(scheme.having(weight=weight), training=training)


def dynamic_qconfig(scheme: Dynamic) -> Any:
    """Observers for the weights; activations are measured by the kernel itself."""
    return QConfig(
        activation=PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True),
        weight=_observe(scheme.weight.observer, scheme.weight.granularity, weight_range(scheme.weight)),
    )


def observe(prepared: Prepared, on: bool) -> None:
    """Let the observers in fake quantization move, or hold them still."""
    for module in prepared.model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(on)


def fake_quantize(prepared: Prepared, on: bool) -> None:
    """Switch fake quantization on or off, where there is any."""
    for module in prepared.model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_fake_quant(on)


def freeze_bn_stats(prepared: Prepared) -> None:
    """Hold BatchNorm's running statistics still from now on, fused or not."""
    prepared.model.apply(freeze_fused_bn)
    for module in prepared.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def without_quantization(model: Model) -> Model:
    """The same prepared model in evaluation, with fake quantization and observers off: fused, and float."""
    for module in model.eval().modules():
        if isinstance(module, FakeQuantizeBase):
            module.disable_fake_quant()
            module.disable_observer()
    return model


def weight_observer(spec: WeightSpec) -> Any:
    """A fresh observer for one weight."""
    return _observe(spec.observer, spec.granularity, weight_range(spec))()


def weight_range(spec: WeightSpec) -> dict[str, Any]:
    """Signed integers, held in int8."""
    low, high = weight_bounds(spec)
    qscheme = SCHEMES[spec.granularity, spec.symmetric]
    return {"dtype": torch.qint8, "qscheme": qscheme, "quant_min": low, "quant_max": high}


def _activation_range(spec: ActivationSpec) -> dict[str, Any]:
    """Unsigned integers, held in uint8."""
    low, high = activation_bounds(spec)
    qscheme = SCHEMES["per_tensor", spec.symmetric]
    return {"dtype": torch.quint8, "qscheme": qscheme, "quant_min": low, "quant_max": high}


def _observe(observer: Any, granularity: str, number: dict[str, Any]) -> Any:
    kind = observer_class(quantization, observer, granularity)
    return kind.with_args(**number, **arguments_of(observer))


def _fake_quantize(observer: Any, granularity: str, number: dict[str, Any]) -> Any:
    fused = observer.kind == "moving_average"
    wrapper: Any = FusedMovingAvgObsFakeQuantize if fused else FakeQuantize
    kind = observer_class(quantization, observer, granularity)
    return wrapper.with_args(observer=kind, **number, **arguments_of(observer))
