"""What others may put into a store, a file or a name: refused in one line, or shown as what it is."""

import io
import json
import os
import pickle
import re
import time
import warnings
import zipfile
from contextlib import contextmanager

import mlflow
import pytest
import tiny
import torch
import yaml
from ledger_made import Lines, outcome, record, result, rows, setting
from mlflow.entities import FileInfo
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from recorded import artifact, command, holding, run_id
from report_samples import LAYERS, row

import qtrack
from qtrack import Ledger
from qtrack.cli import render
from qtrack.errors import PipelineError, RecipeError, StoreError, TaskError
from qtrack.ledger import models
from qtrack.recipe import recipe_from_yaml
from qtrack.report.layer_figures import layers_figure
from qtrack.report.page import FORMATS
from qtrack.report.tables import layers
from qtrack.task import load_recorded_task

pytest_plugins = ("recorded_store", "ledger_store")


@pytest.fixture
def folder(recorded_folder):
    return recorded_folder


pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # MLflow's own, at its import

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202e"
QUICK_S = 60.0  # on the slowest machine; a bomb that goes off takes hours


@contextmanager
def quickly():
    began = time.perf_counter()
    yield
    assert time.perf_counter() - began < QUICK_S


def one_line(done, code):
    """The command failed so, and said why in one line that a person can read."""
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stderr) < 1000
    assert "fault in qtrack" not in done.stderr
    return done.stderr


# code where tensors should be


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(mark):
    return pickle.dumps(Bomb(str(mark)))


def in_an_archive(mark):
    """As torch.save would write it."""
    data = io.BytesIO()
    torch.save({"stem.weight": Bomb(str(mark))}, data)
    return data.getvalue()


def torchscript(mark):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), data)
    return data.getvalue()


def exported(mark):
    data = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(2, 2),)), data)
    return data.getvalue()


def archive_of_nothing(mark):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("../../evil", "evil")
    return data.getvalue()


PLANTED = [pickled, in_an_archive, torchscript, exported, archive_of_nothing]


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path):
    pickle.loads(pickled(tmp_path / "mark"))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("plant", PLANTED)
def test_a_state_dict_that_is_something_else_is_refused_and_does_not_run(folder, tmp_path, plant):
    mark, run = tmp_path / "mark", run_id("ptq")
    with holding(artifact("ptq", "model/state_dict.pt"), plant(mark)):
        with pytest.raises(StoreError, match="the saved model is corrupt") as raised:
            qtrack.load("ptq")
        with pytest.raises(StoreError, match="the saved model is corrupt"):
            mlflow.pyfunc.load_model(f"runs:/{run}/model")
    assert "\n" not in str(raised.value)
    assert not mark.exists()


@pytest.mark.parametrize("plant", PLANTED)
def test_an_example_that_is_something_else_is_refused_and_does_not_run(folder, tmp_path, plant):
    mark, run = tmp_path / "mark", run_id("ptq")
    with holding(artifact("ptq", "model/example.pt"), plant(mark)):
        qtrack.load("ptq")  # reads no example
        with pytest.raises(StoreError, match="the saved model is corrupt"):
            mlflow.pyfunc.load_model(f"runs:/{run}/model")
    assert not mark.exists()


def test_an_example_of_no_inputs_is_refused(folder):
    data = io.BytesIO()
    torch.save(torch.ones(2), data)
    with (
        holding(artifact("ptq", "model/example.pt"), data.getvalue()),
        pytest.raises(StoreError, match="holds no inputs"),
    ):
        mlflow.pyfunc.load_model(f"runs:/{run_id('ptq')}/model")


# code that a record names


@pytest.mark.parametrize("source", ["{}/evil.py", "../evil.py", "sub/../../evil.py"])
def test_a_record_chooses_no_code_outside_of_the_folder(tmp_path, monkeypatch, source):
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(TaskError, match="recorded outside of this folder"):
        load_recorded_task(f"{source.format(tmp_path)}:Task")


def test_a_command_says_so_in_one_line(folder):
    (resolved,) = folder.glob("mlartifacts/tiny/*/artifacts/pipeline_resolved.yaml")
    with holding(resolved, resolved.read_text().replace("recorded_task.py", "/tmp/evil.py")):
        assert "recorded outside of this folder" in one_line(command("reproduce", "ptq"), 2)


# paths


