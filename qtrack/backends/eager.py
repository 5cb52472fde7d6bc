"""The eager backend: torch.ao's eager mode, for models that cannot be traced as well.

Modules run on integers, functions in float: between layers stands whatever forward() does, see
``eager_stubs``. What torch.ao fuses is found in the traced parts of the model (``eager_graph``); layers kept
in float are not fused, so that their weights stay what they were. The model with stubs and fused must come to
the float model's outputs on the example, or it is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.ao.quantization import (
    convert,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_module_mappings,
    prepare,
    propagate_qconfig_,
)
from torch.fx import Node

from qtrack.backends.assignment import Assignment, assign, some, torchs_own
from qtrack.backends.base import BOTH, Prepared, Quantized, Side, holds_weights
from qtrack.backends.eager_graph import chains
from qtrack.backends.eager_pairing import pair_modules
from qtrack.backends.eager_reference import emulated
from qtrack.backends.eager_stubs import STUBS, Ends, has_stubs, place, respect
from qtrack.backends.engines import quiet
from qtrack.backends.finishing import finish
from qtrack.backends.fx_pairing import qparams_of
from qtrack.backends.observers import search_ranges
from qtrack.backends.sameness import computes_the_same
from qtrack.backends.torch_ao import (
    fake_quantize,
    first_line,
    freeze_bn_stats,
    observe,
    without_quantization,
)
from qtrack.backends.tracing import Traced, traced
from qtrack.errors import BackendError
from qtrack.recipe import AnyScheme, Dynamic, Float, Recipe, Static
from qtrack.task import Inputs


@dataclass(frozen=True, eq=False)
class _Details:
    assignment: Assignment
    wrappers: Collection[str]
    """Modules of ours that stand in the place of the float model's, which is inside as ``module``."""
    closed: Collection[str]
    fused: nn.Module
    """The float model with wrappers and fused, from before anything was observed."""

    def place_of(self, name: str) -> str:
        """Where a module of the float model is now."""
        return f"{name}.module" if name in self.wrappers else name


class EagerBackend:
    """Stubs around layers, observers on modules, kernels of the engine."""

    observe = staticmethod(observe)
    fake_quantize = staticmethod(fake_quantize)
    freeze_bn_stats = staticmethod(freeze_bn_stats)

    def prepare(self, model: nn.Module, recipe: Recipe, example: Inputs) -> Prepared:
        closed = [*torchs_own(model), *recipe.non_traceable]
        assignment = assign(model, recipe, closed)
        training = recipe.training is not None
        placed = copy.deepcopy(model).train(training)
        try:
            with quiet():
                wrappers = _place(placed, recipe, assignment.schemes, closed, training=training)
                _check_same(model, placed, example)
                fused = copy.deepcopy(placed)
                prepared = _observe(placed, training=training)
        except BackendError:
            raise
        except Exception as cause:  # torch.ao, and whatever the model's code makes of wrapped layers
            raise BackendError(_explained(cause)) from cause
        return Prepared(prepared, recipe, _Details(assignment, wrappers, closed, fused))

    def convert(self, prepared: Prepared, example: Inputs) -> Quantized:
        details: _Details = prepared.details
        search_ranges(prepared.model)
        reference = _in_float(prepared)
        try:
            with quiet():
                converted = self._converted(prepared)
                pair = pair_modules(
                    reference,
                    converted,
                    example,
                    modules=details.assignment.modules,
                    wrappers=details.wrappers,
                    closed=details.closed,
                )
        except Exception as cause:  # kernels refuse what they cannot pack or run
            raise BackendError(_refused(cause)) from cause
        floats = tuple(s.layer for s in pair.sites if not s.quantized and holds_weights(converted, s.actual))
        qparams = _named(qparams_of(converted), details.wrappers)
        return Quantized(converted, pair, qparams, floats, details.assignment.stays_float(floats, "eager"))

    def _converted(self, prepared: Prepared) -> nn.Module:
        details: _Details = prepared.details
        schemes = {details.place_of(name): s for name, s in details.assignment.schemes.items()}
        model = copy.deepcopy(prepared.model).eval()
        converted: nn.Module = convert(model, inplace=True)
        finish(converted, schemes)
        return converted

    def reference(self, prepared: Prepared, sides: Collection[Side] = BOTH) -> nn.Module:
        with quiet():
            return self._emulated(prepared, self._converted(prepared), sides)

    def reference_of(self, prepared: Prepared, recorded: nn.Module) -> nn.Module:
        return self._emulated(prepared, recorded, BOTH)

    def _emulated(self, prepared: Prepared, kernels: nn.Module, sides: Collection[Side]) -> nn.Module:
        details: _Details = prepared.details
        dynamic = [n for n, scheme in details.assignment.schemes.items() if isinstance(scheme, Dynamic)]
        if dynamic:
            raise BackendError(f"layers in dynamic mode have no reference form: {some(dynamic)}")
        try:
            twin = copy.deepcopy(details.fused).eval() if "weights" in sides else _in_float(prepared)
            return emulated(twin, kernels, sides)
        except Exception as cause:  # a record of another model
            raise BackendError(f"the model has no reference form: {first_line(cause)}") from cause


