"""The ``diagnose`` stage in a pipeline, end to end; what is found is made up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from diagnosis_samples import BAD, HEALTHY
from memory import Memory
from mlflow import MlflowClient
from test_resume import finished, write

import qtrack
from qtrack import Ledger, diagnosis
from qtrack.campaign import run_plan
from qtrack.errors import RecipeError
from qtrack.finding import Remedy
from qtrack.pipeline import Pipeline, plan_of

pytest_plugins = ("ledger_store",)
STAGES = ["float", "ptq", "diagnose"]


@pytest.fixture
def diagnosed(monkeypatch, caplog):
    """What is found, which a test may put something else in the place of; and how often it was asked."""
    monkeypatch.setitem(sys.modules, "tiny", tiny)
    caplog.set_level("INFO", "qtrack")
    kept = {"found": BAD, "calls": []}

    def diagnose(task, recipe, target, **named):
        named["worked"]("per-tensor weights")
        kept["calls"].append({"recipe": recipe, **named})
        first = Remedy("per_channel", why="skewed", recipe=recipe.with_weights(granularity="per_channel"))
        remedies = (Remedy("fallback"), first) if kept["found"] is BAD else ()
        return replace(
            kept["found"], subject=named["subject"], recipe_digest=recipe.digest, remedies=remedies
        )

    monkeypatch.setattr(diagnosis, "diagnose", diagnose)
    return kept


def in_memory(*stages):
    memory = Memory()
    results = run_plan(plan_of(Pipeline(name="tiny", task="tiny:Tiny", stages=stages), tiny.Tiny()), memory)
    return memory, {result.name: result for result in results}


def granularity(result):
    return result.outcome.recipe.default.weight.granularity


# the recipe


def test_it_follows_the_first_remedy_that_has_a_recipe(diagnosed, caplog):
    memory, results = in_memory(*STAGES)
    assert (granularity(results["ptq"]), granularity(results["diagnose"])) == ("per_tensor", "per_channel")
    assert [name for name, _ in memory.found] == ["ptq"]
    assert results["ptq"].diagnosis == memory.found[0][1]
    assert "diagnosis: the remedy is per_channel: skewed" in caplog.messages
    assert diagnosed["calls"][0]["subject"] == "memory/ptq"
    assert (results["ptq"].followed, results["diagnose"].followed) == (None, "per_channel")

    cost = results["diagnose"].cost
    assert cost.seconds > cost.phases["diagnose"] == BAD.seconds
    assert cost.forward_samples == results["diagnose"].outcome.cost.forward_samples + BAD.forward_samples
    assert "diagnose" not in results["ptq"].cost.phases


@pytest.mark.parametrize(("found", "stage"), [(HEALTHY, "diagnose"), (BAD, {"diagnose": {"follow": False}})])
def test_else_the_recipe_stays_as_it_is(diagnosed, caplog, found, stage):
    diagnosed["found"] = found
    _, results = in_memory("ptq", stage)
    assert results["diagnose"].outcome.recipe == results["ptq"].outcome.recipe
    assert "diagnosis: the recipe stays as it is" in caplog.messages


@pytest.mark.parametrize(
    "stages", [("diagnose",), ("float", "diagnose"), ("float", {"diagnose": {"from": "float"}})]
)
def test_without_a_stage_that_quantizes_there_is_nothing_to_diagnose(diagnosed, stages):
    with pytest.raises(RecipeError, match="nothing to diagnose: start from a stage that quantizes"):
        in_memory(*stages)


# the record


def test_the_verdict_is_recorded_with_the_diagnosed_run_and_a_second_run_asks_nothing(ledger, diagnosed):
    write(STAGES)
    qtrack.run("tiny.yaml")
    rows = ledger.strategies()
    assert [row.verdict for row in rows] == [None, "data-insensitive", None]
    found = ledger.diagnosis("ptq")
    assert (found.run_id, found.subject) == (rows[1].run_id, f"{rows[1].campaign}/ptq")
    run = MlflowClient(ledger.uri).get_run(rows[1].run_id)
    assert run.info.status == "FINISHED"
    assert "Diagnosis: **data-insensitive**" in run.data.tags["mlflow.note.content"]
    following = MlflowClient(ledger.uri).get_run(rows[2].run_id).data
    assert following.metrics["seconds/diagnose"] == BAD.seconds
    assert following.tags["qtrack.use"] == "per_channel"
    log = Path("mlartifacts/tiny", rows[2].run_id, "artifacts/log.txt").read_text()
    assert "diagnosis: the remedy is per_channel: skewed" in log
    assert not any(Path(".qtrack/spool").iterdir())

    second = qtrack.run("tiny.yaml")
    assert len(diagnosed["calls"]) == 1
    assert [result.known.stage for result in second] == STAGES
    assert [row.verdict for row in Ledger.open().strategies()] == [None, "data-insensitive", None]
    assert second[1].diagnosis == Ledger.open().diagnosis("ptq")
    assert finished() == sorted(STAGES)


def test_a_stage_that_was_only_referred_to_has_its_verdict_on_its_own_run(ledger, diagnosed):
    write(STAGES[:2])
    qtrack.run("tiny.yaml")
    (first,) = Ledger.open().strategies(["ptq"])
    write(STAGES)
    qtrack.run("tiny.yaml")
    assert [call["run_id"] for call in diagnosed["calls"]] == [first.run_id]
    assert Ledger.open().diagnosis(first.run_id).run_id == first.run_id
    assert [row.verdict for row in Ledger.open().strategies()] == [None, "data-insensitive", None]


@pytest.mark.slow
def test_where_the_recipe_stays_as_it_is_a_second_run_does_not_ask_again_either(ledger, diagnosed):
    diagnosed["found"] = HEALTHY
    write(STAGES)
    qtrack.run("tiny.yaml")
    qtrack.run("tiny.yaml")
    assert len(diagnosed["calls"]) == 1


def test_while_the_store_is_away_the_verdict_waits_with_the_run(ledger, diagnosed, monkeypatch):
    from test_spool import CALLS, cut

    write(STAGES)
    with monkeypatch.context() as patch:

        def diagnose(*arguments, real=diagnosis.diagnose, **named):
            cut(patch, *CALLS)
            return real(*arguments, **named)

        patch.setattr(diagnosis, "diagnose", diagnose)
        qtrack.run("tiny.yaml")
    assert any(Path(".qtrack/spool").iterdir())
    Ledger.open().sync()
    assert [row.verdict for row in Ledger.open().strategies()] == [None, "data-insensitive", None]
    assert not any(Path(".qtrack/spool").iterdir())


@pytest.mark.slow
def test_a_damaged_diagnosis_executes_nothing_again(ledger, diagnosed, caplog):
    write(STAGES)
    qtrack.run("tiny.yaml")
    (row,) = Ledger.open().strategies(["ptq"])
    Path("mlartifacts/tiny", row.run_id, "artifacts/diagnosis.json").write_text("{")
    assert all(result.known for result in qtrack.run("tiny.yaml"))
    assert "diagnosis.json of the run 'ptq'" in caplog.text
