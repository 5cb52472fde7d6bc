"""What a configuration in torchao's own JSON form may name: plain data, known without importing torchao.

Such a configuration comes from a file, and torchao makes an object of whatever class of its packages is named
there. So every name in it must be on one of these lists before torchao sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
"""Which of them run is up to the machine. ``FqnToConfig`` is not among them: a recipe has overrides."""
PARTS = (
    *("PerRow", "PerTensor", "PerGroup", "PerAxis", "MappingType"),
    *("IntxPackingFormat", "IntxChooseQParamsAlgorithm", "Int4PackingFormat", "Int4ChooseQParamsAlgorithm"),
)
DTYPE = "torch.dtype"
DTYPES = (
    *(f"int{bits}" for bits in range(1, 9)),
    *("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32"),
)


def faults_in(config: Mapping[str, Any], where: str) -> list[str]:
    """One line for each name that is not on its list."""
    return list(_faults(config, where, CONFIGS))


def _faults(data: Any, where: str, allowed: tuple[str, ...]) -> Iterator[str]:
    if isinstance(data, list):
        for i, part in enumerate(data):
            yield from _faults(part, f"{where}[{i}]", PARTS)
    elif isinstance(data, Mapping):
        kind, fields = data.get("_type"), data.get("_data")
        if kind == DTYPE and allowed is PARTS:
            yield from _unlisted(fields, f"{where}._data", DTYPES)
        else:
            yield from _unlisted(kind, f"{where}._type", allowed)
        if kind in CONFIGS and not isinstance(fields, Mapping):
            yield f"{where}._data: holds the fields of {kind}, such as {{}}, not {fields!r}"
        if isinstance(fields, Mapping):
            for name, part in fields.items():
                yield from _faults(part, f"{where}.{name}", PARTS)


def _unlisted(name: Any, where: str, allowed: tuple[str, ...]) -> Iterator[str]:
    if name not in allowed:
        yield f"{where}: {name!r} is not one of {', '.join(allowed)}"
