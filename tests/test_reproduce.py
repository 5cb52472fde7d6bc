"""Recorded runs, executed and loaded again: the same model, or what drifted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from mlflow import MlflowClient
from recorded_tiny import PIPELINE, PLANTED, artifact, command, edited, one_ulp, write_task

import qtrack
from qtrack import Ledger
from qtrack.api import reproduce
from qtrack.errors import RunNotFound, StoreError, TaskError
from qtrack.ingredients import Drift, drifted
from qtrack.sources import defining, digest_of_files, imported

pytest_plugins = ("recorded_campaign",)


def names(found):
    return {drift.name for drift in found.drifted}


# the same again


@pytest.mark.parametrize("stage", ["float", "ptq", "qat"])
def test_every_stage_is_bit_identical_and_nothing_drifts(folder, stage):
    found = reproduce(stage)
    assert found.verdict == "bit-identical"
    assert found.drifted == found.restored == found.unrecorded == found.parted_layers == ()
    assert found.value == found.recorded_value
    assert ("data.training.content" in found.ingredients) == (stage == "qat")


def test_the_command_says_so_and_exits_with_0(folder):
    done = command("reproduce", "ptq")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1].split() == ["verdict", "bit-identical"]
    assert any(line.split() == ["28", "ingredients", "equal"] for line in lines)


def test_a_reproduction_is_a_run_of_its_own_kind_that_is_no_strategy(folder):
    before = [strategy.run_id for strategy in Ledger.open().strategies()]
    found = json.loads(command("reproduce", "ptq", "--json").stdout)
    run = MlflowClient(Ledger.open().uri).get_run(found["reproduction_run"])
    assert run.data.tags["qtrack.kind"] == "reproduction"
    assert run.data.tags["qtrack.reproduces"] == found["run_id"] == before[1]
    assert run.data.tags["qtrack.verdict"] == found["verdict"] == "bit-identical"
    assert run.data.metrics["differing_samples"] == run.data.metrics["drifted_ingredients"] == 0
    assert run.data.metrics["accuracy"] == found["value"]
    assert run.info.status == "FINISHED"
    assert [strategy.run_id for strategy in Ledger.open().strategies()] == before
    with pytest.raises(RunNotFound):
        reproduce(found["reproduction_run"])


@pytest.mark.slow
def test_a_new_process_in_another_folder_with_other_threads_gives_the_same_bits(folder, tmp_path):
    write_task(tmp_path)
    for stage in ("float", "ptq", "qat"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "qtrack", "reproduce", stage, "--json"),
                *("--tracking-uri", Ledger.open().uri),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["verdict"] == "bit-identical"
        assert found["drifted"] == []
        assert found["restored"] == [{"name": "threads", "was": "1", "now": "2"}]


# planted drifts: each is named, and nothing else


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_changed_is_named_and_nothing_else(folder, monkeypatch, what):
    plant, name = PLANTED[what]
    plant(monkeypatch)
    assert names(reproduce("qat" if "training" in name else "ptq")) == {name}


@pytest.mark.parametrize(
    "name", ["version.torch", "version.python", "cpu.model", "cpu.capability", "engine", "source.model"]
)
def test_a_record_from_elsewhere_is_named_and_the_bits_still_compared(folder, name):
    with edited(artifact("ptq", "fingerprint.json"), lambda data: data["ingredients"].update({name: "old"})):
        found = reproduce("ptq")
    assert [(drift.name, drift.was) for drift in found.drifted] == [(name, "old")]
    assert found.verdict == "bit-identical"


@pytest.mark.parametrize(
    ("was", "now", "named"),
    [
        ("reduce_range: false", "reduce_range: true", {"recipe"}),
        ("engine: x86", "engine: onednn", {"recipe", "engine"}),
        ("bins: 2048", "bins: 1024", {"recipe"}),
    ],
)
def test_another_recipe_is_named(folder, was, now, named):
    path = artifact("ptq", "recipe.yaml")
    kept = path.read_text()
    assert was in kept
    path.write_text(kept.replace(was, now))
    try:
        found = reproduce("ptq")
    finally:
        path.write_text(kept)
    assert names(found) == named


def test_an_edited_task_is_named_and_white_space_is_not(folder):
    path = folder / "tiny_task.py"
    path.write_text(path.read_text().replace("\n", "  \r\n") + "\n\n")
    assert names(reproduce("ptq")) == set()
    path.write_text(path.read_text().replace("pass", "extra = 1"))
    assert names(reproduce("ptq")) == {"source.task"}


def test_an_edited_file_that_the_task_imports_is_named(folder):
    (folder / "tiny_helper.py").write_text("FACTOR = 2\n")
    assert names(reproduce("ptq")) == {"source.imports"}


def test_the_recorded_number_of_threads_is_set_for_the_execution(folder, monkeypatch):
    seen = []
    real = tiny.Tiny.score
    monkeypatch.setattr(tiny.Tiny, "score", lambda *a: (seen.append(torch.get_num_threads()), real(*a))[1])
    with edited(artifact("ptq", "fingerprint.json"), lambda data: data["ingredients"].update(threads="2")):
        found = reproduce("ptq")
    assert set(seen) == {2}
    assert found.drifted == ()
    assert found.restored == (Drift("threads", "2", "1"),)
    assert torch.get_num_threads() == 1


def test_of_a_split_only_the_cause_is_named():
    was = {f"data.test.{part}": "a" for part in ("content", "order", "labels", "batches")}
    assert [d.name for d in drifted(was, {})] == ["data.test.content", "data.test.batches"]
    now = was | {"data.test.order": "b", "data.test.labels": "b"}
    assert [d.name for d in drifted(was, now)] == ["data.test.order"]


def test_installed_sources_do_not_count():
    assert digest_of_files(defining([torch.nn.Linear, dict, qtrack.Task, Path])) == "none"
    assert defining([tiny.TinyNet]) == defining([tiny.Residual, tiny.Tiny]) == {Path(tiny.__file__)}


def test_an_import_is_the_file_beside_and_not_its_namesake_elsewhere(tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
        (folder / "namesake.py").write_text(f"FOLDER = {folder.name!r}\n")
    (here / "task.py").write_text("import namesake\n")
    monkeypatch.syspath_prepend(elsewhere)
    assert imported({here / "task.py"}) == {here / "namesake.py"}
    (here / "namesake.py").unlink()
    assert imported({here / "task.py"}) == {elsewhere / "namesake.py"}


def test_what_a_task_imports_counts_through_other_files_and_inside_functions(tmp_path):
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    texts = {
        "task.py": "import torch, helper\nfrom pack import inner\ndef f():\n    from pack.deep import far\n",
        "helper.py": "import task\n",
        "pack/inner.py": "from . import sibling\nfrom .deep.more import thing\n",
        "pack/sibling.py": "",
        "pack/deep/far.py": "",
        "pack/deep/more.py": "from ..other import x\n",
        "pack/other.py": "",
        "unused.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = {path.relative_to(tmp_path).as_posix() for path in imported({tmp_path / "task.py"})}
    assert found == set(texts) - {"task.py", "unused.py"}


# another result


def tripled(patch):
    def model(self, made=tiny.Tiny.model):
        net = made(self)
        with torch.no_grad():
            net.block.conv.weight.mul_(3)
        return net

    patch.setattr(tiny.Tiny, "model", model)


def test_a_different_model_exits_with_1_and_names_the_first_layer(folder, monkeypatch):
    tripled(monkeypatch)
    done = command("reproduce", "ptq")
    assert done.exit_code == 1, done.output
    assert "first layer" in done.stdout
    assert "different: the first layer to part is block.conv" in done.stderr
    assert json.loads(command("reproduce", "float", "--json").stdout)["parted_layers"][0] == "block.conv"


def test_small_changes_that_change_no_decision_are_equivalent(folder, monkeypatch):
    one_ulp(monkeypatch)
    done = command("reproduce", "float")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].split() == ["verdict", "equivalent"]
    found = reproduce("float")
    assert (found.parameters_equal, found.differing_samples, found.parted_layers) == (False, 0, ("head",))


def stretched(factor):
    def change(data):
        data["parameters"] = "0" * 64
        for name, value in data["scales"].items():
            if "zero_point" not in name:
                data["scales"][name] = value * factor

    return change


@pytest.mark.parametrize(("factor", "verdict"), [(1 + 5e-4, "equivalent"), (1 + 2e-3, "different")])
def test_scales_may_differ_by_a_thousandth(folder, factor, verdict):
    with edited(artifact("ptq", "fingerprint.json"), stretched(factor)):
        found = reproduce("ptq")
    assert found.verdict == verdict
    assert found.scale_difference == pytest.approx(factor - 1, rel=0.01)


def test_a_run_of_an_older_version_is_compared_with_what_it_left(folder):
    def older(data):
        del data["ingredients"], data["tensors"]

    with edited(artifact("ptq", "fingerprint.json"), older):
        found = reproduce("ptq")
        done = command("reproduce", "ptq")
    assert found.verdict == "bit-identical"
    assert found.drifted == ()
    assert "version.torch" in found.unrecorded
    assert "not recorded" in done.stdout


# an experiment


def test_every_stage_of_an_experiment_is_proven_again(folder):
    done = command("reproduce", "--all", "--experiment", "tiny")
    assert done.exit_code == 0, done.output
    assert [line.split()[0::2] for line in done.stdout.splitlines()[2:]] == [
        [stage, "bit-identical"] for stage in ("float", "ptq", "qat")
    ]


def test_one_that_cannot_be_proven_stops_no_other_and_fails_the_check(folder):
    with edited(artifact("ptq", "fingerprint.json"), lambda data: data.pop("behaviour")):
        done = command("reproduce", "--all", "--experiment", "tiny", "--json")
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    assert "cannot be compared" in found[1]["error"]
    assert [one.get("verdict") for one in found] == ["bit-identical", None, "bit-identical"]


@pytest.mark.parametrize("given", [(), ("--all",), ("ptq", "--all"), ("ptq", "--experiment", "tiny")])
def test_it_is_one_run_or_all_of_an_experiment(given):
    assert command("reproduce", *given).exit_code == 2


# from the recipe alone


def exported(stage, path="r.yaml"):
    assert command("export", stage, "--recipe-only", "-o", path).exit_code == 0
    return "--from-recipe", path, "--task", "tiny_task.py:Mine"


def test_the_recipe_and_the_task_are_enough_to_find_the_recorded_stage_and_compare(folder):
    before = Ledger.open().strategies(["qat"])[0]
    done = command("reproduce", *exported("qat"), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["run_id"], found["stage"], found["verdict"]) == (before.run_id, "qat", "bit-identical")
    assert found.keys() == json.loads(command("reproduce", "qat", "--json").stdout).keys()
    run = MlflowClient(Ledger.open().uri).get_run(found["reproduction_run"])
    assert run.data.tags["qtrack.reproduces"] == before.run_id
    assert f"compared with the latest, qat ({before.run_id})" in done.stderr


def test_a_different_model_from_a_recipe_exits_with_1(folder, monkeypatch):
    arguments = exported("ptq")
    tripled(monkeypatch)
    done = command("reproduce", *arguments)
    assert done.exit_code == 1, done.output
    assert "different: the first layer to part is block.conv" in done.stderr


@pytest.mark.slow
def test_of_several_recorded_stages_with_the_recipe_the_latest_finished_counts(alone):
    write_task(alone)
    pipeline = {**PIPELINE, "stages": [{"recipe": {"name": "first"}}, {"recipe": {"name": "second"}}]}
    (alone / "tiny.yaml").write_text(yaml.safe_dump(pipeline))
    first, second = (result.name for result in qtrack.run("tiny.yaml", fresh=True))
    latest = Ledger.open().strategies([second])[0].run_id
    assert json.loads(command("reproduce", *exported(first), "--json").stdout)["run_id"] == latest
    MlflowClient(Ledger.open().uri).set_terminated(latest, "FAILED")
    assert json.loads(command("reproduce", *exported(first), "--json").stdout)["stage"] == "first"


def test_where_nothing_is_recorded_the_digests_are_printed_and_nothing_is_kept(folder, campaign, tmp_path):
    arguments = exported("ptq", tmp_path / "r.yaml")
    empty = ("--tracking-uri", f"sqlite:///{tmp_path}/empty.db")
    done = command("reproduce", *arguments, *empty)
    assert done.exit_code == 0, done.output
    outcome = campaign[1][1].outcome
    for digest in (outcome.recipe.digest, outcome.digests["parameters"], outcome.digests["behaviour"]):
        assert digest in done.stdout
    assert f"{outcome.value:.4f} on 200 samples" in done.stdout
    assert "nothing is recorded to compare with" in done.stderr
    found = json.loads(command("reproduce", *arguments, *empty, "--json").stdout)
    assert (found["verdict"], found["value"]) == (None, outcome.value)
    assert Ledger.open(empty[1]).experiment_names() == ["Default"]


def test_a_recipe_without_an_engine_is_that_of_this_machine(folder):
    (folder / "r.yaml").write_text("engine: null\n")
    done = command("reproduce", "--from-recipe", "r.yaml", "--task", "tiny_task.py:Mine", "--json")
    assert json.loads(done.stdout)["stage"] == "ptq", done.output


@pytest.mark.parametrize(
    "more", [("ptq",), ("--all",), ("--all", "--experiment", "tiny"), ("--experiment", "tiny")]
)
def test_a_recipe_goes_with_no_other_choice_of_runs(more):
    assert command("reproduce", "--from-recipe", "r.yaml", "--task", "t.py:T", *more).exit_code == 2


def test_a_recipe_needs_the_task():
    done = command("reproduce", "--from-recipe", "r.yaml")
    assert done.exit_code == 2
    assert "--from-recipe needs the task as well" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "r.yaml: No such file or directory"), ("enigne: x86", "r.yaml: enigne: unknown field")],
)
def test_a_recipe_that_cannot_be_read_is_one_line(folder, text, said):
    path = folder / "r.yaml"
    path.unlink(missing_ok=True)
    if text:
        path.write_text(text)
    done = command("reproduce", "--from-recipe", "r.yaml", "--task", "tiny_task.py:Mine")
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


# loading


@pytest.mark.parametrize("stage", ["float", "ptq", "qat"])
def test_a_loaded_model_does_what_the_recorded_one_did(folder, campaign, stage):
    outcome = {result.name: result.outcome for result in campaign[1]}[stage]
    for task in (None, "tiny_task.py:Mine", tiny.Tiny()):
        model = qtrack.load(stage, task)
        for images, _ in tiny.batches(100, 4):
            assert torch.equal(model(images), outcome.model(images))


def test_another_state_dict_is_refused_in_one_line(folder):
    path = artifact("ptq", "model/state_dict.pt")
    kept = path.read_bytes()
    state = torch.load(path, weights_only=True)
    state["stem.bias"] = state["stem.bias"].detach() + 1e-3
    try:
        torch.save(state, path)
        with pytest.raises(StoreError, match=r"state_dict\.pt has another digest") as raised:
            qtrack.load("ptq")
        path.write_bytes(kept[:100])
        with pytest.raises(StoreError, match="saved model is corrupt") as torn:
            qtrack.load("ptq")
    finally:
        path.write_bytes(kept)
    assert "\n" not in str(raised.value) + str(torn.value)


def test_a_model_that_the_parameters_do_not_fit_is_refused_in_one_line(folder, monkeypatch):
    monkeypatch.setattr(tiny.Tiny, "model", lambda self: torch.nn.Sequential(torch.nn.Flatten()))
    with pytest.raises(StoreError, match="do not fit the task's model") as raised:
        qtrack.load("float")
    assert "\n" not in str(raised.value)


def test_a_run_without_a_model_says_why(folder):
    (strategy,) = Ledger.open().strategies(["ptq"])
    client = MlflowClient(Ledger.open().uri)
    client.set_tag(strategy.run_id, "qtrack.model", "not saved: disk full")
    try:
        with pytest.raises(StoreError, match="has no saved model: not saved: disk full"):
            qtrack.load("ptq")
    finally:
        client.set_tag(strategy.run_id, "qtrack.model", "saved")


@pytest.mark.parametrize("what", [qtrack.load, reproduce])
def test_an_unknown_run_is_not_found(folder, what):
    with pytest.raises(RunNotFound, match="no run 'nothing'; there are float"):
        what("nothing")


def test_a_task_that_is_elsewhere_is_asked_for(folder, tmp_path, monkeypatch):
    uri = Ledger.open().uri
    monkeypatch.chdir(tmp_path)
    done = command("reproduce", "ptq", "--tracking-uri", uri)
    assert done.exit_code == 2
    assert "tiny_task.py: no such file; say where it is now: --task " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    named = command("reproduce", "ptq", "--tracking-uri", uri, "--task", f"{folder}/tiny_task.py:Mine")
    assert named.exit_code == 0, named.output


def test_a_run_that_left_nothing_to_compare_with_is_one_line(folder):
    path = artifact("ptq", "fingerprint.json")
    with edited(path, lambda data: data.pop("behaviour")):
        done = command("reproduce", "ptq")
    assert done.exit_code == 3
    assert "cannot be compared with" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    kept = path.rename(path.with_suffix(".away"))
    try:
        assert "has left no fingerprint.json" in command("reproduce", "ptq").stderr
    finally:
        kept.rename(path)


def test_a_task_given_must_be_one(folder):
    with pytest.raises(TaskError):
        qtrack.load("ptq", "tiny_task.py")


def test_what_was_recorded_reads_back(folder, campaign):
    recorded = Ledger.open().recorded("ptq")
    outcome = campaign[1][1].outcome
    assert np.array_equal(recorded.result.scores, outcome.validation.scores)
    assert recorded.threads == 1
    assert recorded.ingredients["source.task"] != "none"
    assert recorded.layers == tuple(row.layer for row in outcome.layers)
