"""Reading through MLflow's own client: works with every store that MLflow knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from mlflow.entities import Run

from qtrack.errors import RunNotFound
from qtrack.ledger.rows import Point, Query, RunRow
from qtrack.ledger.store import Store

PAGE = 1000


class ClientSource:
    """Implements Source."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def experiments(self) -> dict[str, str]:
        found: dict[str, str] = {}
        token: str | None = None
        with self.store.calling("list the experiments") as client:
            while True:
                page = client.search_experiments(max_results=PAGE, page_token=token)
                found |= {experiment.experiment_id: experiment.name for experiment in page}
                token = page.token
                if not token:
                    return found

    def runs(self, query: Query) -> Iterator[RunRow]:
        if query.experiments:
            pages = self._pages(query, " AND ".join(_conditions(query)))
            yield from islice(map(row_of, pages), query.limit)

    def curves(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[tuple[str, str], list[Point]]:
        found = {}
        for run_id in run_ids:
            for key in keys:
                with self.store.calling(f"read the curve {key}") as client:
                    history = client.get_metric_history(run_id, key)
                if history:
                    found[run_id, key] = sorted(Point(point.step, point.value) for point in history)
        return found

    def _pages(self, query: Query, condition: str) -> Iterator[Run]:
        token: str | None = None
        order = f"attributes.start_time {'ASC' if query.oldest_first else 'DESC'}"
        while True:
            with self.store.calling("search the runs") as client:
                page = client.search_runs(
                    list(query.experiments),
                    condition,
                    max_results=min(query.limit or PAGE, PAGE),
                    order_by=[order],
                    page_token=token,
                )
            yield from page
            token = page.token
            if not token:
                return


def row_of(run: Run) -> RunRow:
    """A run as MLflow's client gives it."""
    return RunRow(
        run.info.run_id,
        run.info.run_name or "",
        str(run.info.experiment_id),
        run.info.status,
        run.info.start_time,
        dict(run.data.tags),
        dict(run.data.metrics),
    )


def tagged(tag: str, value: str) -> str:
    """MLflow's filter for runs whose tag has this value."""
    return f"tags.`{tag}` = {_quoted(value)}"


def _conditions(query: Query) -> Iterator[str]:
    for tag, value in query.tags.items():
        yield tagged(tag, value)
    if query.beginning:
        tag, value = query.beginning
        yield f"tags.`{tag}` LIKE {_quoted(value + '%')}"
    if query.status:
        yield f"attributes.status = '{query.status}'"
    if query.ids is not None:
        yield f"attributes.run_id IN ({', '.join(map(_quoted, query.ids))})"
    if query.id_prefix:
        yield f"attributes.run_id LIKE {_quoted(query.id_prefix + '%')}"


def _quoted(value: str) -> str:
    """MLflow's filters know no escapes: a value with both kinds of quotes cannot be asked for."""
    if "'" in value and '"' in value:
        raise RunNotFound(f"{value!r} cannot be the name of a run")
    return f'"{value}"' if "'" in value else f"'{value}'"
