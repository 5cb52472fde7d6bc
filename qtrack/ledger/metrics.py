"""What is measured on a stage, as MLflow's metrics: single values and curves over layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from qtrack.ledger.names import Metric, metric_key, task_metric_key, test_metric_key
from qtrack.outcome import LayerRow, Outcome

if TYPE_CHECKING:
    from qtrack.records import StageResult


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    step: int = 0


def points_of(result: StageResult) -> list[Point]:
    """All metrics of a finished stage; what does not apply or is not finite is left out."""
    singles = [Point(key, value) for key, value in _singles(result).items() if value is not None]
    return [
        point for point in (*singles, *_layer_curves(result.outcome.layers)) if math.isfinite(point.value)
    ]


def _singles(result: StageResult) -> dict[str, float | None]:
    outcome, drop, cost = result.outcome, result.judged.drop, result.cost
    values: dict[str, float | None] = {
        task_metric_key(outcome.metric): outcome.value,
        Metric.DROP: drop.value,
        Metric.DROP_LOW: drop.low,
        Metric.DROP_HIGH: drop.high,
        Metric.SQNR_DB: outcome.sqnr_db,
        Metric.SIZE_BYTES: outcome.size_bytes,
        Metric.FLOAT_LAYERS: len(outcome.float_layers),
        Metric.SECONDS: cost.seconds,
        Metric.EVALUATIONS: cost.evaluations,
        Metric.FORWARD_SAMPLES: cost.forward_samples,
        Metric.NONFINITE: outcome.validation.nonfinite or None,
    }
    values |= _latency(outcome) | _layer_summaries(outcome.layers)
    values |= {metric_key(f"seconds/{phase}"): seconds for phase, seconds in cost.phases.items()}
    if outcome.test is not None:
        values[test_metric_key(outcome.metric)] = outcome.test.value
    return values | _extras(outcome, values)


def _latency(outcome: Outcome) -> dict[str, float | None]:
    if outcome.latency is None:
        return {}
    return {
        Metric.LATENCY_MS: outcome.latency.median_ms,
        Metric.LATENCY_IQR_MS: outcome.latency.iqr_ms,
        Metric.FLOAT_LATENCY_MS: outcome.latency.float_median_ms,
    }


def _layer_summaries(rows: Iterable[LayerRow]) -> dict[str, float | None]:
    own = [row.own_sqnr_db for row in rows if row.own_sqnr_db is not None and math.isfinite(row.own_sqnr_db)]
    if not own:
        return {}
    return {Metric.WORST_OWN_SQNR_DB: min(own), Metric.MEDIAN_OWN_SQNR_DB: median(own)}


def _extras(outcome: Outcome, taken: Mapping[str, float | None]) -> dict[str, float | None]:
    """The task's corpus metrics; one that is called like another metric stands under ``extra/``."""
    extras = {task_metric_key(name): value for name, value in outcome.validation.extra.items()}
    if outcome.test is not None:
        extras |= {test_metric_key(name): value for name, value in outcome.test.extra.items()}
    return {f"extra/{key}" if key in taken else key: value for key, value in extras.items()}


def _layer_curves(rows: Iterable[LayerRow]) -> Iterator[Point]:
    for row in rows:
        for column in Metric.LAYER_CURVES:
            value = getattr(row, column)
            if value is not None:
                yield Point(f"layers/{column}", value, row.index)
