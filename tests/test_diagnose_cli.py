"""``qtrack diagnose`` and ``qtrack audit`` on recorded runs and pipeline files; what is found is made up."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diagnosis_samples import BAD, FINDINGS, HEALTHY
from recorded_tiny import command
from test_report_tables import GOLDEN

import qtrack
from qtrack import Ledger, diagnosis
from qtrack.api import audit
from qtrack.cli.render import all_drawn
from qtrack.errors import InputError, PipelineError, RunNotFound, TaskError
from qtrack.finding import Finding, Remedy, Worked, diagnosis_from
from qtrack.pipeline import read_plan
from qtrack.report.diagnosis import entry_text, measured, screen

pytest_plugins = ("recorded_campaign",)


@pytest.fixture
def asked(monkeypatch):
    """What the diagnosis was asked, each time."""
    calls = []

    def diagnose(task, recipe, target, **named):
        calls.append({"task": task, "recipe": recipe, "target": target, **named})
        calls[-1]["threads"] = torch.get_num_threads()
        return replace(BAD, subject=named["subject"], run_id=named["run_id"], recipe_digest=recipe.digest)

    monkeypatch.setattr(diagnosis, "diagnose", diagnose)
    return calls


def found(monkeypatch, made):
    monkeypatch.setattr(diagnosis, "diagnose", lambda *a, **named: made)


# a run


def test_a_run_is_diagnosed_as_it_was_executed_and_the_verdict_recorded(folder, asked):
    done = command("diagnose", "ptq", "--json")
    assert done.exit_code == 0, done.output
    ledger = Ledger.open()
    (strategy,) = ledger.strategies(["ptq"])
    (call,) = asked
    assert call["recipe"] == ledger.recipe("ptq")
    assert (call["subject"], call["run_id"], call["threads"]) == ("ptq", strategy.run_id, 1)
    assert call["target"] == ledger.pipeline("ptq").target
    assert call["worked"]("per-tensor weights") == {}
    assert diagnosis_from(json.loads(done.stdout)) == ledger.diagnosis("ptq")
    assert (strategy.verdict, strategy.cause, strategy.status) == (
        *("data-insensitive", "per-tensor weights"),
        "FINISHED",
    )


def test_python_says_the_same(folder, asked):
    found = qtrack.diagnose("ptq", max_drop=0.25)
    assert asked[0]["target"].max_drop == 0.25
    assert found == Ledger.open().diagnosis("ptq")


def test_the_target_can_be_another(folder, asked):
    assert command("diagnose", "ptq", "--target-drop", "0.3").exit_code == 0
    assert asked[0]["target"].max_drop == 0.3
    assert command("diagnose", "ptq", "--target-drop", "-1").exit_code == 2


def test_only_strict_makes_a_fault_an_exit_code(folder, asked, monkeypatch):
    assert command("diagnose", "ptq").exit_code == 0
    assert command("diagnose", "ptq", "--strict").exit_code == 1
    found(monkeypatch, HEALTHY)
    assert command("diagnose", "ptq", "--strict").exit_code == 0


def test_the_next_commands_are_quoted(folder, asked):
    said = command("diagnose", "ptq", "--task", "tiny_task.py:Mine").stderr
    assert "next: qtrack diagnose ptq --task tiny_task.py:Mine -o remedies.yaml\n" in said
    assert said.endswith("\n      qtrack run remedies.yaml\n")
    uri = f"sqlite:///{folder}/mlflow.db"
    said = command("diagnose", "ptq", "--tracking-uri", uri).stderr
    assert said.endswith(f"\n      qtrack run remedies.yaml --tracking-uri {uri}\n")
    path = Path("a b.yaml")
    path.write_text(Path("tiny.yaml").read_text())
    assert "next: qtrack diagnose 'a b.yaml' -o remedies.yaml" in command("diagnose", path).stderr


def test_a_read_only_store_still_has_its_diagnosis_printed(folder, asked, tmp_path):
    import sqlite3

    copy = tmp_path / "mlflow.db"
    with sqlite3.connect("mlflow.db") as source, sqlite3.connect(copy) as target:
        source.backup(target)
    (tmp_path / ".qtrack").write_text("no folder")  # root may write what is read-only
    copy.chmod(stat.S_IREAD)
    done = command("diagnose", "ptq", "--tracking-uri", f"sqlite:///{copy}")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("data-insensitive: ")
    assert "the diagnosis is not recorded: cannot write to" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no run 'nothing'; there are float "),
        (["gone.yaml"], "no run 'gone.yaml'; there are float "),
        (["float"], "the run 'float' quantizes nothing: name one that does"),
        (["ptq", "--task", "gone.py:Mine"], "gone.py: no such file"),
        ([], "Missing argument 'RUN|PIPELINE'"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line(folder, asked, arguments, said):
    done = command("diagnose", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert asked == []


def test_a_run_whose_task_is_gone_says_what_would_do(folder, asked):
    path = Path("tiny_task.py")
    path.rename("kept")
    try:
        done = command("diagnose", "ptq")
    finally:
        Path("kept").rename(path)
    assert done.exit_code == 2
    assert "no such file; say where it is now: --task path/to/file.py:Class" in done.stderr


# a pipeline


def write(**changes):
    plain = yaml.safe_load(Path("tiny.yaml").read_text())
    Path("plan.yaml").write_text(yaml.safe_dump(plain | changes))
    return "plan.yaml"


@pytest.mark.parametrize(
    ("stages", "mode"),
    [
        (["float", "ptq"], "static"),
        (["float", {"dynamic": {"from": "float"}}], "dynamic"),
        (["per_channel", "float"], "static"),
        ([{"weight_only": {"name": "x"}}], "weight_only"),
    ],
)
def test_the_first_recipe_of_a_pipeline_that_quantizes_is_diagnosed(folder, asked, stages, mode):
    before = Ledger.open().timeline("tiny")
    done = command("diagnose", write(stages=stages, target={"max_drop": 0.2}, threads=2), "--json")
    assert done.exit_code == 0, done.output
    (call,) = asked
    assert call["recipe"].default.mode == mode
    assert (call["subject"], call["run_id"], call["threads"]) == ("plan.yaml", None, 2)
    assert call["target"].max_drop == 0.2
    assert torch.get_num_threads() == 1
    assert Ledger.open().timeline("tiny") == before


def test_a_pipeline_makes_no_store(folder, asked, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/none/mlflow.db"
    assert command("diagnose", write(), "--tracking-uri", uri).exit_code == 0
    assert list(tmp_path.iterdir()) == []
    assert asked[0]["worked"]("anything") == {}


def test_a_pipeline_without_a_store_that_answers_is_diagnosed_with_a_remark(folder, asked):
    done = command("diagnose", write(), "--tracking-uri", "nonsense://x")
    assert done.exit_code == 0, done.output
    assert "what worked in earlier runs is not known" in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": ["float"]}, "plan.yaml: no stage of the pipeline 'tiny' quantizes anything"),
        ({"stages": ["float", "fallback"]}, "plan.yaml: stage fallback: this stage searches: let it start"),
        ({"stages": ["diagnose"]}, "plan.yaml: stage diagnose: there is nothing to diagnose: start from"),
        ({"stages": ["nonsense"]}, "unknown stage 'nonsense'"),
        ({"task": "gone.py:Mine"}, "gone.py: no such file"),
    ],
)
def test_a_pipeline_that_cannot_be_diagnosed_is_one_line(folder, asked, changes, said):
    done = command("diagnose", write(**changes))
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_is_no_pipeline_is_refused(folder, asked):
    Path("list.yml").write_text("- 1\n")
    with pytest.raises(PipelineError, match="expected a mapping"):
        qtrack.diagnose("list.yml")


def test_a_pipeline_can_be_diagnosed_on_another_task(folder, asked):
    Path("moved").mkdir(exist_ok=True)
    Path("moved/tiny_task.py").write_text(Path("tiny_task.py").read_text() + "    moved = True\n")
    assert command("diagnose", write(), "--task", "moved/tiny_task.py:Mine").exit_code == 0
    assert asked[0]["task"].moved


# the remedies as a pipeline


@pytest.mark.parametrize("subject", ["ptq", "tiny.yaml"])
def test_the_remedies_are_written_as_a_pipeline_that_can_be_run(folder, asked, monkeypatch, subject):
    remedies = (
        *BAD.remedies[:2],
        Remedy("ptq", {"observer": "min_max"}, why="no outliers"),
        Remedy("ptq", {"samples": 16}, why="fewer"),
    )
    found(monkeypatch, replace(BAD, remedies=remedies))
    Path("out").mkdir(exist_ok=True)
    done = command("diagnose", subject, "-o", "out/remedies.yaml")
    assert done.exit_code == 0, done.output
    assert done.stderr.endswith("wrote out/remedies.yaml\nnext: qtrack run out/remedies.yaml\n")
    plan = read_plan(Path("out/remedies.yaml"))
    stages = [(spec.use, spec.name, spec.start, spec.options) for spec in plan.pipeline.stages]
    assert stages == [
        ("float", "float", None, {}),
        ("recipe", "ptq", None, {}),
        ("per_channel", "per_channel", "ptq", {}),
        ("fallback", "fallback", "ptq", {"max_layers": 3}),
        ("ptq", "ptq_2", "ptq", {"observer": "min_max"}),
        ("ptq", "ptq_3", "ptq", {"samples": 16}),
    ]
    assert plan.pipeline.recipe == Ledger.open().recipe("ptq")
    assert (plan.pipeline.task, plan.pipeline.name) == ("../tiny_task.py:Mine", "tiny")


def test_a_file_that_is_there_is_written_anew_as_export_does(folder, asked):
    Path("remedies.yaml").write_text("old")
    assert command("diagnose", "ptq", "-o", "remedies.yaml").exit_code == 0
    assert Path("remedies.yaml").read_text().startswith("# ptq, recipe ")


def test_a_file_that_cannot_be_written_is_one_line(folder, asked):
    done = command("diagnose", "ptq", "-o", "no/such/folder.yaml")
    assert done.exit_code == 2
    assert done.stderr.endswith("qtrack: no/such/folder.yaml: No such file or directory\n")


# the audit


def test_an_audit_prints_what_was_found(folder, monkeypatch):
    monkeypatch.setattr(diagnosis, "audit", lambda task, monitor: FINDINGS)
    done = command("audit", "tiny_task.py:Mine")
    assert done.exit_code == 0, done.output
    assert re.search(r"^fault +per-channel: one scale", done.stdout, re.M)
    assert re.search(r"^fine +fusion: ", done.stdout, re.M)
    checks = [
        finding["check"] for finding in json.loads(command("audit", "tiny_task.py:Mine", "--json").stdout)
    ]
    assert checks == [finding.check for finding in FINDINGS]
    assert command("audit", "tiny_task.py:Mine", "--strict").exit_code == 1
    monkeypatch.setattr(diagnosis, "audit", lambda task, monitor: FINDINGS[1:])
    assert command("audit", "tiny_task.py:Mine", "--strict").exit_code == 0
    assert audit("tiny_task.py:Mine") == FINDINGS[1:]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("nothing", "write package.module:Class or path/to/file.py:Class"),
        ("gone.py:Mine", "gone.py: no such file"),
        ("tiny_task.py:Gone", "tiny_task has no 'Gone'"),
    ],
)
def test_a_task_that_is_none_is_one_line(folder, task, said):
    done = command("audit", task)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


# nothing made up


def test_what_is_found_is_read_back(folder):
    done = command("diagnose", "ptq", "--json")
    assert done.exit_code == 0, done.output
    found = diagnosis_from(json.loads(done.stdout))
    assert found == Ledger.open().diagnosis("ptq")
    assert found.value == Ledger.open().strategies(["ptq"])[0].value
    assert found.category == "healthy"


def test_a_pipeline_and_a_task_are_looked_at_without_a_record(folder):
    done = command("diagnose", "tiny.yaml")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("healthy: ")
    assert "calibration size" in command("audit", "tiny_task.py:Mine").stdout


@pytest.mark.slow
def test_the_remedies_run(folder):
    assert command("diagnose", "ptq", "--target-drop", "0", "-o", "remedies.yaml").exit_code == 0
    done = command("run", "remedies.yaml")
    assert done.exit_code == 0, done.output
    assert "ptq" in done.stdout


# how it reads


def test_it_looks_as_it_did():
    text = "\n\n".join(all_drawn(screen(one, 100), 100) for one in (BAD, HEALTHY)) + "\n"
    path = GOLDEN / "diagnosis.txt"
    if os.environ.get("QTRACK_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100, 132])
def test_it_fits_the_terminal(width):
    assert max(map(len, all_drawn(screen(BAD, width), width).splitlines())) <= width


def test_it_fits_one_screen():
    assert len(all_drawn(screen(BAD, 100), 100).splitlines()) < 40


def test_values_that_are_no_numbers_are_dashes():
    nothing = replace(BAD.drop, value=None, low=None, high=None)
    broken = replace(BAD, value=float("nan"), float_value=None, drop=nothing)
    assert measured(broken).rows[0][-2:] == ("-", "-")
    assert all_drawn(screen(broken, 100), 100)


def test_long_options_are_cut_and_short_ones_stand_as_in_a_pipeline_file():
    assert entry_text("fallback", {"max_layers": 3}) == "fallback: {max_layers: 3}"
    assert entry_text("ptq", {}) == "ptq"
    assert entry_text("mine.py:x", {"names": ("a", "b")}) == "mine.py:x: {names: [a, b]}"
    assert len(entry_text("observers", {"layers": ["name"] * 50}, 40)) == 40


def test_what_the_terminal_would_act_on_is_not_sent_to_it():
    hostile = Finding("\x1b[2J", "fault", "\x1b]0;x\x07", layers=("\x1b",))
    rest = Finding("\x1b[2J", "not checked", "\x1b")
    text = all_drawn(screen(replace(BAD, text="\x1b", findings=(hostile, rest)), 100), 100)
    assert "\x1b" not in text
    assert "\x07" not in text


def test_how_often_a_remedy_worked_is_said():
    assert "0 of 4" in all_drawn(screen(replace(BAD, remedies=(Remedy("x", worked=Worked(0, 4)),)), 100), 100)


def test_errors_are_those_of_python_too(folder, asked):
    with pytest.raises(RunNotFound):
        qtrack.diagnose("nothing")
    with pytest.raises(InputError):
        qtrack.diagnose("float")
    with pytest.raises(TaskError):
        qtrack.diagnose("ptq", "nothing")
