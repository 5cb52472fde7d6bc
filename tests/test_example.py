"""The example store: whole, small, relocatable, and readable by this version.

Only what readers need is asked of it: what later versions record beside that, it does not have.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from qtrack.ledger import Ledger
from qtrack.ledger.store import sqlite_uri

pytest_plugins = ("example_store",)

MODELS = ("digits", "resnet")
EXAMPLE = Path(__file__).parent.parent / "mlruns_example"
MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def rows(copy):
    """What the copy's database has to say to a question."""
    with closing(sqlite3.connect(f"file:{copy / 'mlflow.db'}?mode=ro", uri=True)) as database:
        yield lambda question: database.execute(question).fetchall()


@pytest.fixture(scope="module")
def recorded(copy):
    """All finished strategies of the copy, by model."""
    ledger = Ledger.open(sqlite_uri(copy / "mlflow.db"))
    return {model: ledger.finished(model) for model in MODELS}


def moments(recorded, model, stage):
    """A strategy over time."""
    return [strategy for strategy in recorded[model] if strategy.stage == stage]


def test_it_is_small():
    assert sum(path.stat().st_size for path in EXAMPLE.rglob("*") if path.is_file()) < MAX_BYTES


def test_its_database_is_sound_and_nothing_waits_beside_it(rows):
    assert rows("PRAGMA integrity_check") == [("ok",)]
    assert {path.name for path in EXAMPLE.iterdir()} - {"mlflow.db.lock"} == {"mlflow.db", "artifacts"}


def test_it_knows_no_place_of_its_own(copy, rows):
    uris = [uri for (uri,) in rows("SELECT artifact_uri FROM runs")]
    assert [uri for uri in uris if not uri.startswith("mlflow-artifacts:/")] == []
    for uri in uris:
        assert (copy / "artifacts" / uri.removeprefix("mlflow-artifacts:/") / "environment.json").is_file()


def test_every_run_of_it_has_ended_well(rows):
    assert set(rows("SELECT status FROM runs")) == {("FINISHED",)}


@pytest.mark.parametrize("model", MODELS)
def test_each_model_has_three_campaigns_over_time(recorded, model):
    campaigns = list(dict.fromkeys(strategy.campaign for strategy in recorded[model]))
    assert len(campaigns) == 3
    assert {strategy.metric for strategy in recorded[model]} == {"accuracy"}
    assert all(None not in (one.value, one.drop, one.size_bytes) for one in recorded[model])


@pytest.mark.parametrize("model", MODELS)
def test_a_strategy_got_better_and_worse_again(recorded, model):
    first, better, worse = moments(recorded, model, "per_channel")
    assert better.drop < first.drop
    assert better.drop_high < worse.drop_low


def test_the_better_observer_is_surely_better_on_digits(recorded):
    first, better, _ = moments(recorded, "digits", "per_channel")
    assert better.drop_high < first.drop_low


@pytest.mark.slow
def test_everything_in_it_can_be_read_through_a_server(served, recorded):
    ledger = Ledger.open(served)
    for strategies in recorded.values():
        for strategy in strategies:
            assert len(ledger.layers(strategy.run_id)) > 15 or strategy.stage == "float"
            assert ledger.recipe(strategy.run_id).digest == strategy.recipe_digest
            assert ledger.recorded(strategy.run_id)
            assert ledger.pipeline(strategy.run_id).name == strategy.pipeline
    assert [row.stage for row in ledger.strategies()] == ["float", "ptq", "per_channel", "qat", "fallback"]
