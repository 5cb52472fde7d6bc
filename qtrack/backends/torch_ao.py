"""The part of torch.ao that its backends share: engines, and a recipe's schemes as qconfigs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.ao.quantization import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QConfig,
)

from qtrack.errors import BackendUnavailable
from qtrack.recipe import ActivationSpec, Dynamic, Engine, Static, WeightSpec

OBSERVERS: dict[tuple[str, str], Any] = {
    ("min_max", "per_tensor"): MinMaxObserver,
    ("min_max", "per_channel"): PerChannelMinMaxObserver,
    ("moving_average", "per_tensor"): MovingAverageMinMaxObserver,
    ("moving_average", "per_channel"): MovingAveragePerChannelMinMaxObserver,
    ("histogram", "per_tensor"): HistogramObserver,
}
SCHEMES = {
    ("per_tensor", True): torch.per_tensor_symmetric,
    ("per_tensor", False): torch.per_tensor_affine,
    ("per_channel", True): torch.per_channel_symmetric,
    ("per_channel", False): torch.per_channel_affine,
}
NOISE = (
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max",
    "must run observer before calling",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other",
    "reduce_range will be deprecated",
    "To copy construct from a tensor",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings that torch.ao gives for its own defaults."""
    with warnings.catch_warnings():
        for message in NOISE:
            warnings.filterwarnings("ignore", message=f".*{message}")
        yield


def supported_engines() -> list[str]:
    """Engines whose kernels this build of torch and this processor have."""
    return [name for name in torch.backends.quantized.supported_engines if name != "none"]


@contextmanager
def using_engine(engine: Engine | None) -> Iterator[None]:
    """Run with this engine's kernels, None: as torch is; raises BackendUnavailable where it does not run."""
    if engine is None:
        yield
        return
    supported = supported_engines()
    if engine not in supported:
        raise BackendUnavailable(
            f"engine {engine!r} does not run here; this machine has {', '.join(supported)}"
        )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def default_engine() -> Engine:
    """What torch takes on this machine."""
    return cast(Engine, torch.backends.quantized.engine)


def static_qconfig(scheme: Static, *, training: bool) -> Any:
    """Observers for a static scheme, inside fake quantization where the model is trained."""
    wrap = _fake_quantize if training else _observe
    return QConfig(
        activation=wrap(scheme.activation.observer, "per_tensor", _activation_range(scheme.activation)),
        weight=wrap(scheme.weight.observer, scheme.weight.granularity, weight_range(scheme.weight)),
    )


def dynamic_qconfig(scheme: Dynamic) -> Any:
    """Observers for the weights; activations are measured by the kernel itself."""
    return QConfig(
        activation=PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True),
        weight=_observe(scheme.weight.observer, scheme.weight.granularity, weight_range(scheme.weight)),
    )


def weight_observer(spec: WeightSpec) -> Any:
    """A fresh observer for one weight."""
    return _observe(spec.observer, spec.granularity, weight_range(spec))()


def weight_range(spec: WeightSpec) -> dict[str, Any]:
    """Signed integers of that many bits, held in int8."""
    half = 2 ** (spec.bits - 1)
    qscheme = SCHEMES[spec.granularity, spec.symmetric]
    return {"dtype": torch.qint8, "qscheme": qscheme, "quant_min": -half, "quant_max": half - 1}


def _activation_range(spec: ActivationSpec) -> dict[str, Any]:
    """Unsigned integers of that many bits, one fewer where the range is reduced, held in uint8."""
    bits = spec.bits - spec.reduce_range
    qscheme = SCHEMES["per_tensor", spec.symmetric]
    return {"dtype": torch.quint8, "qscheme": qscheme, "quant_min": 0, "quant_max": 2**bits - 1}


def _observe(observer: Any, granularity: str, number: dict[str, Any]) -> Any:
    return OBSERVERS[observer.kind, granularity].with_args(**number, **_arguments(observer))


def _fake_quantize(observer: Any, granularity: str, number: dict[str, Any]) -> Any:
    fused = observer.kind == "moving_average"
    wrapper: Any = FusedMovingAvgObsFakeQuantize if fused else FakeQuantize
    return wrapper.with_args(observer=OBSERVERS[observer.kind, granularity], **number, **_arguments(observer))


def _arguments(observer: Any) -> dict[str, Any]:
    return {name: value for name, value in observer.model_dump().items() if name != "kind"}
