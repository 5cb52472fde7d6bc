"""Recorded models as .pt2 files: what they hold, and how far they are from the record."""

from pathlib import Path

import pytest
import tiny
import torch
from recorded import command

import qtrack
from qtrack.api import export_model
from qtrack.engine import execute
from qtrack.engine.exporting import export_model as written
from qtrack.errors import BackendError, InputError
from qtrack.ledger import models
from qtrack.recipe import Override, Recipe, Training, WeightOnly

pytest_plugins = ("recorded_store",)


@pytest.fixture
def folder(recorded_folder):
    return recorded_folder


IMAGES = tiny.samples(8, 4)[0]
PTQ = Recipe(engine="x86")


def read(path):
    return torch.export.load(path).module()


@pytest.mark.parametrize("stage", ["float", "weight_only", "float16"])
def test_a_model_without_kernels_is_exported_bit_for_bit(folder, tmp_path, stage):
    done = command("export", stage, "--model", tmp_path / "model.pt2")
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert "the recorded model's, bit for bit" in done.stderr
    model = qtrack.load(stage)
    for images in (IMAGES, IMAGES[:1]):
        assert torch.equal(read(tmp_path / "model.pt2")(images), model(images))


def test_integers_stay_as_small_as_they_were(folder, tmp_path):
    export_model("weight_only", tmp_path / "model.pt2")
    state = torch.export.load(tmp_path / "model.pt2").state_dict
    assert state["head.parametrizations.weight.original"].dtype == torch.int8


def test_of_a_static_model_the_reference_form_is_written_and_said_to_be_one(folder, tmp_path):
    done = command("export", "ptq", "--model", tmp_path / "model.pt2")
    assert done.exit_code == 0, done.output
    assert "recorded integers and scales, the arithmetic in float; no integer kernels" in done.stderr
    assert "differ from the recorded model's by at most" in done.stderr
    assert "100.0% of their predictions are equal" in done.stderr
    assert len(read(tmp_path / "model.pt2")(IMAGES[:1])) == 1


RECIPES = {
    "per channel": PTQ.with_weights(granularity="per_channel"),
    "fewer bits": PTQ.with_weights(bits=6).with_activations(bits=5),
    "reduced range": PTQ.with_activations(reduce_range=True),
    "a layer in float": PTQ.keeping_float("block.conv"),
    "a layer of another mode": PTQ.having(overrides=(Override(layer="head", scheme=WeightOnly()),)),
    "trained": PTQ.having(training=Training(epochs=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_reference_form_is_built_from_the_record_alone(tmp_path, name):
    task = tiny.Tiny()
    outcome = execute(task, RECIPES[name], thorough=False)
    path = tmp_path / "model.pt2"
    found = written(Forgetful(), RECIPES[name], outcome.model, path)
    images = torch.cat([images for images, _ in task.validation()])
    expected, actual = outcome.model(images), read(path)(images)
    step = getattr(outcome.model.head, "scale", 0.1)  # of the output, where it is quantized
    assert found.form == "reference"
    assert (actual - expected).abs().max() < 1.01 * step
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() > 0.99


class Forgetful(tiny.Tiny):
    """The same structure with other weights, and other data to calibrate with."""

    def model(self):
        torch.manual_seed(7)
        return tiny.TinyNet().eval()

    def calibration(self):
        return [(3 * images + 1, labels) for images, labels in super().calibration()]


class SelfTaught(tiny.Tiny):
    """Trains its model each time it is asked for it."""

    def model(self):
        net = super().model()
        images, labels = self.calibration()[0]
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        return net


def test_a_task_may_train_its_model_each_time(tmp_path):
    task = SelfTaught()
    outcome = execute(task, PTQ, thorough=False)
    assert models.save(task, outcome, tmp_path / "saved") == "saved"
    assert written(task, PTQ, outcome.model, tmp_path / "model.pt2").form == "reference"


def test_what_torch_cannot_export_is_one_line_and_leaves_nothing(folder, tmp_path):
    done = command("export", "dynamic", "--model", tmp_path / "model.pt2")
    assert done.exit_code == 3
    assert "packed weights, as layers in dynamic mode have them" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_static_model_with_a_dynamic_layer_is_refused_by_its_name(tmp_path):
    recipe = PTQ.having(overrides=(Override(layer="head", scheme="dynamic"),))
    model = execute(tiny.Tiny(), recipe, thorough=False).model
    with pytest.raises(BackendError, match="layers in dynamic mode: head"):
        written(tiny.Tiny(), recipe, model, tmp_path / "model.pt2")


def test_a_scale_that_the_record_does_not_tell_is_not_guessed(tmp_path):
    model = execute(tiny.Tiny(), PTQ.keeping_float("head"), thorough=False).model
    with pytest.raises(BackendError, match="does not tell the scale after flatten"):
        written(tiny.Tiny(), PTQ, model, tmp_path / "model.pt2")


def test_a_file_that_was_there_stays_where_the_export_fails(folder, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("precious")
    monkeypatch.setattr("qtrack.engine.exporting._equal", lambda *_: False)
    with pytest.raises(BackendError, match="gives other outputs"):
        export_model("float", path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "said"), [("model.pt", "must end in"), ("none/model.pt2", "No such file")])
def test_a_file_that_cannot_be_is_one_line(folder, tmp_path, name, said):
    with pytest.raises(InputError, match=said):
        export_model("float", tmp_path / name)


def test_a_batch_of_one_is_no_reason_for_a_fixed_size(tmp_path):
    class Single(tiny.Tiny):
        def calibration(self):
            return tiny.batches(4, 2, size=1)

    written(Single(), PTQ.with_mode("float"), tiny.Tiny().model(), tmp_path / "model.pt2")
    assert len(read(tmp_path / "model.pt2")(IMAGES)) == 8


def test_recipe_and_model_can_be_written_at_once(folder, tmp_path):
    done = command(
        "export", "float", "--model", tmp_path / "m.pt2", "--recipe-only", "-o", tmp_path / "r.yaml"
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in Path(tmp_path).iterdir()} == {"m.pt2", "r.yaml"}
