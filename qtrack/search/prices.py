"""What each layer of a network costs at each precision, and what a choice for all of them comes to.

Time is that of one batch. An integer kernel takes integers and gives integers, all else works on floats; so a
tensor is converted where its producer and one of its consumers are not of a kind: once, however many there
are of either. A float layer between two integer ones therefore pays for two conversions, and two float layers
in a row pay for as many as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from qtrack.recipe import Override, Recipe, Scheme

AS_IT_IS = "recipe"
"""The name of the rung that the recipe itself gives a layer."""
OUTSIDE = ""
"""What is before the first layer, behind the last, and whatever stays in float in between."""
INTEGERS = "int8"
Choice = Mapping[str, str]
"""The name of a rung for each layer; those that are not named stay as they are."""


@dataclass(frozen=True)
class Rung:
    """A layer at one precision."""

    name: str
    scheme: Scheme
    dtype: str
    noise: float
    """Over the signal, in the layer's own output with everything before it in float; 0 where it is exact."""
    milliseconds: float
    """Without conversions at its borders."""
    bytes: int

    @property
    def in_float(self) -> bool:
        """Does it take floats, and give them?"""
        return self.dtype != INTEGERS

    @property
    def sqnr_db(self) -> float | None:
        """None where it is exact."""
        return -10 * math.log10(self.noise) if self.noise > 0 else None


@dataclass(frozen=True)
class PricedLayer:
    """A module, or a call of a function, with the rungs that there are for it; the first is the recipe's."""

    layer: str
    type: str
    rungs: tuple[Rung, ...]
    is_call: bool = False

    def rung(self, name: str) -> Rung:
        """The one of that name."""
        return next(rung for rung in self.rungs if rung.name == name)

    def override(self, rung: Rung) -> Override:
        """What puts the layer on this rung."""
        if self.is_call:
            return Override(call=self.layer, scheme=rung.scheme)
        return Override(layer=self.layer, scheme=rung.scheme)

    def is_named_by(self, override: Override) -> bool:
        """Is it this layer alone that the override is for?"""
        return self.layer == (override.call if self.is_call else override.layer)


@dataclass(frozen=True)
class Flow:
    """A tensor on its way, by the names of layers; OUTSIDE stands for what stays in float."""

    producer: str
    consumers: tuple[str, ...]
    quantize_ms: float
    dequantize_ms: float


