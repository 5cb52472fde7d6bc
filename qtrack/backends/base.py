"""What a backend is: the one door to a quantization library."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from qtrack.numerics import Pair
from qtrack.recipe import Recipe
from qtrack.task import Inputs

Side = Literal["weights", "activations"]
BOTH: tuple[Side, ...] = ("weights", "activations")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model with observers or fake quantization in place, ready to be calibrated or trained."""

    model: nn.Module
    recipe: Recipe
    details: Any = None
    """The backend's own notes."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A converted model, paired layer by layer with its fused float reference."""

    model: nn.Module
    pair: Pair
    qparams: Mapping[str, Any] = field(default_factory=dict)
    """Scales and zero-points by layer, as plain numbers and lists."""
    float_layers: tuple[str, ...] = ()
    """Layers with weights that stayed in float."""
    warnings: tuple[str, ...] = ()
    """What was asked for and could not be done."""


def layers_with_weights(model: nn.Module) -> tuple[str, ...]:
    """Names of all modules whose weights could be quantized: no norms, whose weights are vectors."""
    return tuple(name for name, module in model.named_modules() if has_weights(module))


def has_weights(module: nn.Module) -> bool:
    """Is it a layer whose weights can be quantized?"""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= 2


def holds_weights(model: nn.Module, layer: str) -> bool:
    """Has the layer (or a call of it, ``#2``), or anything inside it, weights that could be quantized?"""
    return any(map(has_weights, model.get_submodule(layer.partition("#")[0]).modules()))


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put another module in the place of one, under every name that it goes by."""
    old = model.get_submodule(name)
    for alias, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(alias, new)


class Backend(Protocol):
    """Turns recipes into quantized models; foreign exceptions leave it as BackendError."""

    def prepare(self, model: nn.Module, recipe: Recipe, example: Inputs) -> Prepared:
        """Insert observers as the recipe says, fake quantization where it has ``training``."""

    def observe(self, prepared: Prepared, on: bool) -> None:
        """Let observers move, or hold them still."""

    def fake_quantize(self, prepared: Prepared, on: bool) -> None:
        """Switch fake quantization on or off, where there is any."""

    def freeze_bn_stats(self, prepared: Prepared) -> None:
        """Hold BatchNorm's running statistics still from now on."""

    def convert(self, prepared: Prepared, example: Inputs) -> Quantized:
        """The model on the engine's integer kernels; ``prepared`` itself is left as it is."""

    def reference(self, prepared: Prepared, sides: Collection[Side] = BOTH) -> nn.Module:
        """The unlowered model that emulates the integer arithmetic in float, or one side of it alone.

        Raises BackendError where the backend has no such form.
        """

    def reference_of(self, prepared: Prepared, recorded: nn.Module) -> nn.Module:
        """The same with the scales and parameters of a recorded model, in operators that torch exports."""
