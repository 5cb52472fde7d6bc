"""Diagnoses in a real store: kept with the run that they are about, and what worked for which cause."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from ledger_made import FLOAT, PTQ, evaluation, outcome, record, result, setting
from mlflow import MlflowClient
from recorded_tiny import command
from test_finding import diagnosis
from test_spool import away, waiting

from qtrack.errors import StoreError
from qtrack.finding import Worked
from qtrack.ledger import Ledger
from qtrack.pipeline import StageSpec

pytest_plugins = ("ledger_store",)
CAUSE = "per-tensor weights"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, empty_store):
    folder = tmp_path_factory.mktemp("diagnosed")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = Ledger.open()
        record(made)
        return folder, made


@pytest.fixture
def ledger(recorded, monkeypatch):
    """On one campaign for all tests, which put their own diagnosis in the place of the one before."""
    monkeypatch.chdir(recorded[0])
    return recorded[1]


@pytest.fixture
def run(ledger):
    return ledger.finished("lines")[1].run_id


def healthy():
    return replace(diagnosis(), category="healthy", text="nothing is wrong", findings=(), remedies=())


def test_a_diagnosis_is_read_back_from_the_run_that_it_is_about(ledger, run):
    ledger.record_diagnosis("ptq", diagnosis())
    assert ledger.diagnosis("ptq") == replace(diagnosis(), run_id=run)
    assert ledger.diagnosis("float") is None


def test_it_stands_in_tags_and_strategies(ledger, client, run):
    ledger.record_diagnosis(run, diagnosis())
    tags = client.get_run(run).data.tags
    assert (tags["qtrack.verdict"], tags["qtrack.cause"]) == ("data-insensitive", CAUSE)
    (strategy,) = ledger.strategies([run])
    assert (strategy.verdict, strategy.cause) == ("data-insensitive", CAUSE)


def test_the_finished_run_keeps_its_status_end_and_metrics(ledger, client, run):
    before = client.get_run(run)
    ledger.record_diagnosis(run, diagnosis())
    after = client.get_run(run)
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert after.data.metrics == before.data.metrics
    assert after.data.params == before.data.params
    assert waiting() == []


def test_the_note_has_one_paragraph_on_it(ledger, client, run):
    before = client.get_run(run).data.tags["mlflow.note.content"]
    ledger.record_diagnosis(run, diagnosis())
    note = client.get_run(run).data.tags["mlflow.note.content"]
    assert note.startswith(before)
    assert "Diagnosis: **data-insensitive**: most samples lost. Cause: per-tensor weights." in note
    ledger.record_diagnosis(run, healthy())
    note = client.get_run(run).data.tags["mlflow.note.content"]
    assert note.count("Diagnosis:") == 1
    assert "**healthy**" in note


def test_a_note_that_is_full_stays_as_it_is(ledger, client, run):
    before = client.get_run(run).data.tags["mlflow.note.content"]
    client.set_tag(run, "mlflow.note.content", "x" * 8000)
    ledger.record_diagnosis(run, diagnosis())
    assert client.get_run(run).data.tags["mlflow.note.content"] == "x" * 8000
    client.set_tag(run, "mlflow.note.content", before)


def test_another_diagnosis_takes_its_place_and_a_healthy_run_has_no_cause(ledger, client, run):
    ledger.record_diagnosis(run, diagnosis())
    ledger.record_diagnosis(run, healthy())
    assert ledger.diagnosis(run) == replace(healthy(), run_id=run)
    tags = client.get_run(run).data.tags
    assert tags["qtrack.verdict"] == "healthy"
    assert "qtrack.cause" not in tags


def test_strategies_can_be_chosen_by_it(ledger, run):
    ledger.record_diagnosis(run, diagnosis())
    done = command("compare", "--filter", "verdict=data-insensitive", "--json")
    assert [(row["stage"], row["cause"]) for row in json.loads(done.stdout)] == [("ptq", CAUSE)]
    assert command("compare", "--filter", "verdict=healthy").exit_code == 2


def test_a_run_that_did_not_finish_gets_none(ledger, client, run):
    client.set_terminated(run, "FAILED")
    with pytest.raises(StoreError, match="has not finished"):
        ledger.record_diagnosis(run, diagnosis())
    client.set_terminated(run, "FINISHED")


def test_a_damaged_one_is_one_line(ledger, run):
    ledger.record_diagnosis(run, diagnosis())
    for text in ("", "{", "[]", "{}", '{"findings": 3}', "\x00"):
        Path("mlartifacts/lines", run, "artifacts", "diagnosis.json").write_text(text)
        with pytest.raises(StoreError, match=r"^diagnosis.json of the run 'ptq' .* is corrupt: [^\n]+$"):
            ledger.diagnosis(run)
    Path("mlartifacts/lines", run, "artifacts", "diagnosis.json").unlink()
    with pytest.raises(StoreError, match=r"has left no diagnosis.json"):
        ledger.diagnosis(run)


# a store that is away


@pytest.mark.parametrize("call", ["log_artifacts", "log_batch"])
def test_one_that_could_not_be_sent_waits_and_is_sent_later(ledger, client, run, monkeypatch, caplog, call):
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, away)
        ledger.record_diagnosis(run, diagnosis())
    assert "later: qtrack sync" in caplog.text
    assert len(waiting()) == 1
    end = client.get_run(run).info.end_time
    assert [found.trouble for found in Ledger.open().sync()] == [""]
    assert ledger.diagnosis(run) == replace(diagnosis(), run_id=run)
    assert (client.get_run(run).info.status, client.get_run(run).info.end_time) == ("FINISHED", end)
    assert waiting() == []


def test_a_process_that_dies_in_the_middle_does_not_kill_the_finished_run(ledger, client, run, monkeypatch):
    from qtrack.ledger.diagnoses import ended

    row = ledger._run(run)
    journal = ledger._spool.add_to(ended(row))
    journal.append("amend", tags={"qtrack.verdict": "healthy"}, names=[], paragraph="Diagnosis: fine")
    journal.leave()
    Ledger.open().sync()
    found = client.get_run(run)
    assert (found.info.status, found.data.tags["qtrack.verdict"]) == ("FINISHED", "healthy")
    assert waiting() == []


# what worked


STARTS = {"ptq": None, "per_channel": "ptq", "float16": "ptq", "dynamic": "per_channel"}


def remedied(ledger, per_channel=0.1):
    """A campaign whose float model is right on all samples, and whose stages are wrong on these shares."""
    drops = {"ptq": 0.4, "per_channel": per_channel, "float16": 0.0, "dynamic": 0.0}
    baseline = outcome(validation=evaluation([1] * 20))
    with ledger.campaign(setting(stages=list(STARTS))) as campaign:
        for i, (name, start) in enumerate(STARTS.items()):
            wrong = round(20 * drops[name])
            made = outcome(validation=evaluation([0] * wrong + [1] * (20 - wrong)))
            with campaign.stage(StageSpec(use=name, name=name, start=start), i) as stage:
                stage.recipe(FLOAT, PTQ if start else None)
                stage.result(result(name, i, made, baseline))


def test_stages_that_started_from_a_diagnosed_one_are_counted_by_their_function(ledger, client):
    remedied(ledger, 0.1)
    ledger.record_diagnosis("ptq", diagnosis())
    remedied(ledger, 0.4)
    assert ledger.worked()(CAUSE) == {"per_channel": Worked(1, 1), "float16": Worked(1, 1)}
    ledger.record_diagnosis("ptq", diagnosis())
    assert ledger.worked("lines")(CAUSE) == {"per_channel": Worked(1, 2), "float16": Worked(2, 2)}
    assert ledger.worked()("another cause") == {}
    (renamed,) = ledger.strategies(["per_channel"])
    assert client.get_run(renamed.run_id).data.tags["qtrack.use"] == "per_channel"
    client.set_tag(renamed.run_id, "qtrack.use", "mine.py:other")
    assert ledger.worked()(CAUSE)["mine.py:other"] == Worked(0, 1)
    client.delete_tag(renamed.run_id, "qtrack.use")
    assert ledger.worked()(CAUSE)["per_channel"] == Worked(1, 2)


def test_a_store_that_does_not_answer_knows_nothing(ledger, monkeypatch, caplog):
    monkeypatch.setattr(type(ledger._reader), "experiments", away_store)
    assert ledger.worked()(CAUSE) == {}
    assert "what worked in earlier runs is not known" in caplog.text


def away_store(self):
    raise StoreError("gone")


def test_the_store_is_asked_once(ledger, monkeypatch):
    asked, real = [], type(ledger._reader).finished
    monkeypatch.setattr(type(ledger._reader), "finished", lambda *a, **k: asked.append(1) or real(*a, **k))
    worked = ledger.worked()
    for cause in ("a", "b", "a"):
        worked(cause)
    assert asked == [1]
