"""The price table of a recipe: each layer's error and time on every rung, measured on this machine.

One quantized model is made for each kind of rung, with all layers on it that can be, and all are compared
with the float network in one sweep over the calibration samples: a layer's noise is that of its own output,
over the signal, with everything before it in float. Times are taken in place, on the first calibration batch.
A kernel that comes after one of the other type finds the processor colder than it does among its like; what
that comes to is measured on one more model, with every other layer in float, and stands in the conversions.

Rungs: as the recipe has it; the same with other observers, or with scales per channel; dynamic int8; weights
stored in float16; float. What the backend or the layer cannot have is left out. bfloat16 is no mode of
recipes. Layers are moved one rung at a time: combinations, such as another observer with scales per channel,
are had by starting from a recipe that has one of them.

Only fx is priced. Eager mode and torchao have no graph that says which layer's output goes where, so that
nobody knows which conversions two layers share; pt2e's graph computes in float between conversions, and what
compilers make of it takes another time.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from qtrack.backends.assignment import lineages_of
from qtrack.backends.capabilities import check
from qtrack.backends.engines import using_engine
from qtrack.data import batches_of, calibration_batches
from qtrack.engine import Parts, quantize, settled
from qtrack.engine.measure import size_bytes
from qtrack.errors import RecipeError
from qtrack.monitor import SILENT, Monitor, Titled
from qtrack.numerics import Options, Pair, Site, compare_many
from qtrack.numerics.compare import batch_size, channels_last, tensors_in
from qtrack.numerics.graph import Program
from qtrack.numerics.steps import Inputs, Runner
from qtrack.numerics.timing import Timing, timings
from qtrack.numerics.wiring import Wire, Wiring, total
from qtrack.outcome import Cost
from qtrack.recipe import AnyScheme, Call, Dynamic, Float, Float16, Recipe, Static
from qtrack.search.prices import AS_IT_IS, OUTSIDE, Flow, PricedLayer, PriceTable, Rung
from qtrack.task import Task

OBSERVERS = ("min_max", "moving_average", "histogram", "percentile")
KINDS = (*OBSERVERS, "per_channel", "dynamic", "float16")
"""Rungs for which a model is made; beside them there are the recipe's own, and float."""
DTYPES = {"dynamic": "int8_dynamic", "float16": "float16_weight"}
"""What a layer must have become to stand on that rung; on the others int8."""
WITH_RANGES = ("add", "mul", "matmul")
"""Functions whose output has a range of its own, so that it may have an observer of its own."""
SAMPLE = 8192
"""Elements of each sample's tensor that are looked at."""


def prices(
    task: Task, recipe: Recipe, monitor: Monitor = SILENT, sizes: Mapping[str, int] | None = None
) -> tuple[PriceTable, Cost]:
    """Measure it; raises RecipeError where the recipe cannot be priced, and what ``quantize`` raises."""
    began = time.perf_counter()
    recipe = settled(recipe)
    _refuse(recipe)
    sweep = _Sweep(task, recipe, monitor, sizes or {})
    table = sweep.table()
    seconds = time.perf_counter() - began
    return table, Cost(seconds, {"price": seconds}, sweep.forward_samples, 0)


def scheme_on(kind: str, scheme: AnyScheme) -> AnyScheme | None:
    """What a layer's scheme becomes on a rung of this kind; None where there is nothing to change."""
    if kind in ("float16", "float"):
        new: dict[str, AnyScheme] = {"float16": Float16(), "float": Float()}
        return None if scheme.mode in ("float", kind) else new[kind]
    if not isinstance(scheme, Static):
        return None
    if kind == "dynamic":
        return Dynamic(weight=scheme.weight)
    if kind == "per_channel":
        weight = scheme.weight.having(granularity=kind, group_size=None, observer="min_max")
        return None if scheme.weight.granularity == kind else scheme.having(weight=weight)
    spec = scheme.activation
    return None if spec.observer.kind == kind else scheme.having(activation=spec.having(observer=kind))