@dataclass(frozen=True)
class PriceTable:
    """Layers by rungs, and what comes to it; all plain data."""

    layers: tuple[PricedLayer, ...]
    """In execution order."""
    flows: tuple[Flow, ...]
    rest_ms: float
    """What takes its time whatever is chosen."""
    rest_bytes: int
    batch_size: int
    threads: int

    @cached_property
    def by_name(self) -> Mapping[str, PricedLayer]:
        """Layers by their names."""
        return {layer.layer: layer for layer in self.layers}

    def rungs(self, choice: Choice) -> dict[str, Rung]:
        """The rung that each layer stands on; raises KeyError for a layer that there is not."""
        named = {name: self.by_name[name].rung(rung) for name, rung in choice.items()}
        return {layer.layer: named.get(layer.layer, layer.rungs[0]) for layer in self.layers}

    def predicted_ms(self, choice: Choice) -> float:
        """Of one batch, conversions included."""
        rungs = self.rungs(choice)
        layers = sum(rung.milliseconds for rung in rungs.values())
        return self.rest_ms + layers + sum(ms for *_, ms in self.conversions(choice))

    def predicted_bytes(self, choice: Choice) -> int:
        """Of all parameters as they are stored."""
        return self.rest_bytes + sum(rung.bytes for rung in self.rungs(choice).values())

    def noise(self, choice: Choice, weights: Mapping[str, float] | None = None) -> float:
        """All layers' own noise, each times its weight: 1 where none is given."""
        weights = weights or {}
        return sum(weights.get(name, 1.0) * rung.noise for name, rung in self.rungs(choice).items())

    def conversions(self, choice: Choice) -> Iterator[tuple[Flow, str, float]]:
        """The tensor, ``quantize`` or ``dequantize``, and milliseconds, of each that there is."""
        in_float = {name: rung.in_float for name, rung in self.rungs(choice).items()} | {OUTSIDE: True}
        for flow in self.flows:
            producer, consumers = in_float[flow.producer], {in_float[name] for name in flow.consumers}
            if producer and False in consumers:
                yield flow, "quantize", flow.quantize_ms
            if not producer and True in consumers:
                yield flow, "dequantize", flow.dequantize_ms

    def recipe(self, recipe: Recipe, choice: Choice) -> Recipe:
        """The recipe that was priced with the layers on these rungs, each by one override."""
        moved = [(self.by_name[name], rung) for name, rung in choice.items() if rung != AS_IT_IS]
        kept = [o for o in recipe.overrides if not any(layer.is_named_by(o) for layer, _ in moved)]
        new = (layer.override(layer.rung(rung)) for layer, rung in moved)
        return recipe.having(overrides=(*kept, *new))

    def chosen(self, recipe: Recipe) -> dict[str, str]:
        """The rungs that such a recipe has its layers on."""
        return {layer.layer: _rung_in(recipe, layer) for layer in self.layers}

    def rows(self, chosen: Choice) -> list[dict[str, Any]]:
        """A row for each rung of each layer, and for the conversions of each tensor."""
        rungs, converted = self.rungs(chosen), {(flow, how) for flow, how, _ in self.conversions(chosen)}
        found = [
            _row(layer, rung, rungs[layer.layer] == rung) for layer in self.layers for rung in layer.rungs
        ]
        for flow in self.flows:
            for how, ms in (("quantize", flow.quantize_ms), ("dequantize", flow.dequantize_ms)):
                if flow.producer if how == "dequantize" else any(flow.consumers):  # else it is in float
                    found.append(_conversion(flow, how, ms, (flow, how) in converted))
        rest = {"layer": REST, "rung": REST, "type": REST, "milliseconds": self.rest_ms}
        return [*found, dict.fromkeys(COLUMNS) | rest | {"bytes": self.rest_bytes, "chosen": True}]


@dataclass(frozen=True)
class PriceRow:
    """A row of the table as it is recorded."""

    layer: str
    """Of a conversion: who hands a tensor to whom."""
    rung: str
    type: str
    """Of a layer; else ``conversion`` or ``rest``."""
    dtype: str | None
    sqnr_db: float | None
    milliseconds: float
    bytes: int
    chosen: bool


COLUMNS = tuple(field.name for field in fields(PriceRow))
CONVERSION, REST, FLOAT = "conversion", "rest", "float"


def _rung_in(recipe: Recipe, layer: PricedLayer) -> str:
    override = next((o for o in reversed(recipe.overrides) if layer.is_named_by(o)), None)
    rungs = (rung.name for rung in layer.rungs if override and rung.scheme == override.scheme)
    return next(rungs, layer.rungs[0].name)


def _row(layer: PricedLayer, rung: Rung, chosen: bool) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "rung": rung.name,
        "type": layer.type,
        "dtype": rung.dtype,
        "sqnr_db": rung.sqnr_db,
        "milliseconds": rung.milliseconds,
        "bytes": rung.bytes,
        "chosen": chosen,
    }


def _conversion(flow: Flow, how: str, milliseconds: float, chosen: bool) -> dict[str, Any]:
    readers = ", ".join(name or FLOAT for name in flow.consumers)
    row = {"layer": f"{flow.producer or FLOAT} > {readers}", "rung": how, "type": CONVERSION}
    return dict.fromkeys(COLUMNS) | row | {"milliseconds": milliseconds, "bytes": 0, "chosen": chosen}
