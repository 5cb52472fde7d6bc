"""What is on record, or was done before an interruption, is not done again."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient

import qtrack
from qtrack import Ledger, campaign
from qtrack.cli import main
from qtrack.engine import training
from qtrack.scratch import Checkpoint, Scratch

TASK = "import sys\nsys.path.insert(0, {tests!r})\nimport tiny\n\n\nclass Mine(tiny.Tiny):\n    pass\n"
pytest_plugins = ("ledger_store",)

STAGES = ["float", "ptq", "per_channel", "fallback"]
PIPELINE = {"name": "tiny", "task": "tiny_task.py:Mine", "recipe": {"engine": "x86"}, "threads": 1}
HARD = {"max_drop": 0.0}


def write(stages=STAGES, **changes):
    Path("tiny_task.py").write_text(TASK.format(tests=str(Path(__file__).parent)))
    fields = {"stages": stages, "target": HARD, **changes}
    Path("tiny.yaml").write_text(yaml.safe_dump(PIPELINE | fields))


@pytest.fixture
def executed(monkeypatch, ledger):
    """The recipes that are executed, and whether thoroughly."""
    monkeypatch.setitem(sys.modules, "tiny", tiny)
    done, real = [], campaign.execute

    def counted(task, recipe, *arguments, **named):
        done.append((recipe.digest, named.get("thorough", True)))
        return real(task, recipe, *arguments, **named)

    monkeypatch.setattr(campaign, "execute", counted)
    return done


def run(stages=STAGES, *, fresh=False, **changes):
    write(stages, **changes)
    return qtrack.run("tiny.yaml", fresh=fresh)


def finished():
    client = MlflowClient(Ledger.open().uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = client.search_runs([experiment], "tags.`qtrack.kind` = 'stage'")
    return sorted(run.data.tags["qtrack.stage"] for run in runs if run.info.status == "FINISHED")


def digests(results):
    return {result.name: dict(result.outcome.digests) for result in results}


# finished stages


def test_a_second_run_executes_nothing_and_refers_to_all(executed):
    first = run()
    assert executed
    executed.clear()
    second = run()
    assert executed == []
    assert finished() == sorted(STAGES)
    assert digests(first) == digests(second)
    assert [result.known.stage for result in second] == STAGES
    assert [r.cost for r in first] == [r.cost for r in second]


@pytest.mark.slow
def test_the_new_campaign_reads_as_if_it_had_executed_them(executed):
    run()
    before = Ledger.open().strategies()
    run()
    after = Ledger.open().strategies()
    assert {row.campaign for row in after} != {row.campaign for row in before}
    assert [row.origin for row in after] == [row.campaign for row in before]
    changed = {"campaign", "origin"}
    for was, now in zip(before, after, strict=True):
        left = {name: value for name, value in was.to_dict().items() if name not in changed}
        assert left == {name: value for name, value in now.to_dict().items() if name not in changed}
    ledger = Ledger.open()
    assert ledger.layers("ptq") == ledger.layers(before[1].run_id)
    assert ledger.recorded(f"{after[0].campaign[:-2]}/fallback").run_id == before[3].run_id
    assert before[1].run_id in ledger.links(after)["table"]


def test_a_known_model_can_be_used(executed):
    first, second = run(["ptq"]), run(["ptq"])
    images, _ = tiny.batches(16, 4)[0]
    assert second[0].known
    assert torch.equal(first[0].outcome.model(images), second[0].outcome.model(images))


@pytest.mark.slow
def test_fresh_executes_all_again(executed):
    run()
    executed.clear()
    assert not any(result.known for result in run(fresh=True))
    assert [thorough for _, thorough in executed].count(True) == len(STAGES)
    assert finished() == sorted(2 * STAGES)


def test_names_do_not_matter(executed):
    run(["float", "ptq"])
    executed.clear()
    results = run(["float", {"ptq": {"name": "other"}}], name="another pipeline")
    assert executed == []
    assert results[1].known.stage == "ptq"
    assert [row.stage for row in Ledger.open().strategies()] == ["float", "other"]


NAMING = """
def naming(recipe, evidence):
    evidence.also(recipe.with_weights(granularity="per_channel"))
    return recipe
