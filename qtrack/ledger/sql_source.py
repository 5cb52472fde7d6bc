"""Reading straight from the database: the same rows as through MLflow's client, many times faster.

MLflow makes an object for every value of every run. Only where the store is a database that we can reach, its
schema is one that was tested, and then only reading: whatever else is read through the client.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from qtrack.ledger.preflight import scheme_of
from qtrack.ledger.rows import Point, Query, RunRow
from qtrack.ledger.store import Store

TESTED_SCHEMAS = {"dc11669786a5"}
"""Of MLflow 3.17."""
READ_ONLY = {"sqlite": "PRAGMA query_only = ON", "postgresql": "SET TRANSACTION READ ONLY"}
AT_ONCE = 2000
"""Runs in one statement: fewer values than any database refuses, and few enough to be held in memory."""

COLUMNS = "r.run_uuid, r.name, r.experiment_id, r.status, r.start_time"
ACTIVE = "r.lifecycle_stage = 'active' AND r.experiment_id IN :experiments"


def sql_source(store: Store) -> SqlSource | None:
    """A source that reads the store's database; None where it is none that can be read so."""
    if scheme_of(store.uri) not in READ_ONLY:
        return None
    try:
        engine = create_engine(store.uri, poolclass=NullPool)
        with engine.connect() as connection:
            schema = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except SQLAlchemyError:  # whatever is wrong is found, and said, by the client
        return None
    return SqlSource(store, engine) if schema in TESTED_SCHEMAS else None


class SqlSource:
    """Implements Source."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self.store = store
        self.engine = engine

    def experiments(self) -> dict[str, str]:
        statement = "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active'"
        with self._reading("list the experiments") as connection:
            return {str(number): name for number, name in connection.execute(text(statement))}

    def runs(self, query: Query) -> Iterator[RunRow]:
        """Runs are put in order by themselves: their tags, which no database finds by value, are looked at in
        that order and only until there are enough."""
        found = 0
        for part in _parts(self._candidates(query)):
            rows = self._rows(query, part, query.limit and query.limit - found)
            yield from rows
            found += len(rows)
            if found == query.limit:
                return

    def _candidates(self, query: Query) -> list[str]:
        """The ids of all runs that may be meant, in order."""
        if not query.experiments:
            return []
        conditions, values = _of_runs(query)
        statement = f"SELECT r.run_uuid FROM runs r WHERE {' AND '.join(conditions)} {_order(query)}"
        with self._reading("search the runs") as connection:
            return list(connection.execute(_expanding(statement, values), values).scalars())

    def _rows(self, query: Query, ids: list[str], limit: int | None) -> list[RunRow]:
        """Those of them whose tags are as the query wants."""
        conditions, values = _of_tags(query)
        where = " AND ".join(["r.run_uuid IN :ids", *conditions])
        statement = f"SELECT {COLUMNS} FROM runs r WHERE {where} {_order(query)}"
        values["ids"] = ids
        with self._reading("search the runs") as connection:
            found = connection.execute(
                _expanding(f"{statement} LIMIT {limit}" if limit else statement, values), values
            ).all()
            ids = [row[0] for row in found]
            tags, metrics = _by_run(connection, TAGS, ids), _by_run(connection, LATEST, ids)
            for run, values in _by_run(connection, NOT_A_NUMBER, ids).items():
                metrics[run].update(dict.fromkeys(values, math.nan))
        return [
            RunRow(run, name or "", str(experiment), status, started, tags[run], metrics[run])
            for run, name, experiment, status, started in found
        ]

    def curves(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[tuple[str, str], list[Point]]:
        found: dict[tuple[str, str], list[Point]] = defaultdict(list)
        with self._reading("read the curves") as connection:
            for runs in _parts(run_ids):
                values = {"runs": runs, "keys": list(keys)}
                for run, key, step, value in connection.execute(_expanding(CURVES, values), values):
                    found[run, key].append(Point(step, math.nan if value is None else value))
        return dict(found)

    @contextmanager
    def _reading(self, doing: str) -> Iterator[Connection]:
        """A connection that cannot write."""
        with self.store.calling(doing), self.engine.connect() as connection:
            connection.execute(text(READ_ONLY[self.engine.dialect.name]))
            yield connection


TAGS = "SELECT run_uuid, key, value FROM tags WHERE run_uuid IN :runs"
LATEST = "SELECT run_uuid, key, value FROM latest_metrics WHERE run_uuid IN :runs"
NOT_A_NUMBER = f"{LATEST} AND is_nan"
"""MLflow stores them as 0, and says so beside it."""
CURVES = """SELECT run_uuid, key, step, CASE WHEN is_nan THEN NULL ELSE value END FROM metrics
WHERE run_uuid IN :runs AND key IN :keys ORDER BY run_uuid, key, step, timestamp"""


def _order(query: Query) -> str:
    if query.oldest_first:
        return "ORDER BY r.start_time, r.run_uuid DESC"
    return "ORDER BY r.start_time DESC, r.run_uuid"


def _of_tags(query: Query) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    for place, (tag, value) in enumerate(query.tags.items()):
        conditions.append(_tagged(place, "="))
        values |= {f"tag{place}": tag, f"value{place}": value}
    if query.beginning:
        conditions.append(_tagged(99, "LIKE"))
        values |= {"tag99": query.beginning[0], "value99": f"{query.beginning[1]}%"}
    return conditions, values


def _of_runs(query: Query) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = [ACTIVE]
    values: dict[str, Any] = {"experiments": [int(number) for number in query.experiments]}
    if query.status:
        conditions.append("r.status = :status")
        values["status"] = query.status
    if query.ids is not None:
        conditions.append("r.run_uuid IN :ids")
        values["ids"] = list(query.ids)
    if query.id_prefix:
        conditions.append("r.run_uuid LIKE :prefix")
        values["prefix"] = f"{query.id_prefix}%"
    return conditions, values


def _tagged(place: int, how: str) -> str:
    same = f"t.run_uuid = r.run_uuid AND t.key = :tag{place} AND t.value {how} :value{place}"
    return f"EXISTS (SELECT 1 FROM tags t WHERE {same})"


def _expanding(statement: str, values: Mapping[str, Any]) -> Any:
    """Lists are bound as lists."""
    lists = (name for name, value in values.items() if isinstance(value, list))
    return text(statement).bindparams(*(bindparam(name, expanding=True) for name in lists))


def _by_run(connection: Connection, statement: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for runs in _parts(ids):
        values = {"runs": runs}
        for run, key, value in connection.execute(_expanding(statement, values), values):
            found[run][key] = value
    return found


def _parts(ids: Sequence[str]) -> Iterator[list[str]]:
    for first in range(0, len(ids), AT_ONCE):
        yield list(ids[first : first + AT_ONCE])