def recipe_on(kind: str, recipe: Recipe) -> Recipe | None:
    """All layers on that rung that can be; None where the backend or the recipe has none.

    Functions have no other modes: an override that names some would keep them on integers, and falls away.
    """
    new = {scheme: scheme_on(kind, scheme) for scheme in recipe.schemes()}
    if new[recipe.default] is None:
        return None
    stays = kind not in DTYPES
    overrides = tuple(
        override.having(scheme=new[override.scheme] or override.scheme)
        for override in recipe.overrides
        if stays or not override.names_calls
    )
    found = recipe.having(default=new[recipe.default], overrides=overrides)
    try:
        check(found)
    except RecipeError:  # the backend has no such rung
        return None
    return found


def _refuse(recipe: Recipe) -> None:
    if recipe.backend != "fx":
        raise RecipeError(
            f"recipe.backend: the layers of {recipe.backend} cannot be priced one by one: use fx"
        )
    if not isinstance(recipe.default, Static):
        raise RecipeError(
            f"recipe.default.mode: {recipe.default.mode} has no ladder of rungs: start from a stage that "
            "quantizes statically, such as ptq"
        )
    if recipe.training is not None:
        raise RecipeError("recipe.training: rungs are priced without training: start from a stage without it")


@dataclass(frozen=True, eq=False)
class _Kind:
    """One kind of rung: a quantized model with its layers, and what was measured on them."""

    parts: Parts
    sites: Mapping[str, Site]
    noise: Mapping[str, float]
    timing: Timing
    bytes: Mapping[str, int]