@pytest.mark.parametrize("path", ["model/../../outside", "../outside", "/outside", "model/%2e%2e/outside"])
def test_a_store_that_lists_paths_outside_writes_nothing_there(folder, tmp_path, monkeypatch, path):
    real = LocalArtifactRepository.list_artifacts
    written = []

    def listing(self, listed=None):
        return [*real(self, listed), FileInfo(path, False, 3)] if listed == "model" else real(self, listed)

    def download(self, remote_file_path, local_path):
        written.append(os.path.realpath(local_path))
        with open(local_path, "w") as file:
            file.write("evil")

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(LocalArtifactRepository, "list_artifacts", listing)
    monkeypatch.setattr(LocalArtifactRepository, "_download_file", download)
    with pytest.raises(StoreError) as raised:
        qtrack.load("ptq")
    assert "\n" not in str(raised.value)
    assert [path for path in written if not path.startswith(str(tmp_path / "temporary"))] == []


def test_a_table_that_the_run_names_elsewhere_is_not_read(ledger, client, tmp_path):
    record(ledger)
    run = ledger.strategies(["ptq"])[0].run_id
    client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([{"path": "../../../x", "type": "table"}]))
    assert len(ledger.layers(run)) == 4


# names


def hostile_campaign(ledger, name):
    made = outcome(layers=(rows(1)[0].__class__(0, f"block.{name}", name, "int8", 100, 1000, 30.0, 40.0),))
    stages = [{"float": {"name": f"a{name}"}}]
    return record(ledger, setting(stages=stages), {f"a{name}": result(f"a{name}", 0, made)})


def test_control_characters_do_not_reach_the_terminal(ledger):
    hostile_campaign(ledger, ESCAPES)
    run = ledger.strategies()[0].run_id
    said = [
        command("compare"),
        command("layers", run),
        command("layers", run, run),
        command("layers", ESCAPES),
        command("export", run),
        command("compare", run, "--json"),
        command("layers", run, "--json"),
    ]
    for done in said:
        assert set(done.output) & set(ESCAPES) == set("]0;owned[2J31m") & set(done.output), done.output
    assert "\N{REPLACEMENT CHARACTER}" in said[0].stdout


def test_a_stage_of_two_lines_adds_none_to_an_exported_pipeline(ledger):
    hostile_campaign(ledger, "\nrecipe: {backend: evil}\n#")
    run = ledger.strategies()[0].run_id
    text = command("export", run).stdout
    assert text.startswith("# a")
    assert yaml.safe_load(text)["recipe"]["backend"] == "fx"


def test_log_messages_are_shown_without_control_characters(capsys):
    import logging

    from rich.console import Console

    from qtrack.cli.progress import monitor

    shown = io.StringIO()
    with monitor(Console(file=shown)) as live, live.phase(f"ptq{ESCAPES}: calibrate", 3):
        logging.getLogger("qtrack").warning("layer %s", ESCAPES)
        live.report(f"loss{ESCAPES}", 0.5, 1)
    assert "layer" in shown.getvalue()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown.getvalue())


def test_an_error_is_shown_without_control_characters():
    assert "\x1b" not in command("run", f"{ESCAPES}.yaml").output
    assert "\x1b" not in command("--debug", "run", f"{ESCAPES}.yaml").output


