"""What earlier searches ended with, and what a new search makes of it: on a real store."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from ledger_made import PTQ, Lines, setting, spec
from memory import Memory
from tiny import Tiny
from torch import nn

from qtrack.campaign import run_plan
from qtrack.engine.digests import architecture_of
from qtrack.errors import StoreAway
from qtrack.ledger.winners import MOST_WINNERS
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import recipe_to_yaml

pytest_plugins = ("ledger_store",)

FIRST, SECOND = PTQ.keeping_float("first"), PTQ.keeping_float("second")


class Retrained(Lines):
    """The same network with other weights, of another experiment."""

    name = "retrained"

    def model(self):
        model = super().model()
        with torch.no_grad():
            model.bias.fill_(1.0)
        return model


class Wider(Lines):
    name = "wider"

    def model(self):
        return nn.Linear(3, 4).eval()


@pytest.fixture
def ended(ledger, client):
    """Puts a finished stage on record that came to this recipe; its run's id."""

    def end(recipe, task=Lines, **tags):
        experiment = ledger._store.experiment_for(task.name)
        tags = {"kind": "stage", "search": "complete", "target_met": "yes", **tags}
        tags |= {"recipe_digest": recipe.digest, "architecture": architecture_of(task().model().state_dict())}
        tags = {f"qtrack.{name}": value for name, value in tags.items() if value}
        run_id = client.create_run(experiment, tags=tags, run_name="fallback").info.run_id
        client.log_text(run_id, recipe_to_yaml(recipe), "recipe.yaml")
        client.set_terminated(run_id)
        return run_id

    return end


def test_the_latest_winner_comes_first_and_none_twice(ledger, ended):
    for recipe in (FIRST, SECOND, FIRST):
        ended(recipe)
    assert ledger.winners(Lines()) == [FIRST, SECOND]


def test_only_a_search_that_met_its_target_is_a_winner(ledger, ended):
    for tags in ({"target_met": "no"}, {"target_met": "not sure"}, {"search": None}):
        ended(FIRST, **tags)
    assert ledger.winners(Lines()) == []


def test_there_are_a_few_at_most(ledger, ended):
    for number in range(MOST_WINNERS + 1):
        ended(PTQ.keeping_float(f"layer{number}"))
    found = ledger.winners(Lines())
    assert len(found) == MOST_WINNERS
    assert PTQ.keeping_float("layer0") not in found


def test_another_task_of_the_same_architecture_comes_after_the_own(ledger, ended):
    ended(FIRST)
    ended(SECOND, Retrained)
    assert ledger.winners(Lines()) == [FIRST, SECOND]
    assert ledger.winners(Retrained()) == [SECOND, FIRST]


def test_another_architecture_has_nothing_to_tell(ledger, ended):
    ended(FIRST)
    assert ledger.winners(Wider()) == []


def test_campaigns_and_stages_say_their_architecture(ledger, client):
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        stage.begin()
    runs = client.search_runs([client.get_experiment_by_name("lines").experiment_id])
    expected = architecture_of(Lines().model().state_dict())
    assert [run.data.tags["qtrack.architecture"] for run in runs] == [expected, expected]


def test_an_architecture_is_names_shapes_and_types():
    expected = architecture_of(Lines().model().state_dict())
    assert expected == architecture_of(Retrained().model().state_dict())
    assert expected != architecture_of(Wider().model().state_dict())
    assert expected != architecture_of(Lines().model().double().state_dict())
    assert expected != architecture_of(nn.Sequential(Lines().model()).state_dict())


@pytest.mark.parametrize("text", ["default: {mode: nothing}\n", "]", None])
def test_a_recipe_that_cannot_be_read_is_passed_over(ledger, ended, caplog, text):
    ended(FIRST)
    path = Path("mlartifacts/lines") / ended(SECOND) / "artifacts" / "recipe.yaml"
    path.unlink() if text is None else path.write_text(text)
    caplog.clear()
    assert ledger.winners(Lines()) == [FIRST]
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "recipe.yaml" in said
    assert "'fallback'" in said
    assert said.endswith(": no search begins with it")


def test_a_store_that_does_not_answer_is_asked_once(ledger, ended, monkeypatch, caplog):
    ended(FIRST)
    asked = []

    def away(*_, **__):
        asked.append(1)
        raise StoreAway("connection refused")

    monkeypatch.setattr(ledger._reader, "finished", away)
    with ledger.campaign(setting()):
        assert ledger.winners(Lines()) == []
        assert ledger.winners(Lines()) == []
    assert asked == [1]
    assert "what earlier searches came to is not known: connection refused" in caplog.text


# in a campaign


class Again(Tiny):
    name = "again"


STAGES = ["float", {"ptq": {"samples": 1}}, "fallback"]


def searched(recorder, task=None, max_drop=0.015, stages=STAGES, **options):
    """The last stage of a pipeline, which searches."""
    pipeline = Pipeline(
        name="tiny",
        task="tiny:Tiny",
        recipe={"engine": "x86", "default": {"mode": "static", "weight": {"bits": 5}}},
        stages=stages,
        target={"max_drop": max_drop},
    )
    return run_plan(plan_of(pipeline, task or Tiny()), recorder, **options)[-1]


def recorded(ledger, experiment):
    """What the latest search has left of its cost."""
    (run,) = ledger.strategies(["fallback"])
    path = Path("mlartifacts") / experiment / run.run_id / "artifacts" / "cost.json"
    return json.loads(path.read_text())["search"]


@pytest.mark.slow
def test_a_second_search_begins_where_the_first_ended(ledger, caplog):
    caplog.set_level(logging.INFO, "qtrack")
    first = searched(ledger)
    assert first.judged.meets_target
    assert "an earlier run" not in caplog.text
    for task, max_drop in ((Tiny(), 0.0155), (Again(), 0.015)):
        caplog.clear()
        second = searched(ledger, task, max_drop)
        assert second.outcome.recipe == first.outcome.recipe
        assert second.searched.evaluations < first.searched.evaluations
        assert second.searched.saved == recorded(ledger, task.name)["saved"] == 1
        assert "fallback: what an earlier run found saves up to 1 evaluations" in caplog.text


@pytest.mark.slow
def test_a_search_takes_nothing_from_its_own_campaign(ledger):
    again = {"fallback": {"from": "ptq", "cost": "size", "name": "again"}}
    stages = ["float", {"ptq": {"samples": 1}}, "fallback", again]
    assert searched(ledger, stages=stages).searched.saved == 0


@pytest.mark.slow
def test_a_fresh_search_takes_nothing_from_earlier_ones(monkeypatch):
    memory = Memory()
    monkeypatch.setattr(memory, "winners", None)
    assert searched(memory, fresh=True).searched.saved == 0
