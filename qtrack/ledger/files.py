"""The files that a stage leaves with its run, each written from plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from qtrack.ledger.masking import MASK, is_secret, mask_secrets
from qtrack.ledger.names import TARGET_MET, File
from qtrack.outcome import LayerRow
from qtrack.reading import check_plain, reason_of
from qtrack.recipe import Recipe, recipe_to_yaml
from qtrack.recipe_diff import recipe_diff
from qtrack.search.prices import PriceRow

if TYPE_CHECKING:
    from qtrack.records import Setting, StageResult
    from qtrack.stages import Judged

Row = Mapping[str, Any]


@with_config(ConfigDict(strict=True, str_max_length=1000, allow_inf_nan=False))
@dataclass(frozen=True)
class _Layer(LayerRow):
    """A row as read: of the right types, and of no size that only a forged one has."""


@with_config(ConfigDict(strict=True, str_max_length=10_000, allow_inf_nan=False))
@dataclass(frozen=True)
class _Price(PriceRow):
    """A row of prices as read."""


_LAYER, _PRICE = TypeAdapter(_Layer), TypeAdapter(_Price)
DECIBELS = {field.name for field in fields(LayerRow) if field.name.endswith("_db")}
MAX_DB = 3000
SHOWN_FIRST = ("layer", "own_sqnr_db")
"""The UI groups runs by a table's first column and compares its second."""
LAYER_COLUMNS = (*SHOWN_FIRST, *(f.name for f in fields(LayerRow) if f.name not in SHOWN_FIRST))
SEARCH_COLUMNS = (
    *("step", "recipe_digest", "metric", "value", "drop", "drop_low", "drop_high"),
    *("meets_target", "float_layers", "seconds", "error"),
)