@pytest.mark.parametrize("ending", [".html", ".svg"])
def test_a_drawing_holds_names_as_text(ending):
    name = f'<script>alert("x")</script>--><b>{ESCAPES}$\\frac$'
    data = [vars(row(0, name, sqnr_db=1.0, own_sqnr_db=1.0))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font has not
        text = FORMATS[ending](layers_figure("ptq", data), name, layers(data)).decode()
    assert "<script" not in text
    assert "<b>" not in text
    assert not {"\x1b", "\x07", "\x08", "\x9b", "\u202e"} & set(text)


def test_markup_in_a_note_is_text(ledger, client):
    hostile_campaign(ledger, "`\n\n<script>alert(1)</script>")
    run = ledger.strategies()[0].run_id
    note = client.get_run(run).data.tags["mlflow.note.content"]
    assert "<script" in note
    assert "<" not in re.sub(r"`[^`\n]*`", "", note)


def test_a_terminal_that_cannot_write_them_is_no_error(capsys, monkeypatch):
    monkeypatch.setattr(render, "_writable", lambda text: text.isascii())
    render.show(layers([vars(row(0, f"a{ESCAPES}", sqnr_db=1.0, own_sqnr_db=1.0)), vars(LAYERS[1])]))
    assert capsys.readouterr().out.isascii()


# YAML

PIPELINE = "name: p\ntask: mine.py:Mine\nstages: [float]\n"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{f'*a{i - 1}, ' * 9}]}}\n" for i in range(1, 12))
TEXTS = {
    "a tag that runs code": ('seed: !!python/object/apply:os.system ["touch ran"]\n', "could not determine"),
    "a tag that makes an object": ("seed: !!python/name:os.system\n", "could not determine"),
    "aliases of aliases": (LAUGHS, "aliases stand for more than 100,000 values"),
    "merges of merges": (MERGES, "aliases stand for more than 100,000 values"),
    "an alias of itself": ("seed: &a [*a]\n", "stands for what it is part of"),
    "brackets": ("seed: " + "[" * 10_000, "nested too deeply"),
    "closed brackets": ("seed: " + "[" * 10_000 + "]" * 10_000, "nested too deeply"),
    "braces": ('{"seed":' * 10_000, "nested too deeply"),
    "closed braces": ('{"seed":' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
    "a hundred braces": ('{"seed":' * 100 + "1" + "}" * 100, "nested too deeply"),
    "an integer of 5,000 digits": ("seed: " + "9" * 5000, "more than 300 digits"),
    "the same in JSON": ('{"seed": ' + "9" * 5000 + "}", "more than 300 digits"),
    "the same in hexadecimal": ("seed: 0x" + "f" * 5000, "more than 300 digits"),
    "the same as a key": ("? 0x" + "f" * 5000 + "\n: 1\n", "more than 300 digits"),
    "a date that is none": ("seed: 2001-99-99", "month must be in 1..12"),
    "a long string": ("seed: " + "x" * 10_000_000, "larger than 1,000,000 bytes"),
    "a long name": ("x" * 900_000 + ": 1", "unknown field|expected|mapping"),
    "a long choice": ("default: " + "x" * 900_000, "is not one of|unknown field"),
    "many faults": ("overrides: [" + "1, " * 20_000 + "]", "more faults|unknown field"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_recipe_of(tmp_path, what):
    text, said = TEXTS[what]
    with quickly(), pytest.raises(RecipeError, match=said) as raised:
        recipe_from_yaml(text)
    assert len(str(raised.value)) < 30_000
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", TEXTS)
def test_a_pipeline_with(tmp_path, what):
    text, said = TEXTS[what]
    (tmp_path / "p.yaml").write_text(text)
    with quickly():
        done = command("run", "p.yaml")
    assert done.exit_code == 2, done.output
    assert len(done.output) < 30_000
    assert "fault in qtrack" not in done.stderr
    assert not (tmp_path / "ran").exists()
    if what not in ("many faults", "a long name", "a long choice"):
        assert said in one_line(done, 2)


@pytest.mark.slow
@pytest.mark.parametrize("what", TEXTS)
def test_a_recorded_recipe_with(folder, what):
    text, _ = TEXTS[what]
    with holding(artifact("ptq", "recipe.yaml"), text), quickly():
        one_line(command("export", "ptq", "--recipe-only"), 3)
        one_line(command("reproduce", "ptq"), 3)
    with holding(artifact("ptq", "model/recipe.yaml"), text), quickly(), pytest.raises(StoreError) as raised:
        qtrack.load("ptq")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("what", [what for what, (text, _) in TEXTS.items() if text.startswith("seed: ")])
def test_a_setting_with(tmp_path, what):
    text, said = TEXTS[what]
    (tmp_path / "p.yaml").write_text(PIPELINE)
    with quickly():
        assert said in one_line(command("run", "p.yaml", "--set", f"recipe.{text.replace(': ', '=', 1)}"), 2)


NUMBERS = {
    "recipe.default.weight.bits": 10**400,
    "recipe.default.activation.bits": 10**200,
    "recipe.default.activation.observer": {"kind": "histogram", "bins": 1e308},
    "recipe.training": {"epochs": 10**30},
    "recipe.calibration.samples": 10**30,
    "recipe.seed": 10**200,
    "target.max_drop": 10**400,
    "target.confidence": 1e308,
    "threads": 10**30,
    "stages": ["float", {"qat": {"epochs": 10**30}}],
}


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_that_is_too_large_is_refused_before_anything_runs(tmp_path, field):
    (tmp_path / "mine.py").write_text("from ledger_made import Lines as Mine\n")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    with quickly():
        done = command("run", "p.yaml", "--set", f"{field}={json.dumps(NUMBERS[field])}")
    assert done.exit_code == 2, done.output
    assert len(done.output) < 2000
    assert "fault in qtrack" not in done.stderr
    assert not (tmp_path / "mlflow.db").exists()


def test_a_great_many_calibration_samples_are_all_of_them():
    recipe = recipe_from_yaml(f"calibration: {{samples: {10**18}}}")
    from qtrack.data import calibration_batches

    assert sum(len(images) for images, _ in calibration_batches(tiny.Tiny(), recipe.calibration, 0)) == 64


# recorded tables


def table(**changes):
    known = {"layer": "stem", "own_sqnr_db": 40.0, "index": 0, "type": "Conv2d", "dtype": "int8"}
    known |= {"params": 1, "macs": None, "sqnr_db": 40.0, "weight_sqnr_db": None, "saturation": None}
    known |= changes
    return json.dumps({"columns": list(known), "data": [list(known.values())]})


LAYER_FILES = {
    "no object": "[1, 2]",
    "no table": '{"columns": 3, "data": 4}',
    "rows that are none": '{"columns": ["layer"], "data": [5]}',
    "a row of another length": '{"columns": ["layer"], "data": [[]]}',
    "no columns": '{"data": [[]]}',
    "a number for a name": table(layer=5),
    "a text for a number": table(own_sqnr_db="40"),
    "a list for a number": table(own_sqnr_db=[40]),
    "an infinity": table(own_sqnr_db=float("inf")),
    "a giant": table(own_sqnr_db=-1e308),
    "a giant integer": table(params=10**400),
    "5,000 digits": table().replace("40.0", "9" * 5000, 1),
    "a name of ten megabytes": table(layer="x" * 10_000_000),
    "brackets": "[" * 10_000,
    "braces": '{"columns":' * 10_000,
    "bytes": b"\xff\xfe\x00",
    "nothing": "",
    "more than it may have": b" " * 64_000_001,
}


def test_the_table_is_one_until_it_is_changed(folder):
    with holding(artifact("ptq", "layers.json"), table()):
        assert command("layers", "ptq").exit_code == 0


@pytest.mark.parametrize("what", LAYER_FILES)
def test_a_layer_table_that_holds(folder, what):
    with holding(artifact("ptq", "layers.json"), LAYER_FILES[what]), quickly():
        for arguments in (("layers", "ptq"), ("layers", "ptq", "--json")):
            assert "layers.json of the run 'ptq'" in one_line(command(*arguments), 3)


def fingerprint(**changes):
    def text(kept):
        return json.dumps(json.loads(kept) | changes)

    return text


FINGERPRINTS = {
    "no object": lambda _: "[]",
    "a number": lambda _: "7",
    "nothing in it": lambda _: "{}",
    "brackets": lambda _: '{"a":' + "[" * 10_000,
    "5,000 digits": lambda _: '{"parameters": ' + "9" * 5000 + "}",
    "scales that are a list": fingerprint(scales=[1]),
    "scales that are texts": fingerprint(scales={"stem.scale": "x"}),
    "scales that are ragged": fingerprint(scales={"stem.scale": [[1], 2]}),
    "scales that are too large": fingerprint(scales={"stem.scale": 10**308 * 10}),
    "tensors that are a list": fingerprint(tensors=[1]),
    "ingredients that are a list": fingerprint(ingredients=[1]),
    "splits that are numbers": fingerprint(ingredients={}, splits={"test": 3}),
}


@pytest.mark.parametrize("what", FINGERPRINTS)
def test_a_fingerprint_that_holds(folder, what):
    path = artifact("ptq", "fingerprint.json")
    with holding(path, FINGERPRINTS[what](path.read_text())), quickly():
        one_line(command("reproduce", "ptq"), 3)


@pytest.mark.parametrize("threads", ["9" * 5000, "99999", "0", "-1", "²", []])
def test_a_number_of_threads_that_cannot_be_is_not_set(folder, threads):
    path = artifact("ptq", "fingerprint.json")
    changed = json.loads(path.read_text())
    changed["ingredients"]["threads"] = threads
    with holding(path, json.dumps(changed)):
        assert Ledger.open().recorded("ptq").threads is None


def test_parameters_of_another_type_match_none(tmp_path):
    task = Lines()
    assert models.save(task, outcome(), tmp_path / "model") == "saved"
    with pytest.raises(StoreError, match="has another digest"):
        models.load_checked(task, tmp_path / "model", {"recipe": 5, "parameters": []})


def test_many_faults_are_told_by_their_number():
    error = PipelineError([f"fault {i}: {'x' * 1000}" for i in range(1000)])
    assert len(error.faults) == 1000
    assert len(str(error)) < 30_000
    assert str(error).endswith("and 950 more faults")