"""


def test_further_answers_are_referred_to_as_well(executed):
    Path("mine.py").write_text(NAMING)
    stages = ["float", {"mine.py:naming": {"name": "best"}}, "ptq"]
    first = run(stages)
    executed.clear()
    second = run(stages)
    assert executed == []
    names = ["float", "best", "best.2", "ptq"]
    assert [result.name for result in first] == [result.name for result in second] == names
    assert digests(first) == digests(second)
    assert [row.stage for row in Ledger.open().strategies()] == names


def test_a_further_answer_that_was_not_executed_is(executed):
    Path("mine.py").write_text(NAMING)
    with pytest.MonkeyPatch.context() as patched:
        dying(patched, campaign._Campaign, "_run_further", 0)
        with pytest.raises(Killed):
            run(["float", {"mine.py:naming": {"name": "best"}}])
    executed.clear()
    results = run(["float", {"mine.py:naming": {"name": "best"}}])
    assert [bool(result.known) for result in results] == [True, True, False]
    assert len(executed) == 1


@pytest.mark.slow
def test_another_target_judges_what_is_known_anew(executed):
    first = run()
    executed.clear()
    results = run(target={"max_drop": 0.5, "confidence": 0.9})
    assert all(result.known for result in results[:3])
    assert results[1].judged.drop.confidence == 0.9
    rows = Ledger.open().strategies()
    assert {row.max_drop for row in rows} == {0.5}
    assert rows[1].target_met is True
    assert rows[1].drop == first[1].judged.drop.value
    assert rows[1].drop_low > first[1].judged.drop.low


@pytest.mark.slow
def test_a_search_for_another_target_does_not_repeat_probes(executed):
    run()
    probes = {digest for digest, thorough in executed if not thorough}
    assert probes
    executed.clear()
    run(target={"max_drop": 0.0, "confidence": 0.9})
    assert not probes & {digest for digest, thorough in executed if not thorough}


CHANGES = {
    "a weight": ("weights", {"float", "ptq"}),
    "a sample": ("sample", {"float", "ptq"}),
    "an option": ("option", {"ptq"}),
    "the task's source": ("source", {"float", "ptq"}),
    "the number of threads": ("threads", {"float", "ptq"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_executed_again(executed, monkeypatch, what):
    kind, again = CHANGES[what]
    stages = ["float", "ptq"]
    run(stages)
    write(stages)
    if kind == "weights":
        monkeypatch.setattr(tiny.Tiny, "model", _nudged)
    elif kind == "sample":
        monkeypatch.setattr(tiny.Tiny, "calibration", lambda self: tiny.batches(64, 12))
    elif kind == "option":
        write(["float", {"ptq": {"samples": 48}}])
    elif kind == "threads":
        write(stages, threads=2)
    else:
        Path("tiny_task.py").write_text(Path("tiny_task.py").read_text() + "\nEXTRA = 1\n")
    results = qtrack.run("tiny.yaml")
    assert {result.name for result in results if not result.known} == again


def _nudged(self, made=tiny.Tiny.model):
    net = made(self)
    with torch.no_grad():
        net.head.bias[0] = torch.nextafter(net.head.bias[0], torch.tensor(9.0))
    return net


def test_other_training_data_train_again(executed, monkeypatch):
    stages = ["float", {"qat": {"epochs": 1}}]
    run(stages)
    monkeypatch.setattr(tiny.Tiny, "training", lambda self: tiny.batches(128, 7))
    assert [bool(result.known) for result in run(stages)] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("layers.json", "gone"),
        ("samples.parquet", "torn"),
        ("fingerprint.json", "torn"),
        ("recipe.yaml", "torn"),
    ],
)
def test_a_record_that_is_not_whole_is_passed_over(executed, caplog, file, damage):
    run(["float", "ptq"])
    (row,) = Ledger.open().strategies(["ptq"])
    path = Path("mlartifacts/tiny") / row.run_id / "artifacts" / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"torn")
    results = run(["float", "ptq"])
    assert [bool(result.known) for result in results] == [True, False]
    assert "it is executed again" in caplog.text


def test_a_task_whose_source_is_not_known_is_always_executed(executed):
    namespace = {"tiny": tiny, "__name__": "typed in"}
    exec("class Typed(tiny.Tiny):\n    pass\n", namespace)
    from qtrack.ingredients import execution_key

    assert execution_key({"source.task": "none"}) is None
    assert execution_key({"source.task": "x"}) != execution_key({"source.task": "y"})


def test_a_referred_run_that_was_deleted_is_left_out(executed):
    run(["float", "ptq"])
    run(["float", "ptq"])
    ledger = Ledger.open()
    MlflowClient(ledger.uri).delete_run(ledger.strategies(["ptq"])[0].run_id)
    assert [row.stage for row in ledger.strategies()] == ["float"]
    assert [bool(result.known) for result in run(["float", "ptq"])] == [True, False]


def test_a_broken_reference_is_left_out(executed):
    run(["float", "ptq"])
    run(["float", "ptq"])
    client = MlflowClient(Ledger.open().uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    latest = client.search_runs([experiment], "tags.`qtrack.kind` = 'campaign'", max_results=1)[0]
    client.set_tag(latest.info.run_id, "qtrack.refers.1", '{"run": "../etc", "drop": "x"}')
    assert [row.stage for row in Ledger.open().strategies()] == ["float"]


def test_the_command_says_what_it_did_not_execute_and_fresh_is_an_option(executed):
    write(["float", "ptq"])
    command = ["run", "tiny.yaml"]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    executed.clear()
    again = CliRunner().invoke(main, command)
    assert again.stdout == first.stdout
    assert "not executed again: tiny-" in again.stderr
    assert executed == []
    assert CliRunner().invoke(main, [*command, "--fresh"]).exit_code == 0
    assert len(executed) == 2


# interrupted work


class Killed(BaseException):
    pass


def dying(monkeypatch, owner, name, after):
    """The process dies at the call after so many."""
    real, calls = getattr(owner, name), []

    def counted(*arguments, **named):
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)


QAT = ["float", {"qat": {"epochs": 3, "freeze_observers": 2}}]


def test_training_goes_on_after_its_last_epoch_bit_for_bit(executed, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "qtrack")
    whole = run(QAT, fresh=True)
    epochs, real = [], training._begin_epoch
    with monkeypatch.context() as patched:
        dying(patched, training, "_begin_epoch", 2)
        with pytest.raises(Killed):
            _elsewhere(QAT)
    with monkeypatch.context() as patched:
        patched.setattr(training, "_begin_epoch", lambda *a: (epochs.append(a[3]), real(*a))[1])
        resumed = _elsewhere(QAT)
    assert epochs == [2]
    assert "training goes on after epoch 2" in caplog.text
    assert digests(resumed) == digests(whole)
    assert not list(Path("elsewhere/.qtrack/scratch").glob("*.pt"))
    assert _curve("train/loss", "elsewhere") == _curve("train/loss", ".")


def _elsewhere(stages):
    write(stages)
    Path("elsewhere").mkdir(exist_ok=True)
    uri = f"sqlite:///{Path('elsewhere/mlflow.db').absolute()}"
    return qtrack.run("tiny.yaml", tracking_uri=uri)


def _curve(key, folder):
    uri = f"sqlite:///{Path(folder).absolute()}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    found = client.search_runs([experiment], "tags.`qtrack.stage` = 'qat' AND attributes.status = 'FINISHED'")
    history = client.get_metric_history(found[0].info.run_id, key)
    return [(point.step, point.value) for point in history]


@pytest.mark.slow
def test_probes_of_an_interrupted_search_are_not_repeated(executed, monkeypatch):
    whole = run(fresh=True)
    first = [digest for digest, thorough in executed if not thorough]
    assert len(first) == 2
    executed.clear()
    with monkeypatch.context() as patched:
        dying(patched, Scratch, "keep_probe", 1)
        with pytest.raises(Killed):
            _elsewhere(STAGES)
    executed.clear()
    resumed = _elsewhere(STAGES)
    assert [digest for digest, thorough in executed if not thorough] == first[1:]
    assert digests(resumed) == digests(whole)
    assert [p.outcome.value for p in resumed[3].probes] == [p.outcome.value for p in whole[3].probes]
    assert resumed[3].cost.evaluations == whole[3].cost.evaluations


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 torn", b"\x80\x04cposix\nsystem\n(S'touch hacked'\ntR."]
)
def test_a_broken_scratch_file_is_removed_and_the_work_done_again(tmp_path, caplog, content):
    for name in ("k.epoch.pt", "k.probe.npz"):
        (tmp_path / name).write_bytes(content)
    assert Checkpoint(tmp_path / "k.epoch.pt").load() is None
    assert Scratch(tmp_path).probe("k", qtrack.Recipe(), lambda: None) is None
    assert list(tmp_path.iterdir()) == []
    assert "it is done again" in caplog.text
    assert not Path("hacked").exists()


def test_a_full_disk_costs_no_work(tmp_path, monkeypatch, caplog):
    def full(state, file):
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left\nat ...")

    monkeypatch.setattr(torch, "save", full)
    Checkpoint(tmp_path / "k.epoch.pt").save({"seen": 1})
    assert list(tmp_path.iterdir()) == []
    assert "cannot be written: PytorchStreamWriter failed" in caplog.text


def test_what_nobody_came_back_for_is_removed(tmp_path):
    import os
    import time

    old, new = tmp_path / "a.epoch.pt", tmp_path / "b.epoch.pt"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - 40 * 86400))
    Scratch(tmp_path).tidy()
    assert list(tmp_path.iterdir()) == [new]


def test_references_are_tags_of_the_campaign(executed):
    run(["float", "ptq"])
    run(["float", "ptq"])
    client = MlflowClient(Ledger.open().uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    latest = client.search_runs([experiment], "tags.`qtrack.kind` = 'campaign'", max_results=1)[0]
    reference = json.loads(latest.data.tags["qtrack.refers.1"])
    assert reference["stage"] == "ptq"
    assert client.get_run(reference["run"]).info.status == "FINISHED"