def write_json(path: Path, data: Any) -> None:
    """Strict JSON without secrets: null in place of NaN and infinity, which other readers refuse."""
    path.write_text(json.dumps(masked(plain(data)), indent=2) + "\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Text without secrets."""
    path.write_text(mask_secrets(text), encoding="utf-8", errors="replace")


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """A table as MLflow's ``log_table`` writes it, so that its UI compares it between runs."""
    data = [[plain(row[column]) for column in columns] for row in rows]
    path.write_text(json.dumps({"columns": list(columns), "data": data}), encoding="utf-8")


def read_json(text: str) -> dict[str, Any]:
    """An object of plain data; raises ValueError where it is none."""
    try:
        found = json.loads(text)
        check_plain(found)
    except (ValueError, RecursionError) as error:
        raise ValueError(reason_of(error)) from error
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def read_table(text: str) -> list[dict[str, Any]]:
    """The rows of such a table; raises ValueError where it is none."""
    table = read_json(text)
    try:
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError("not a table with columns and data") from error


def read_layers(text: str) -> list[dict[str, Any]]:
    """A layer table with its fields in their own order; raises ValueError where a value cannot be one."""
    rows = _checked(read_table(text), _LAYER)
    for position, row in enumerate(rows):
        if any(abs(value or 0) > MAX_DB for name, value in row.items() if name in DECIBELS):
            raise ValueError(f"row {position}: more than {MAX_DB} dB")
    return [in_schema_order(row) for row in rows]


def read_prices(text: str) -> list[dict[str, Any]]:
    """A table of prices; raises ValueError where a value cannot be one."""
    return _checked(read_table(text), _PRICE)


def _checked(rows: list[dict[str, Any]], kind: TypeAdapter[Any]) -> list[dict[str, Any]]:
    """The same rows; raises ValueError naming the first that is not of this kind."""
    for position, row in enumerate(rows):
        try:
            kind.validate_json(json.dumps(row))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise ValueError(f"row {position}, {fault['loc'][0]}: {fault['msg']}") from error
    return rows


def in_schema_order(row: dict[str, Any]) -> dict[str, Any]:
    """A layer's row with the layer table's fields in their own order; fields of other versions come last."""
    known = [f.name for f in fields(LayerRow) if f.name in row]
    return {name: row[name] for name in (*known, *(name for name in row if name not in known))}


def plain(value: Any) -> Any:
    """The same in types that JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def masked(data: Any) -> Any:
    """Plain data without secrets, in its texts and under names like theirs."""
    if isinstance(data, dict):
        return {
            name: MASK if isinstance(part, str) and is_secret(name) else masked(part)
            for name, part in data.items()
        }
    if isinstance(data, list):
        return [masked(part) for part in data]
    return mask_secrets(data) if isinstance(data, str) else data


def write_recipe(folder: Path, recipe: Recipe, previous: Recipe | None, names: tuple[str, str]) -> None:
    """The recipe, and what it changed in that of the stage before; ``names`` are those of both stages."""
    (folder / File.RECIPE).write_text(recipe_to_yaml(recipe), encoding="utf-8")
    (folder / File.RECIPE_DIFF).write_text(recipe_diff(recipe, previous, names), encoding="utf-8")


def write_results(folder: Path, result: StageResult, setting: Setting, task_fingerprint: str) -> list[str]:
    """All tables and figures in numbers; returns the names of those that MLflow's UI shows as tables."""
    outcome = result.outcome
    write_table(folder / File.LAYERS, LAYER_COLUMNS, [asdict(row) for row in outcome.layers])
    write_json(folder / File.FINGERPRINT, _fingerprint(result, setting, task_fingerprint))
    write_json(folder / File.COST, _cost(result))
    rows = _search(result)
    if not rows:
        return [File.LAYERS]
    write_table(folder / File.SEARCH, SEARCH_COLUMNS, rows)
    return [File.LAYERS, File.SEARCH]


def _search(result: StageResult) -> list[dict[str, Any]]:
    """What was tried, step by step; where that failed there is its error in place of all values."""
    failed = {one.step: one for one in result.searched.failures} if result.searched else {}
    probes, rows = iter(result.probes), []
    for step in range(1, len(result.probes) + len(failed) + 1):
        if step in failed:
            one = failed[step]
            row = {"step": step, "recipe_digest": one.recipe_digest, "error": one.error}
            rows.append(dict.fromkeys(SEARCH_COLUMNS) | row)
        else:
            rows.append(_probe(next(probes), step))
    return rows


def _probe(judged: Judged, step: int) -> dict[str, Any]:
    outcome, drop = judged.outcome, judged.drop
    return {
        "step": step,
        "recipe_digest": outcome.recipe.digest,
        "metric": outcome.metric,
        "value": outcome.value,
        "drop": drop.value,
        "drop_low": drop.low,
        "drop_high": drop.high,
        "meets_target": TARGET_MET[judged.meets_target],
        "float_layers": len(outcome.float_layers),
        "seconds": outcome.cost.seconds,
        "error": None,
    }


def _fingerprint(result: StageResult, setting: Setting, task_fingerprint: str) -> dict[str, Any]:
    """What went in, and digests of what came out: equal ones mean the same model, bit for bit."""
    from qtrack.engine.digests import tensor_digests

    outcome = result.outcome
    splits = {
        name: {
            "digest": split.digest,
            "samples": split.samples,
            "batches": split.batches,
            "batch_size": split.batch_size,
        }
        for name, split in setting.splits.items()
    }
    return {
        "recipe": outcome.recipe.digest,
        "task": task_fingerprint,
        **outcome.digests,
        "splits": splits,
        "ingredients": result.ingredients,
        "scales": outcome.qparams,
        "tensors": tensor_digests(outcome.model.state_dict()),
    }


def _cost(result: StageResult) -> dict[str, Any]:
    return {
        "total": asdict(result.cost),
        "final_execution": asdict(result.outcome.cost),
        "probes": len(result.probes),
        "search": asdict(result.searched) if result.searched else None,
    }
