"""A recipe's schemes as torchao's configurations.

``set_inductor_config`` is always off: it changes settings of the whole process, for ``torch.compile`` alone.
"""

from __future__ import annotations

from typing import Any

import torch

from qtrack.backends.capabilities import placed_schemes
from qtrack.backends.messages import first_line, hushed
from qtrack.backends.torchao_door import torchao
from qtrack.backends.torchao_json import faults_in
from qtrack.errors import RecipeError
from qtrack.recipe import AnyScheme, Dynamic, Float, Recipe, Torchao, WeightOnly, WeightSpec


def configs_of(recipe: Recipe) -> dict[AnyScheme, Any]:
    """torchao's configuration for each scheme of a recipe; raises RecipeError where one is none."""
    return {scheme: _config(scheme, where) for where, scheme in placed_schemes(recipe) if scheme != Float()}


def _config(scheme: AnyScheme, where: str) -> Any:
    if isinstance(scheme, Torchao):
        return _from_json(scheme, f"{where}.config")
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


def _from_json(scheme: Torchao, where: str) -> Any:
    if found := faults_in(scheme.config, where):
        raise RecipeError(found)
    _check_version(scheme.config, where)
    reader = torchao("torchao.core.config")
    try:
        with hushed():
            config = reader.config_from_dict(scheme.config)
    except Exception as cause:  # a class of torchao's may check its arguments in any way
        raise RecipeError(f"{where}: torchao cannot read it: {first_line(cause)}") from cause
    if hasattr(config, "set_inductor_config"):
        config.set_inductor_config = False
    return config


def _check_version(config: dict[str, Any], where: str) -> None:
    """torchao reads what has no version as version 1, most of which it has given up since."""
    kind, version = config["_type"], config.get("_version")
    wanted = getattr(torchao(), kind).version
    if version != wanted:
        raise RecipeError(f"{where}._version: this torchao has version {wanted} of {kind}, not {version}")
