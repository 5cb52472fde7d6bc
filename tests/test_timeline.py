"""What the campaigns of an experiment came to, whether they executed it or referred to an earlier run."""

import json

import pytest
import tiny
from click.testing import CliRunner
from ledger_made import record, setting

from qtrack import Ledger
from qtrack.api import history
from qtrack.campaign import run_plan
from qtrack.cli import main
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Recipe

pytest_plugins = ("ledger_store",)

FINE = Recipe(engine="x86")
COARSE = FINE.with_weights(bits=2).with_activations(bits=2)


def campaign_of(recipe, stages):
    pipeline = Pipeline(name="p", task="tiny_task.py:Mine", recipe=recipe, stages=stages)
    run_plan(plan_of(pipeline, tiny.Tiny()), Ledger.open())


@pytest.fixture
def campaigns(ledger):
    """``ptq`` with 8 bits, with 2 bits, and with 8 bits again, which is not executed again."""
    for recipe in (FINE, COARSE, FINE):
        campaign_of(recipe, ["float", {"recipe": {"name": "ptq"}}])
    return ledger


def test_a_stage_that_a_campaign_refers_to_stands_at_its_time(campaigns):
    first, second, third = [run for run in campaigns.timeline("tiny") if run.stage == "ptq"]
    assert (third.run_id, third.origin) == (first.run_id, first.campaign)
    assert len({first.campaign, second.campaign, third.campaign}) == 3
    assert first.started < second.started < third.started
    assert len([run for run in campaigns.finished("tiny") if run.stage == "ptq"]) == 2


@pytest.mark.slow
def test_the_history_shows_that_a_strategy_came_back_to_what_it_was(campaigns):
    (line,) = history("tiny", "ptq")
    first, down, up = line.points
    assert first.change is None
    assert up.change.value == pytest.approx(-down.change.value)
    assert down.change.significant
    assert up.change.significant
    assert [(cause.was, cause.now) for cause in up.change.causes] == [("2", "8"), ("2", "8")]


def test_only_the_latest_are_read(campaigns):
    everything = campaigns.timeline("tiny")
    assert campaigns.timeline("tiny", most=2) == everything[-2:]
    assert campaigns.timeline("tiny", "ptq", 2) == [run for run in everything if run.stage == "ptq"][-2:]
    assert [len(line.points) for line in history("tiny", last=4)] == [2, 2]


def test_a_reference_to_a_run_beyond_the_latest_is_kept(campaigns):
    (latest,) = campaigns.timeline("tiny", most=1)
    assert (latest.stage, latest.run_id) == ("ptq", campaigns.timeline("tiny", "ptq")[0].run_id)


@pytest.mark.slow
def test_the_command_says_that_there_may_be_more(campaigns):
    said = CliRunner().invoke(main, ["history", "--experiment", "tiny", "--last", "2"]).stderr
    assert "these are the last 2 stages; --last N shows more or fewer\n" in said
    assert "these are" not in CliRunner().invoke(main, ["history", "--experiment", "tiny"]).stderr


def test_a_reference_to_a_run_that_is_gone_is_left_out(ledger, client):
    campaign = record(ledger, setting())
    (owner,) = client.search_runs(["1"], "tags.`qtrack.kind` = 'campaign'")
    lost = {"run": "0" * 32, "stage": "ptq", "index": 1, "drop": 0.0, "drop_low": 0.0, "drop_high": 0.0}
    client.set_tag(owner.info.run_id, "qtrack.refers.1", json.dumps(lost | {"target_met": "yes"}))
    assert [run.campaign for run in ledger.timeline("lines")] == [campaign] * 3
