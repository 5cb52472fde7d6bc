"""What a stage came to, as files of its run: written, and read back where the stage is not executed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qtrack.ledger.files import read_json, read_layers, write_json
from qtrack.ledger.names import File
from qtrack.outcome import Cost, Evaluation, Latency, LayerRow, Outcome
from qtrack.recipe import Recipe, recipe_from_yaml

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEEDED = (File.RECIPE, File.LAYERS, File.SAMPLES, File.FINGERPRINT, File.COST, File.OUTCOME)
COLUMNS = {field.name for field in fields(LayerRow)}


class Kept(NamedTuple):
    """A recorded outcome, with what the whole stage cost."""

    outcome: Outcome
    cost: Cost
    also: tuple[Recipe, ...] = ()


class Samples(NamedTuple):
    """What the float model did on each validation sample, and a stage's model on the same."""

    baseline: Evaluation
    quantized: Evaluation


def write_outcome(folder: Path, outcome: Outcome, baseline: Outcome, also: Sequence[Recipe] = ()) -> None:
    """All of it that stands in no other file: samples, and single values."""
    _write_samples(folder / File.SAMPLES, outcome.validation, baseline.validation)
    if outcome.test is not None:
        _write_samples(folder / File.TEST_SAMPLES, outcome.test, baseline.test or outcome.test)
    values = {
        "metric": outcome.metric,
        "size_bytes": outcome.size_bytes,
        "sqnr_db": outcome.sqnr_db,
        "float_layers": outcome.float_layers,
        "warnings": outcome.warnings,
        "latency": asdict(outcome.latency) if outcome.latency else None,
        "validation": _facts(outcome.validation),
        "test": _facts(outcome.test) if outcome.test else None,
        "also": [recipe.model_dump(mode="json") for recipe in also],
    }
    write_json(folder / File.OUTCOME, values)


def read_outcome(folder: Path, build: Callable[[], Any]) -> Kept:
    """From a run's files; raises OSError, ValueError, KeyError or TypeError where they are corrupt."""
    values, fingerprint, cost = (
        read_json((folder / name).read_text(encoding="utf-8"))
        for name in (File.OUTCOME, File.FINGERPRINT, File.COST)
    )
    test = folder / File.TEST_SAMPLES
    outcome = Outcome(
        recipe=recipe_from_yaml((folder / File.RECIPE).read_text(encoding="utf-8"), File.RECIPE),
        build=build,
        example=None,
        metric=values["metric"],
        validation=read_evaluation(folder / File.SAMPLES, values["validation"]),
        cost=Cost(**cost["final_execution"]),
        size_bytes=values["size_bytes"],
        test=read_evaluation(test, values["test"]) if values["test"] else None,
        latency=Latency(**values["latency"]) if values["latency"] else None,
        layers=tuple(map(_layer, read_layers((folder / File.LAYERS).read_text(encoding="utf-8")))),
        sqnr_db=values["sqnr_db"],
        qparams=fingerprint["scales"],
        float_layers=tuple(values["float_layers"]),
        digests={name: fingerprint[name] for name in ("parameters", "behaviour", "float_weights")},
        warnings=tuple(values["warnings"]),
    )
    if outcome.recipe.digest != fingerprint["recipe"]:
        raise ValueError(f"{File.RECIPE} has another digest than on record")
    also = tuple(map(Recipe.model_validate, values.get("also", ())))
    return Kept(outcome, Cost(**cost["total"]), also)


def read_evaluation(path: Path, facts: Mapping[str, Any] | None = None) -> Evaluation:
    """What a model did on each sample; raises what pandas does where the file is none of ours."""
    import pandas as pd

    table, facts = pd.read_parquet(path), facts or {}
    return Evaluation(
        scores=table["score"].to_numpy(float),
        labels=_classes(table["label"]),
        predictions=_classes(table["prediction"]),
        output_digest=facts.get("output_digest", ""),
        extra=facts.get("extra", {}),
        nonfinite=facts.get("nonfinite", 0),
    )


def read_samples(path: Path) -> Samples:
    """The same with the float model's scores and predictions; raises as ``read_evaluation`` does."""
    import pandas as pd

    table = pd.read_parquet(path)
    labels = _classes(table["label"])
    quantized, baseline = (
        Evaluation(table[f"{side}score"].to_numpy(float), labels, _classes(table[f"{side}prediction"]))
        for side in ("", "float_")
    )
    return Samples(baseline, quantized)


def _classes(column: Any) -> NDArray[np.int64] | None:
    return None if column.isna().any() else column.to_numpy("int64")


def _facts(found: Evaluation) -> dict[str, Any]:
    return {"output_digest": found.output_digest, "extra": found.extra, "nonfinite": found.nonfinite}


def _layer(row: Mapping[str, Any]) -> LayerRow:
    known = {name: value for name, value in row.items() if name in COLUMNS}
    return LayerRow(**known | {"worst_samples": tuple(row["worst_samples"])})


def _write_samples(path: Path, after: Evaluation, before: Evaluation) -> None:
    """One row per sample, in the split's order; columns that do not apply are empty."""
    import pandas as pd

    samples = len(after.scores)

    def classes(values: NDArray[np.int64] | None) -> Any:
        one_each = values is not None and values.shape == (samples,)
        return pd.array(
            values.tolist() if values is not None and one_each else [None] * samples, dtype="Int64"
        )

    columns = {
        "index": np.arange(samples),
        "score": after.scores,
        "float_score": before.scores,
        "label": classes(after.labels),
        "prediction": classes(after.predictions),
        "float_prediction": classes(before.predictions),
    }
    pd.DataFrame(columns).to_parquet(path, index=False)