def _in_float(prepared: Prepared) -> nn.Module:
    """The fused float model, as trained where it was."""
    trained = prepared.recipe.training is not None
    return without_quantization(copy.deepcopy(prepared.model if trained else prepared.details.fused))


def _place(
    model: nn.Module,
    recipe: Recipe,
    schemes: Mapping[str, AnyScheme],
    closed: Collection[str],
    *,
    training: bool,
) -> list[str]:
    """Fuse, and put stubs where there are none; the result is the names of the wrappers."""
    plan: list[tuple[Traced, Ends]] = []
    held: dict[str, AnyScheme] = {}
    for part in list(traced(model, leaves=STUBS)):
        fused, left = _chains(part, schemes, closed, training=training)
        for chain in fused:
            names = [part.name(node) for node in chain]
            (fuse_modules_qat if training else fuse_modules)(model, names, inplace=True)
        plan.append((part, {chain[0]: chain[-1] for chain in fused}))
        held |= {part.name(node): Float() for chain in left for node in chain}
    schemes = {**schemes, **held}
    for module in model.modules():
        module.qconfig = None  # type: ignore[assignment]  # an attribute by which torch.ao goes
    if not has_stubs(model):
        return place(model, schemes, plan, training=training)
    static = next((s for s in recipe.schemes() if isinstance(s, Static)), None)
    return respect(model, schemes, static, training=training) if static else []


def _chains(
    part: Traced, schemes: Mapping[str, AnyScheme], closed: Collection[str], *, training: bool
) -> tuple[list[list[Node]], list[list[Node]]]:
    """What is to be fused, and what is left as it is: in float, with what would have been fused into it."""
    fused: list[list[Node]] = []
    left: list[list[Node]] = []
    for chain in chains(part, training=training):
        names = [part.name(node) for node in chain]
        inside = any(name.startswith(f"{whole}.") for name in names for whole in closed)
        (left if inside or isinstance(schemes[names[0]], Float) else fused).append(chain)
    return fused, left


def _observe(model: nn.Module, *, training: bool) -> nn.Module:
    if not any(getattr(module, "qconfig", None) for module in model.modules()):
        return model
    if not training:
        observed: nn.Module = prepare(model, inplace=True)
        return observed
    mapping = get_default_qat_module_mappings()
    propagate_qconfig_(model)
    convert(model, mapping, inplace=True, remove_qconfig=False)
    prepare(model, observer_non_leaf_module_list=set(mapping.values()), inplace=True)
    return model


def _check_same(model: nn.Module, placed: nn.Module, example: Inputs) -> None:
    """Raise BackendError where wrapping and fusing changed what the float model computes."""
    training = placed.training
    same = computes_the_same(model, copy.deepcopy(placed), example)
    placed.train(training)
    if not same:
        raise BackendError(
            "the model with its layers fused gives other outputs than the float one: are layers called "
            "from outside of the module that they stand in?"
        )


def _explained(cause: Exception) -> str:
    return (
        f"torch.ao could not prepare the model: {first_line(cause)}; where forward() reads a layer's weights "
        "or calls it with more than one tensor, leave that layer in float or place stubs yourself"
    )


def _refused(cause: Exception) -> str:
    said, _, rest = str(cause).partition(" with ")
    if isinstance(cause, NotImplementedError) and "'CPU' backend" in rest:
        return (
            f"a layer on integers was given floats ({said}): leave layers that stand outside of the model's "
            "stubs in float"
        )
    if isinstance(cause, NotImplementedError) and "'QuantizedCPU' backend" in rest:
        return f"what runs in float was given integers ({said}): let it run static, or outside of the stubs"
    return f"torch.ao could not convert the model: {first_line(cause)}"


def _named(qparams: dict[str, Any], wrappers: Collection[str]) -> dict[str, Any]:
    """By the float model's names."""
    inside = {f"{name}.module.": f"{name}." for name in wrappers}

    def name_of(key: str) -> str:
        long = next((long for long in inside if key.startswith(long)), None)
        return key if long is None else inside[long] + key.removeprefix(long)

    return {name_of(key): value for key, value in qparams.items()}
