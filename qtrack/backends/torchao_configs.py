"""A recipe's schemes as torchao's configurations.

A configuration in torchao's own JSON form is data from a file, and torchao makes an object of whatever class
of its packages the data names. So every name in it must be on one of the lists here before torchao sees it.
``set_inductor_config`` is always off: it changes settings of the whole process, for ``torch.compile`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from qtrack.backends.messages import first_line
from qtrack.backends.torchao_door import hushed, torchao
from qtrack.errors import RecipeError
from qtrack.recipe import AnyScheme, Dynamic, Float, Recipe, Torchao, WeightOnly, WeightSpec

WEIGHTS_ALONE = ("Int8WeightOnlyConfig", "IntxWeightOnlyConfig", "Float8WeightOnlyConfig")
"""They compute in float, and so do for embeddings as well."""
CONFIGS = (
    *WEIGHTS_ALONE,
    "Int8DynamicActivationInt8WeightConfig",
    "Int8DynamicActivationIntxWeightConfig",
    "Int4WeightOnlyConfig",
    "Float8DynamicActivationFloat8WeightConfig",
    "Float8DynamicActivationInt4WeightConfig",
)
PARTS = (
    *("PerRow", "PerTensor", "PerGroup", "PerAxis", "MappingType"),
    *("IntxPackingFormat", "IntxChooseQParamsAlgorithm", "Int4PackingFormat", "Int4ChooseQParamsAlgorithm"),
)
DTYPE = "torch.dtype"


def configs_of(recipe: Recipe) -> dict[AnyScheme, Any]:
    """torchao's configuration for each scheme of a recipe; raises RecipeError where one is none."""
    return {scheme: _config(scheme, where) for where, scheme in _schemes(recipe) if scheme != Float()}


def _schemes(recipe: Recipe) -> Iterator[tuple[str, AnyScheme]]:
    yield "recipe.default", recipe.default
    for i, override in enumerate(recipe.overrides):
        yield f"recipe.overrides[{i}].scheme", override.scheme


def _config(scheme: AnyScheme, where: str) -> Any:
    if isinstance(scheme, Torchao):
        return _from_json(scheme.config, f"{where}.config")
    if isinstance(scheme, Dynamic):
        return torchao().Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    assert isinstance(scheme, WeightOnly)
    return _weight_only(scheme.weight)


def _weight_only(weight: WeightSpec) -> Any:
    """Eight symmetric bits per channel have a form of their own; IntX has all others."""
    ao = torchao()
    if weight == WeightSpec(granularity="per_channel"):
        return ao.Int8WeightOnlyConfig(granularity=ao.PerRow(), set_inductor_config=False)
    return ao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{weight.bits}"),
        granularity=ao.PerAxis(0) if weight.group_size is None else ao.PerGroup(weight.group_size),
        mapping_type=ao.MappingType.SYMMETRIC if weight.symmetric else ao.MappingType.ASYMMETRIC,
    )


def _from_json(data: Mapping[str, Any], where: str) -> Any:
    _check(data, where, CONFIGS)
    reader = torchao("torchao.core.config")
    try:
        with hushed():
            config = reader.config_from_dict(dict(data))
    except Exception as cause:  # a class of torchao's may check its arguments in any way
        raise RecipeError(f"{where}: torchao cannot read it: {first_line(cause)}") from cause
    if hasattr(config, "set_inductor_config"):
        config.set_inductor_config = False
    return config


def _check(data: Any, where: str, allowed: tuple[str, ...]) -> None:
    """Raise RecipeError unless every class that the data names is on its list."""
    if isinstance(data, list):
        for i, part in enumerate(data):
            _check(part, f"{where}[{i}]", PARTS)
    if not isinstance(data, Mapping):
        return
    if data.get("_type") == DTYPE and allowed is PARTS:
        _check_dtype(data.get("_data"), where)
    elif data.get("_type") not in allowed:
        raise RecipeError(f"{where}._type: {data.get('_type')!r} is not one of {', '.join(allowed)}")
    elif isinstance(fields := data.get("_data"), Mapping):
        for name, part in fields.items():
            _check(part, f"{where}.{name}", PARTS)


def _check_dtype(name: Any, where: str) -> None:
    if not isinstance(getattr(torch, str(name), None), torch.dtype):
        raise RecipeError(f"{where}._data: {name!r} is no dtype of torch's, such as int4")
