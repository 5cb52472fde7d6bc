"""Which backend carries out which feature of a recipe: plain data, known without importing any library.

A key is a field of a recipe (of a scheme: with its mode before it), and the values are those that take
effect. What a backend's table does not have is refused before anything runs, never done as something else.
What depends on the model (whether torch.ao has a kernel for some layer) is not said here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from qtrack.backends.torchao_json import faults_in
from qtrack.errors import RecipeError
from qtrack.recipe import ActivationSpec, AnyScheme, Recipe, Torchao, WeightSpec

Features = Mapping[str, tuple[Any, ...]]
YES = (True,)
EITHER = (True, False)
BITS = tuple(range(2, 9))
OBSERVERS = ("min_max", "moving_average", "histogram", "percentile")
WAYS = ("layer", "glob", "type", "function", "call")
TRANSFORMS = ("fold_batch_norm", "equalize", "correct_bias")
"""On the float model, so that any backend will do."""


def _weights(
    mode: str,
    granularity: tuple[str, ...] = ("per_tensor", "per_channel"),
    observer: tuple[str, ...] = ("min_max", "histogram", "percentile"),
    bits: tuple[int, ...] = BITS,
    symmetric: tuple[bool, ...] = EITHER,
) -> Features:
    found = {"bits": bits, "symmetric": symmetric, "granularity": granularity, "observer": observer}
    return {f"{mode}.weight.{name}": values for name, values in found.items()}


def _activations(observer: tuple[str, ...] = OBSERVERS) -> Features:
    found = {"bits": BITS, "symmetric": EITHER, "reduce_range": EITHER, "observer": observer}
    return {f"static.activation.{name}": values for name, values in found.items()}


TORCH_AO: Features = {
    "mode": ("static", "dynamic", "weight_only", "float16", "float"),
    "training": YES,
    **_weights("static", observer=OBSERVERS),
    **_activations(),
    **_weights("dynamic"),
    **_weights("weight_only"),
    "transforms": TRANSFORMS,
    "engine": ("x86", "fbgemm", "onednn", "qnnpack"),
}
CAPABILITIES: dict[str, Features] = {
    "fx": {**TORCH_AO, "overrides": WAYS, "non_traceable": YES},
    "eager": {**TORCH_AO, "overrides": ("layer", "glob", "type"), "non_traceable": YES},
    "pt2e": {
        "mode": ("static", "dynamic", "weight_only", "float"),
        "training": YES,
        **_weights("static", observer=OBSERVERS),
        **_activations(),
        **_weights("dynamic"),
        **_weights("weight_only"),
        "overrides": WAYS,
        "transforms": TRANSFORMS,
    },
    "torchao": {
        "mode": ("dynamic", "weight_only", "torchao", "float"),
        **_weights("dynamic", ("per_channel",), ("min_max",), (8,), (True,)),
        **_weights("weight_only", ("per_channel", "per_group"), ("min_max",)),
        "overrides": ("layer", "glob", "type"),
        "transforms": TRANSFORMS,
    },
}
PACKAGES = {"pt2e": "torchao", "torchao": "torchao"}
"""What a backend needs beside torch; the extra of qtrack that brings it is called like the backend."""


class Use(NamedTuple):
    """A feature that a recipe asks for, and where."""

    field: str
    """``overrides[0].scheme.weight.bits``"""
    feature: str
    """``static.weight.bits``"""
    value: Any


def missing(backend: str) -> str | None:
    """What to do where the backend's package is not installed; None where it is."""
    package = PACKAGES.get(backend)
    return (
        None if package is None or find_spec(package) else f"not installed: pip install 'qtrack[{backend}]'"
    )


def has_engines(backend: str) -> bool:
    """Does the recipe choose whose integer kernels the backend runs on?"""
    return "engine" in CAPABILITIES[backend]


def features() -> tuple[str, ...]:
    """Every feature that some backend has, in the order of their tables."""
    return tuple(dict.fromkeys(name for table in CAPABILITIES.values() for name in table))


def check(recipe: Recipe, where: str = "recipe") -> None:
    """Raise RecipeError, a line for each feature that the recipe asks for and its backend has not."""
    found = faults(recipe, where)
    if found:
        raise RecipeError(found)


def faults(recipe: Recipe, where: str = "recipe") -> list[str]:
    """One line for each: the field, what the backend has instead, and the backends that have it."""
    absent = [
        f"{where}.{use.field}: backend {recipe.backend!r} has no {_named(use)}{_instead(recipe.backend, use)}"
        for use in asked(recipe)
        if not _has(recipe.backend, use)
    ]
    return [*absent, *_faults_of_configs(recipe, where)]


def _faults_of_configs(recipe: Recipe, where: str) -> Iterator[str]:
    """Names in torchao's own configurations that it is not asked for."""
    if "torchao" in CAPABILITIES[recipe.backend]["mode"]:
        for path, scheme in placed_schemes(recipe, where):
            if isinstance(scheme, Torchao):
                yield from faults_in(scheme.config, f"{path}.config")


def placed_schemes(recipe: Recipe, where: str = "recipe") -> Iterator[tuple[str, AnyScheme]]:
    """Each scheme of a recipe, and where it stands."""
    yield f"{where}.default", recipe.default
    for i, override in enumerate(recipe.overrides):
        yield f"{where}.overrides[{i}].scheme", override.scheme


def asked(recipe: Recipe) -> Iterator[Use]:
    """Every feature that a recipe uses."""
    if recipe.engine is not None:
        yield Use("engine", "engine", recipe.engine)
    if recipe.training is not None:
        yield Use("training", "training", True)
    if recipe.non_traceable:
        yield Use("non_traceable", "non_traceable", True)
    for i, transform in enumerate(recipe.transforms):
        yield Use(f"transforms[{i}]", "transforms", transform.kind)
    yield from _of_scheme("default", recipe.default)
    for i, override in enumerate(recipe.overrides):
        yield Use(f"overrides[{i}].{override.way}", "overrides", override.way)
        yield from _of_scheme(f"overrides[{i}].scheme", override.scheme)


def _of_scheme(path: str, scheme: Any) -> Iterator[Use]:
    yield Use(f"{path}.mode", "mode", scheme.mode)
    for part in ("weight", "activation"):
        if hasattr(scheme, part):
            yield from _of_spec(f"{path}.{part}", f"{scheme.mode}.{part}", getattr(scheme, part))


def _of_spec(path: str, feature: str, spec: WeightSpec | ActivationSpec) -> Iterator[Use]:
    for name, value in spec:
        if name == "group_size":  # said by the granularity
            continue
        yield Use(f"{path}.{name}", f"{feature}.{name}", getattr(value, "kind", value))


def _has(backend: str, use: Use) -> bool:
    """Where even the mode is missing, that alone is a fault."""
    table = CAPABILITIES[backend]
    mode = use.feature.partition(".")[0]
    if use.feature != mode and mode not in table["mode"]:
        return True
    return use.value in table.get(use.feature, ())


def _named(use: Use) -> str:
    return use.feature if use.value is True else f"{use.feature} {str(use.value).lower()}"


def _instead(backend: str, use: Use) -> str:
    others = [name for name in CAPABILITIES if use.value in CAPABILITIES[name].get(use.feature, ())]
    own = CAPABILITIES[backend].get(use.feature, ())
    has = f"it has {', '.join(str(value).lower() for value in own)}; " if own else ""
    return f" ({has}{', '.join(others) or 'none'} {'has' if len(others) == 1 else 'have'} it)"
