"""Views of MLflow's runs page that a link alone cannot ask for: which columns, which charts.

MLflow keeps a view that somebody shares as JSON in a tag of the experiment, and opens it by the tag's name. A
link that carries a filter beside the name opens without the view, so the filter stands in the view. The two
views are those of the strategies that were looked at last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from qtrack.ledger.links import chosen_runs
from qtrack.ledger.names import Metric, Tag, task_metric_key
from qtrack.ledger.store import Store
from qtrack.ledger.strategy import Strategy

SHARED = "mlflow.sharedViewState."
COLUMNS = (
    *("attributes.`Created`", f"metrics.`{Metric.DROP}`", f"metrics.`{Metric.DROP_LOW}`"),
    *(f"metrics.`{Metric.DROP_HIGH}`", f"metrics.`{Metric.SIZE_BYTES}`", f"metrics.`{Metric.LATENCY_MS}`"),
    *(f"metrics.`{Metric.FLOAT_LAYERS}`", f"metrics.`{Metric.WORST_OWN_SQNR_DB}`", f"tags.`{Tag.VERDICT}`"),
)


def share(store: Store, experiment: str, strategies: Sequence[Strategy]) -> dict[str, str]:
    """Keep the views in the experiment; fragments of addresses that open them. Raises StoreError."""
    metric = next((strategy.metric for strategy in strategies if strategy.metric), None)
    if metric is None:
        return {}
    key = task_metric_key(metric)
    columns = [f"metrics.`{key}`", *COLUMNS]
    found = {"searchFilter": chosen_runs(strategies), "orderByKey": columns[0], "orderByAsc": False}
    decisive = "|".join((key, Metric.DROP, Metric.SIZE_BYTES, Metric.LATENCY_MS))
    views: dict[str, tuple[dict[str, Any], str]] = {
        "table": ({"selectedColumns": columns}, ""),
        "charts": ({"selectedColumns": columns, "chartsSearchFilter": f"^({decisive})$"}, "CHART"),
    }
    page = f"#/experiments/{quote(experiment, safe='')}/runs?viewStateShareKey=qtrack"
    for name, (state, _) in views.items():
        with store.calling("share a view of the runs") as client:
            client.set_experiment_tag(experiment, f"{SHARED}qtrack-{name}", json.dumps(found | state))
    return {
        name: f"{page}-{name}" + (f"&compareRunsMode={mode}" if mode else "")
        for name, (_, mode) in views.items()
    }
