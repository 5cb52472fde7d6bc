"""Reads recorded stages back as plain data: one row for each strategy, found by the names that people use."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from mlflow.entities import Run

from qtrack.errors import RunNotFound
from qtrack.ledger.names import CAMPAIGN, STAGE, TARGET_MET, Metric, Tag, task_metric_key, test_metric_key
from qtrack.ledger.store import Store

PAGE = 1000
MIN_PREFIX = 4
MAX_LISTED = 12
_HEX = frozenset("0123456789abcdef")
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def strategy_of(run: Run, experiment: str) -> Strategy:
    """A stage's run as a row."""
    tags, metrics = run.data.tags, _Finite(run.data.metrics)
    metric = tags.get(Tag.METRIC)
    return Strategy(
        run_id=run.info.run_id,
        campaign=tags.get(Tag.CAMPAIGN),
        pipeline=tags.get(Tag.PIPELINE),
        stage=tags.get(Tag.STAGE) or run.info.run_name or run.info.run_id,
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
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="milliseconds"),
        status=run.info.status,
        float_latency_ms=metrics.get(Metric.FLOAT_LATENCY_MS),
        latency_iqr_ms=metrics.get(Metric.LATENCY_IQR_MS),
        test_value=metrics.get(test_metric_key(metric)) if metric else None,
        max_drop=_number(tags.get(Tag.MAX_DROP)),
        confidence=_number(tags.get(Tag.CONFIDENCE)),
        samples=_whole(_number(tags.get(Tag.SAMPLES))),
        experiment=experiment,
    )


class _Finite:
    """Metrics, of which only finite ones count: MLflow hands an infinity back as 1.8e308."""

    def __init__(self, metrics: Mapping[str, float]) -> None:
        self._metrics = metrics

    def get(self, key: str) -> float | None:
        value = self._metrics.get(key)
        return value if value is not None and math.isfinite(value) and abs(value) < 1e308 else None

    def whole(self, key: str) -> int | None:
        return _whole(self.get(key))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:  # a tag that someone edited
        return None
    return value if math.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


class Reader:
    """Finds runs in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def experiments(self) -> dict[str, str]:
        """Names of all active experiments, by id."""
        found: dict[str, str] = {}
        token: str | None = None
        with self.store.calling("list the experiments") as client:
            while True:
                page = client.search_experiments(max_results=PAGE, page_token=token)
                found |= {experiment.experiment_id: experiment.name for experiment in page}
                token = page.token
                if not token:
                    return found

    def stages(self, campaign: str, experiments: Sequence[str]) -> list[Run]:
        """All stages of a campaign in their order; one that was recorded twice is there twice."""
        runs = self._search(experiments, _is(Tag.KIND, STAGE), _is(Tag.CAMPAIGN, campaign))
        return sorted(runs, key=lambda run: (_index(run), run.info.start_time))

    def latest_campaign(self, experiments: Sequence[str]) -> str | None:
        """The id of the campaign that was opened last."""
        runs = self._search(experiments, _is(Tag.KIND, CAMPAIGN), limit=1)
        return next((run.data.tags.get(Tag.CAMPAIGN) for run in runs), None)

    def campaign_named(self, reference: str, experiments: Sequence[str]) -> str:
        """A campaign by its id or a unique beginning of it."""
        runs = self._search(experiments, _is(Tag.KIND, CAMPAIGN), _like(Tag.CAMPAIGN, reference))
        names = dict.fromkeys(run.data.tags[Tag.CAMPAIGN] for run in runs)
        found = [name for name in names if name.startswith(reference)]
        if reference in found:
            return reference
        if len(found) != 1:
            raise RunNotFound(
                _unclear("campaign", reference, found or self._campaigns(experiments), bool(found))
            )
        return str(found[0])

    def campaign_run(self, campaign: str, experiments: Sequence[str]) -> Run:
        """The run of a campaign itself."""
        runs = self._search(experiments, _is(Tag.KIND, CAMPAIGN), _is(Tag.CAMPAIGN, campaign), limit=1)
        if not runs:
            raise RunNotFound(f"the run of the campaign {campaign!r} was deleted")
        return runs[0]

    def run(self, reference: str, experiments: Sequence[str]) -> Run:
        """The stage that a reference names; raises RunNotFound with what there is instead."""
        campaign, slash, stage = reference.partition("/")
        if slash:
            return self._stage_of(self.campaign_named(campaign, experiments), stage, reference, experiments)
        latest = self.latest_campaign(experiments)
        candidates = self.stages(latest, experiments) if latest else []
        found = _last_of_each([run for run in candidates if run.data.tags.get(Tag.STAGE) == reference])
        found += [
            run for run in self._with_prefix(reference, experiments) if run.info.run_id not in map(_id, found)
        ]
        if len(found) != 1:
            raise RunNotFound(
                _unclear("run", reference, [_named(run) for run in found or candidates], bool(found))
            )
        return found[0]

    def _stage_of(self, campaign: str, stage: str, reference: str, experiments: Sequence[str]) -> Run:
        candidates = self.stages(campaign, experiments)
        found = _last_of_each([run for run in candidates if run.data.tags.get(Tag.STAGE) == stage])
        if not found:
            raise RunNotFound(_unclear("run", reference, [_named(run) for run in candidates], False))
        return found[0]

    def _with_prefix(self, reference: str, experiments: Sequence[str]) -> list[Run]:
        prefix = reference.lower()
        if len(prefix) < MIN_PREFIX or not set(prefix) <= _HEX:
            return []
        by_id = f"attributes.run_id LIKE '{prefix}%'"
        return [
            run
            for run in self._search(experiments, _is(Tag.KIND, STAGE), by_id)
            if run.info.run_id.startswith(prefix)
        ]

    def _campaigns(self, experiments: Sequence[str]) -> list[str]:
        runs = self._search(experiments, _is(Tag.KIND, CAMPAIGN), limit=MAX_LISTED)
        return [run.data.tags[Tag.CAMPAIGN] for run in runs]

    def _search(self, experiments: Sequence[str], *conditions: str, limit: int | None = None) -> list[Run]:
        """Runs that meet all conditions, the latest first."""
        return list(self._pages(experiments, " AND ".join(conditions), limit)) if experiments else []

    def _pages(self, experiments: Sequence[str], condition: str, limit: int | None) -> Iterator[Run]:
        token: str | None = None
        while True:
            with self.store.calling("search the runs") as client:
                page = client.search_runs(
                    list(experiments),
                    condition,
                    max_results=limit or PAGE,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
            yield from page
            token = page.token
            if not token or limit:
                return


def _is(tag: str, value: str) -> str:
    return f"tags.`{tag}` = {_quoted(value)}"


def _like(tag: str, beginning: str) -> str:
    """Begins with; the signs that LIKE gives a meaning are left to match anything, and checked afterwards."""
    return f"tags.`{tag}` LIKE {_quoted(beginning + '%')}"


def _quoted(value: str) -> str:
    """MLflow's filters know no escapes: a value with both kinds of quotes cannot be asked for."""
    if "'" in value and '"' in value:
        raise RunNotFound(f"{value!r} cannot be the name of a run")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _index(run: Run) -> int:
    return _whole(_number(run.data.tags.get(Tag.INDEX))) or 0