class _Sweep:
    """All models, one sweep over the samples, and the clock."""

    def __init__(self, task: Task, recipe: Recipe, monitor: Monitor, sizes: Mapping[str, int]) -> None:
        self.task = task
        self.recipe = recipe
        self.monitor = monitor
        self.sizes = sizes
        self.forward_samples = 0
        wanted = {AS_IT_IS: recipe} | {kind: recipe_on(kind, recipe) for kind in KINDS}
        self.parts = {kind: self._quantized(kind, one) for kind, one in wanted.items() if one is not None}
        self.wiring = Wiring(self.parts[AS_IT_IS].quantized.pair)
        self.lineages = lineages_of(task.model())
        self.every_other = self._weighted()[1::2]
        self.mixed = self._quantized("mixed", recipe.keeping_float(*self.every_other))

    def _weighted(self) -> list[str]:
        """Layers with weights that run on integers."""
        found = (
            self.wiring.layer(site) for site in self.wiring.sites if site.params and site.dtype == "int8"
        )
        return list(dict.fromkeys(found))

    def table(self) -> PriceTable:
        """Put together of what was measured."""
        if not any(site.dtype == "int8" for site in self.wiring.sites):
            raise RecipeError("recipe: no layer runs on integers, so that there is nothing to choose for")
        with using_engine(self.recipe.engine):
            noises = self._noises()
            timed, floats, mixed, whole_ms = self._times()
        kinds = {
            kind: _Kind(parts, _sites(parts.quantized.pair), noises[kind], timed[kind], self._bytes(parts))
            for kind, parts in self.parts.items()
        }
        layers = tuple(self._layers(kinds, floats))
        outside = total(floats.nodes, tuple(self.wiring.outside()))
        own = kinds[AS_IT_IS]
        table = PriceTable(
            layers=layers,
            flows=tuple(self._flows(own, floats)),
            rest_ms=outside,
            rest_bytes=size_bytes(own.parts.quantized.model.state_dict()) - sum(own.bytes.values()),
            batch_size=self.batch_size,
            threads=torch.get_num_threads(),
        )
        switching = _switching(table, dict.fromkeys(self.every_other, "float"), sum(mixed.nodes.values()))
        return replace(
            table, flows=switching, rest_ms=outside + max(whole_ms - sum(own.timing.nodes.values()), 0.0)
        )

    def _quantized(self, kind: str, recipe: Recipe) -> Parts:
        title = "price" if kind == AS_IT_IS else f"price {kind}"
        parts = quantize(self.task, recipe, Titled(title, self.monitor), sizes=self.sizes)
        self.forward_samples += parts.forward_samples
        return parts

    def _noises(self) -> dict[str, dict[str, float]]:
        """By kind and layer: one sweep over the calibration samples for all models."""
        reference = self.parts[AS_IT_IS].quantized.pair.reference
        pairs = [
            Pair(reference, p.quantized.pair.actual, p.quantized.pair.sites) for p in self.parts.values()
        ]
        choice = self.recipe.calibration
        batches = calibration_batches(self.task, choice, self.recipe.seed, self.recipe.training_seed)
        found = compare_many(pairs, map(self.task.inputs, batches), Options(sample=SAMPLE))
        self.forward_samples += (len(pairs) + 1) * found[0].samples
        return {
            kind: {row.layer: _noise(row.own_sqnr_db) for row in comparison.rows}
            for kind, comparison in zip(self.parts, found, strict=True)
        }

    def _times(self) -> tuple[dict[str, Timing], Timing, Timing, float]:
        """Of each kind, of the float network, of the mixed one, and of one call of the recipe's own model.

        Integer kernels write channels last, so that is what a float layer after one of them reads.
        """
        inputs = channels_last(self.task.inputs(next(batches_of(self.task, "calibration"))))
        kinds = [kind for kind in self.parts if kind not in OBSERVERS]  # which have the recipe's kernels
        programs = [_program(self.parts[kind].quantized.pair.actual) for kind in kinds]
        programs += [self.wiring.program, _program(self.mixed.quantized.pair.actual)]
        model = self.parts[AS_IT_IS].quantized.model
        (*found, floats, mixed), whole_ms, passes = timings(programs, model, inputs)
        self.batch_size = batch_size(inputs)
        self.tensors = self._tensors(inputs)
        self.forward_samples += passes * self.batch_size
        timed = dict(zip(kinds, found, strict=True))
        return {kind: timed.get(kind, timed[AS_IT_IS]) for kind in self.parts}, floats, mixed, whole_ms

    def _tensors(self, inputs: Inputs) -> set[str]:
        """Nodes of the float network that give tensors, not sizes or the like."""
        with torch.no_grad():
            steps = self.wiring.program.run(inputs, self.wiring.nodes)
            return {step.node for step in steps if tensors_in(step.output)}

    def _bytes(self, parts: Parts) -> dict[str, int]:
        state = parts.quantized.model.state_dict()
        layers = {self.wiring.layer(site) for site in self.wiring.sites if site.params}
        return {layer: _stored_bytes(state, layer) for layer in layers}

    def _layers(self, kinds: Mapping[str, _Kind], floats: Timing) -> Iterator[PricedLayer]:
        calls: dict[str, list[Site]] = {}
        for site in self.wiring.sites:
            calls.setdefault(self.wiring.layer(site), []).append(site)
        for layer, sites in calls.items():
            rungs = self._rungs(layer, sites, kinds, floats)
            yield PricedLayer(layer, sites[0].type, tuple(rungs), not self.wiring.is_module(sites[0]))

    def _rungs(
        self, layer: str, sites: list[Site], kinds: Mapping[str, _Kind], floats: Timing
    ) -> Iterator[Rung]:
        scheme = self._scheme(layer, sites[0])
        yield _rung(AS_IT_IS, scheme, layer, sites, kinds[AS_IT_IS])
        for kind, measured in kinds.items():
            changed = scheme_on(kind, scheme) if kind != AS_IT_IS else None
            if changed is not None and self._may(kind, sites[0]) and _stands(kind, sites, measured):
                yield _rung(kind, changed, layer, sites, measured)
        if sites[0].quantized and scheme.mode != "float" and not self.wiring.is_method(sites[0]):
            ms = sum(total(floats.nodes, self.wiring.spans[site.layer]) for site in sites)
            stored = _stored_bytes(self.wiring.program.module.state_dict(), layer)
            yield Rung("float", Float(), "float32", 0.0, ms, stored)

    def _may(self, kind: str, site: Site) -> bool:
        """May it be put on such a rung by itself?"""
        if site.params:
            return True
        return kind in OBSERVERS and site.type in WITH_RANGES and not self.wiring.is_method(site)

    def _scheme(self, layer: str, site: Site) -> AnyScheme:
        if layer in self.lineages and self.wiring.is_module(site):
            return self.recipe.scheme_for(self.lineages[layer])
        around = self.lineages.get(layer.rpartition(".")[0], ())
        return self.recipe.scheme_for((*around, Call(layer, site.type)))

    def _flows(self, own: _Kind, floats: Timing) -> Iterator[Flow]:
        for wire in self.wiring.wires():
            consumers = _consumers(wire, self.tensors)
            if consumers and wire.node in self.tensors:
                actual = [site.actual for site in self.wiring.sites if site.end == wire.node]
                dequantize = total(own.timing.conversions, tuple(actual))
                yield Flow(wire.producer or OUTSIDE, consumers, floats.conversions[wire.node], dequantize)


