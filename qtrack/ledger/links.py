"""Pages of MLflow's own UI that compare strategies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from qtrack.ledger.client_source import tagged
from qtrack.ledger.names import STAGE, Tag, task_metric_key
from qtrack.ledger.strategy import Strategy


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


def chosen_runs(strategies: Sequence[Strategy]) -> str:
    """MLflow's filter for these runs: short where they are a whole campaign."""
    campaign = strategies[0].campaign
    if campaign and all(one.campaign == campaign and not one.origin for one in strategies):
        return _stages_of(campaign)
    return f"attributes.run_id IN ({', '.join(repr(strategy.run_id) for strategy in strategies)})"


def _table_link(experiment: str, strategies: Sequence[Strategy]) -> str:
    """Sorted by the metric, the best first; which columns it has is the browser's to remember."""
    chosen = quote(chosen_runs(strategies), safe="")
    link = f"#/experiments/{quote(experiment, safe='')}/runs?searchFilter={chosen}"
    metric = next((strategy.metric for strategy in strategies if strategy.metric), None)
    if metric is None:
        return link
    key = quote(f"metrics.`{task_metric_key(metric)}`", safe="")
    return f"{link}&orderByKey={key}&orderByAsc=false"


def _stages_of(campaign: str) -> str:
    """Without the campaign's own run, an empty column in each comparison."""
    return f"{tagged(Tag.CAMPAIGN, campaign)} AND {tagged(Tag.KIND, STAGE)}"


def _encoded(value: Any) -> str:
    return quote(json.dumps(value, separators=(",", ":")), safe="")