def _last_of_each(runs: Sequence[Run]) -> list[Run]:
    """Of a stage that was recorded more than once, the last that finished, or else the last."""
    ranked = sorted(runs, key=lambda run: (run.info.status == "FINISHED", run.info.start_time))
    return ranked[-1:]


def _id(run: Run) -> str:
    return str(run.info.run_id)


def _named(run: Run) -> str:
    return f"{run.data.tags.get(Tag.STAGE) or run.info.run_name} ({_id(run)[:8]})"


def _unclear(what: str, reference: str, candidates: Sequence[str], ambiguous: bool) -> str:
    listed = ", ".join(candidates[:MAX_LISTED]) + (", ..." if len(candidates) > MAX_LISTED else "")
    if ambiguous:
        return f"{what} {reference!r} is ambiguous: {listed}"
    return (
        f"no {what} {reference!r}; there are {listed}"
        if listed
        else f"no {what} {reference!r}: none are recorded here"
    )


def links_of(strategies: Sequence[Strategy], experiments: Mapping[str, str]) -> dict[str, str]:
    """Fragments of addresses in MLflow's UI (``#/...``) by what they show; ``experiments``: ids by name."""
    if not strategies:
        return {}
    ids = list(dict.fromkeys(experiments[strategy.experiment] for strategy in strategies))
    runs = [strategy.run_id for strategy in strategies]
    table = _table_link(ids[0], strategies)
    both = f"runs={_encoded(runs)}&experiments={_encoded(ids)}"
    curve = "layers/own_sqnr_db"
    plot = f"metric={_encoded(curve)}&plot_metric_keys={_encoded([curve])}&x_axis=step"
    return {
        "table": table,
        "charts": f"{table}&compareRunsMode=CHART",
        "artifacts": f"{table}&compareRunsMode=ARTIFACT",
        "compare": f"#/compare-runs?{both}",
        "layers": f"#/metric/{quote(curve, safe='')}?{both}&{plot}",
    }


def _table_link(experiment: str, strategies: Sequence[Strategy]) -> str:
    """Sorted by the metric, because that brings its column into the table."""
    campaigns = {strategy.campaign for strategy in strategies}
    campaign = campaigns.pop() if len(campaigns) == 1 else None
    runs = ", ".join(f"'{strategy.run_id}'" for strategy in strategies)
    chosen = _is(Tag.CAMPAIGN, campaign) if campaign else f"attributes.run_id IN ({runs})"
    link = f"#/experiments/{quote(experiment, safe='')}/runs?searchFilter={quote(chosen, safe='')}"
    metric = next((strategy.metric for strategy in strategies if strategy.metric), None)
    if metric is None:
        return link
    key = quote(f"metrics.`{task_metric_key(metric)}`", safe="")
    return f"{link}&orderByKey={key}&orderByAsc=false"


def _encoded(value: Any) -> str:
    return quote(json.dumps(value, separators=(",", ":")), safe="")