def _rung(kind: str, scheme: AnyScheme, layer: str, sites: list[Site], measured: _Kind) -> Rung:
    """Over all calls of the layer."""
    found = [measured.sites[site.layer] for site in sites]
    return Rung(
        kind,
        scheme,
        found[0].dtype,
        sum(measured.noise.get(site.layer, 0.0) for site in found),
        total(measured.timing.nodes, tuple(site.actual for site in found)),
        measured.bytes.get(layer, 0),
    )


def _switching(table: PriceTable, mixed: Mapping[str, str], measured_ms: float) -> tuple[Flow, ...]:
    """The flows with what the mixed model takes beyond its parts, as a part of conversions between layers."""
    between = {flow for flow in table.flows if OUTSIDE not in (flow.producer, *flow.consumers)}
    count = sum(flow in between for flow, _, _ in table.conversions(mixed))
    extra = max(measured_ms - table.predicted_ms(mixed), 0.0) / max(count, 1)

    def dearer(flow: Flow) -> Flow:
        return replace(flow, quantize_ms=flow.quantize_ms + extra, dequantize_ms=flow.dequantize_ms + extra)

    return tuple(dearer(flow) if flow in between else flow for flow in table.flows)


def _stands(kind: str, sites: list[Site], measured: _Kind) -> bool:
    """Did the layer become what the rung says?"""
    found = [measured.sites.get(site.layer) for site in sites]
    return all(site is not None and site.dtype == DTYPES.get(kind, "int8") for site in found)


def _sites(pair: Pair) -> dict[str, Site]:
    return {site.layer: site for site in (*pair.sites, *pair.moving)}


def _consumers(wire: Wire, tensors: Collection[str]) -> tuple[str, ...]:
    """Those that read a tensor to make one, or hand it out; each once."""
    readers = (layer or OUTSIDE for node, layer in wire.consumers if node == "output" or node in tensors)
    return tuple(dict.fromkeys(readers))


def _noise(own_sqnr_db: float | None) -> float:
    return 0.0 if own_sqnr_db is None else 10 ** (-own_sqnr_db / 10)


def _stored_bytes(state: Mapping[str, Any], layer: str) -> int:
    """Of what a ``state_dict`` has of a layer."""
    return size_bytes({name: value for name, value in state.items() if name.startswith(f"{layer}.")})


def _program(runner: Runner) -> Program:
    assert isinstance(runner, Program)
    return runner
