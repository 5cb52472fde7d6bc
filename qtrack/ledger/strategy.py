"""Recorded stages as rows of a table: what ``qtrack compare`` prints, and --json promises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from qtrack.ledger.names import TARGET_MET, Metric, Tag, task_metric_key, test_metric_key
from qtrack.ledger.rows import RunRow

_MET = {said: met for met, said in TARGET_MET.items()}


@dataclass(frozen=True)
class Strategy:
    """One recorded stage; None where a value does not apply or was not reached."""

    run_id: str
    campaign: str | None
    pipeline: str | None
    stage: str
    metric: str | None
    value: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    target_met: bool | None
    """None: not sure, or not finished (see status)."""
    sqnr_db: float | None
    size_bytes: int | None
    latency_ms: float | None
    float_layers: int | None
    worst_layer: str | None
    seconds: float | None
    evaluations: int | None
    recipe_digest: str | None
    verdict: str | None
    started: str
    """ISO 8601, UTC."""
    status: str
    """MLflow's: RUNNING, FINISHED, FAILED, KILLED."""
    float_latency_ms: float | None
    latency_iqr_ms: float | None
    test_value: float | None
    max_drop: float | None
    confidence: float | None
    samples: int | None
    experiment: str
    origin: str | None
    """The campaign that executed it, where this one only refers to its run."""
    forward_samples: int | None
    """Samples that went through a model, whatever for."""
    cause: str | None
    """What a diagnosis found wrong first of all; ``verdict`` has the kind of error."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def strategy_of(run: RunRow, experiment: str) -> Strategy:
    """A stage's run as a row."""
    tags, metrics = run.tags, _Finite(run.metrics)
    metric = tags.get(Tag.METRIC)
    return Strategy(
        run_id=run.run_id,
        campaign=tags.get(Tag.CAMPAIGN),
        pipeline=tags.get(Tag.PIPELINE),
        stage=tags.get(Tag.STAGE) or run.name or run.run_id,
        metric=metric,
        value=metrics.get(task_metric_key(metric)) if metric else None,
        drop=metrics.get(Metric.DROP),
        drop_low=metrics.get(Metric.DROP_LOW),
        drop_high=metrics.get(Metric.DROP_HIGH),
        target_met=_MET.get(tags.get(Tag.TARGET_MET, "")),
        sqnr_db=metrics.get(Metric.SQNR_DB),
        size_bytes=metrics.whole(Metric.SIZE_BYTES),
        latency_ms=metrics.get(Metric.LATENCY_MS),
        float_layers=metrics.whole(Metric.FLOAT_LAYERS),
        worst_layer=tags.get(Tag.WORST_LAYER),
        seconds=metrics.get(Metric.SECONDS),
        evaluations=metrics.whole(Metric.EVALUATIONS),
        recipe_digest=tags.get(Tag.RECIPE_DIGEST),
        verdict=tags.get(Tag.VERDICT),
        started=datetime.fromtimestamp(run.started_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        status=run.status,
        float_latency_ms=metrics.get(Metric.FLOAT_LATENCY_MS),
        latency_iqr_ms=metrics.get(Metric.LATENCY_IQR_MS),
        test_value=metrics.get(test_metric_key(metric)) if metric else None,
        max_drop=number(tags.get(Tag.MAX_DROP)),
        confidence=number(tags.get(Tag.CONFIDENCE)),
        samples=whole(number(tags.get(Tag.SAMPLES))),
        experiment=experiment,
        origin=tags.get(Tag.ORIGIN),
        forward_samples=metrics.whole(Metric.FORWARD_SAMPLES),
        cause=tags.get(Tag.CAUSE),
    )


class _Finite:
    """Metrics, of which only finite ones count: MLflow hands an infinity back as 1.8e308."""

    def __init__(self, metrics: Mapping[str, float]) -> None:
        self._metrics = metrics

    def get(self, key: str) -> float | None:
        value = self._metrics.get(key)
        return value if value is not None and math.isfinite(value) and abs(value) < 1e308 else None

    def whole(self, key: str) -> int | None:
        return whole(self.get(key))


def number(text: str | None) -> float | None:
    """The number that a tag holds; None where it holds none."""
    try:
        value = float(text or "")
    except ValueError:  # a tag that someone edited
        return None
    return value if math.isfinite(value) else None


def whole(value: float | None) -> int | None:
    """As an integer."""
    return None if value is None else round(value)
