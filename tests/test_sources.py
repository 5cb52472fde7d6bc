"""Both ways to read a store give the same rows."""

import math

import pytest
import sqlalchemy
from ledger_made import outcome, record, result, rows, setting
from mlflow.entities import Metric

from qtrack.errors import RunNotFound, StoreError
from qtrack.ledger import Ledger, client_source, sql_source
from qtrack.ledger.client_source import ClientSource
from qtrack.ledger.names import Tag
from qtrack.ledger.rows import Query

pytest_plugins = ("ledger_store",)


@pytest.fixture
def both(ledger):
    """A store with two campaigns, and its two readers."""
    probes = [outcome(scores=(1, 0, 0, 0))]
    first = record(ledger, results={"ptq": result("ptq", 1, outcome(layers=rows(30)), probes=probes)})
    record(ledger, setting(name='it\'s "100%" _new_', task=None, stages=("float",)))
    row = ledger.strategies(campaign=first)[1]
    points = [Metric("sqnr_db", math.nan, 0, 1), Metric("drop", math.inf, 0, 1)]
    points += [Metric("train/loss", value, 5 - step, step) for step, value in enumerate((3.0, math.nan, 1.0))]
    ledger._store.client.log_batch(row.run_id, metrics=points)
    return ledger, sql_source.sql_source(ledger._store), ClientSource(ledger._store)


def plain(found):
    """Rows in which NaN equals itself."""
    return [repr(row) for row in found]


def queries(experiments):
    yield "all", Query(experiments)
    yield "one", Query(experiments, {Tag.KIND: "campaign"}, limit=1)
    yield "some", Query(experiments, {Tag.KIND: "stage"}, limit=3)
    yield "the oldest", Query(experiments, {Tag.KIND: "stage"}, limit=3, oldest_first=True)
    yield "all but the oldest first", Query(experiments, oldest_first=True)
    yield "tags", Query(experiments, {Tag.KIND: "stage", Tag.STAGE: "ptq"}, status="FINISHED")
    yield "a quote", Query(experiments, {Tag.PIPELINE: "lines"})
    yield "beginning", Query(experiments, {Tag.KIND: "campaign"}, beginning=(Tag.CAMPAIGN, "lin"))
    yield "any beginning", Query(experiments, beginning=(Tag.KIND, ""))
    yield "none", Query(experiments, {Tag.STAGE: "nowhere"})
    yield "no experiment", Query([])


def test_the_same_runs(both):
    _ledger, sql, client = both
    experiments = list(sql.experiments())
    assert sql.experiments() == client.experiments()
    for what, query in queries(experiments):
        found, expected = sql.runs(query), client.runs(query)
        assert plain(found) == plain(expected), what
    ids = [row.run_id for row in client.runs(Query(experiments))]
    for query in (Query(experiments, ids=ids[1:3]), Query(experiments, id_prefix=ids[0][:6])):
        assert plain(sql.runs(query)) == plain(client.runs(query)) != []


def test_the_same_curves(both):
    _ledger, sql, client = both
    ids = [row.run_id for row in client.runs(Query(list(sql.experiments()), {Tag.KIND: "stage"}))]
    keys = ["layers/own_sqnr_db", "layers/sqnr_db", "train/loss", "nothing"]
    found, expected = sql.curves(ids, keys), client.curves(ids, keys)
    assert repr(sorted(found.items())) == repr(sorted(expected.items()))
    assert max(map(len, found.values())) == 30
    assert any(math.isnan(point.value) for points in found.values() for point in points)


def test_the_same_strategies(both, monkeypatch):
    ledger, _, _ = both
    found = ledger.strategies()
    monkeypatch.setattr("qtrack.ledger.read.sql_source", lambda store: None)
    assert Ledger.open().strategies() == found != []


def test_a_deleted_run_is_seen_by_neither(both):
    ledger, sql, client = both
    run = ledger.strategies()[0].run_id
    ledger._store.client.delete_run(run)
    query = Query(list(sql.experiments()))
    assert run not in {row.run_id for row in sql.runs(query)}
    assert plain(sql.runs(query)) == plain(client.runs(query))


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 1000])
def test_more_runs_than_are_read_at_once(both, monkeypatch, limit):
    _, sql, client = both
    query = Query(list(sql.experiments()), {Tag.KIND: "stage"}, limit=limit)
    expected = plain(sql.runs(query))
    assert len(expected) == min(limit or 4, 4)
    monkeypatch.setattr(sql_source, "AT_ONCE", 2)
    monkeypatch.setattr(client_source, "PAGE", 2)
    assert plain(sql.runs(query)) == plain(client.runs(query)) == expected


def test_no_more_is_read_than_is_asked_for(both, monkeypatch):
    _, sql, client = both
    monkeypatch.setattr(sql_source, "AT_ONCE", 1)
    monkeypatch.setattr(client_source, "PAGE", 1)
    parts, pages = [], []
    read, search = sql._rows, client.store.client.search_runs
    monkeypatch.setattr(sql, "_rows", lambda *asked: parts.append(1) or read(*asked))
    monkeypatch.setattr(
        client.store.client, "search_runs", lambda *asked, **named: pages.append(1) or search(*asked, **named)
    )
    query = Query(list(sql.experiments()))
    assert next(sql.runs(query)) == next(client.runs(query))
    assert (len(parts), len(pages)) == (1, 1)


def test_nothing_can_be_written_through_it(both):
    _, sql, _ = both
    with pytest.raises(StoreError, match="read"), sql._reading("try to write") as connection:
        connection.execute(sqlalchemy.text("DELETE FROM runs"))
    assert list(sql.runs(Query(list(sql.experiments()))))


def test_a_schema_that_was_not_tested_is_read_by_mlflow(ledger, monkeypatch):
    monkeypatch.setattr(sql_source, "TESTED_SCHEMAS", {"another"})
    assert sql_source.sql_source(ledger._store) is None
    assert isinstance(ledger._reader.source, ClientSource)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "mysql+pymysql://me@127.0.0.1:1/x", "databricks"])
def test_other_stores_are_read_by_mlflow(ledger, monkeypatch, uri):
    monkeypatch.setattr(ledger._store, "uri", uri)
    assert sql_source.sql_source(ledger._store) is None


def test_mlflow_s_filters_know_no_escapes(both):
    _, sql, client = both
    query = Query(list(sql.experiments()), {Tag.STAGE: "a'b\"c"})
    assert list(sql.runs(query)) == []
    with pytest.raises(RunNotFound, match="cannot be the name"):
        list(client.runs(query))
