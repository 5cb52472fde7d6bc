"""Floats on a GPU: who goes there, who stays on the CPU, and what is said and recorded of it.

Most of it on a stand-in that refuses what a device refuses; what a real one gives is at the end.
"""

import json
import logging
import sys

import pytest
import tiny
import torch
import yaml
from mlflow import MlflowClient
from recorded_tiny import PIPELINE, command, write_task
from stand_in import NAME, stand_in
from tiny import Tiny, TinyNet
from torch import nn

import qtrack
from qtrack import Ledger
from qtrack.api import diff, reproduce
from qtrack.backends import load_backend
from qtrack.engine import execute, measure, quantize, training, using_device
from qtrack.engine.devices import CPU, chosen, device_of
from qtrack.errors import DataError, InputError, TaskError
from qtrack.ingredients import common_ingredients, execution_key
from qtrack.recipe import CorrectBias, Recipe, Training
from qtrack.report.health import machine
from qtrack.scratch import Checkpoint
from qtrack.sweep import read_sweep, run_sweep

STATIC = Recipe(engine="x86")
QAT = STATIC.having(training=Training(epochs=1))
RECIPES = {
    "fx": STATIC,
    "fx, trained": QAT,
    "eager": STATIC.having(backend="eager"),
    "eager, trained": QAT.having(backend="eager"),
    "pt2e": Recipe(backend="pt2e"),
    "pt2e, trained": Recipe(backend="pt2e", training=Training(epochs=1)),
    "dynamic": STATIC.with_mode("dynamic"),
}
FLOAT_KERNELS = "convolution", "addmm", "linear", "convolution_backward"
ANY_KERNELS = *FLOAT_KERNELS, "conv2d_relu", "linear_dynamic"
DEVICE = f"cuda ({NAME}, CUDA 12.8)"


class Small(Tiny):
    """Every operator on the stand-in takes a while."""

    def calibration(self):
        return tiny.batches(32, 2)

    def validation(self):
        return tiny.batches(48, 3)

    def test(self):
        return tiny.batches(32, 4)

    def training(self):
        return list(super().training())[:2]


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    with stand_in(monkeypatch) as device:
        yield device


def on_the(device, task, recipe, **named):
    with using_device("cuda"):
        return execute(task, recipe, monitor=device, **named)


# what runs where


SLOW = "fx, trained", "eager, trained", "pt2e, trained"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RECIPES]
)
def test_floats_go_to_the_device_and_integers_never_do(name, device):
    recipe = RECIPES[name]
    here = execute(Small(), recipe)
    device.ran.clear()
    there = on_the(device, Small(), recipe)
    assert device.places("calibrate", *FLOAT_KERNELS) == {"cuda"}
    if recipe.training:
        assert device.places("train, epoch 1 of 1", *FLOAT_KERNELS) == {"cuda"}
    for phase in ("validation", "test", "compare layers"):
        assert device.places(phase, *ANY_KERNELS) == {"cpu"}
    assert there.digests == here.digests
    assert there.layers == here.layers
    assert there.warnings == here.warnings
    assert not any(map(device.holds, there.model.state_dict().values()) if "pt2e" in name else ())


def test_the_float_model_is_evaluated_there_and_timed_here(device):
    there = on_the(device, Small(), STATIC.with_mode("float"))
    for phase in ("validation", "test"):
        assert device.places(phase, *ANY_KERNELS) == {"cuda"}
    assert device.places("", *ANY_KERNELS) == {"cpu"}
    assert device_of(there.model) == CPU
    assert there.digests == execute(Small(), STATIC.with_mode("float")).digests


def test_the_cpu_sees_no_device(device):
    execute(Small(), QAT, monitor=device)
    assert {place for ran in device.ran.values() for place, _ in ran} == {"cpu"}


@pytest.mark.slow
def test_a_search_has_its_parts_calibrated_there_and_back_again(device):
    with using_device("cuda"):
        parts = quantize(Small(), QAT, device)
    assert device.places("calibrate", *FLOAT_KERNELS) == {"cuda"}
    assert device_of(parts.prepared.model) == CPU


class Corpus(Small):
    def evaluate(self, model, split):
        return {"norm": model(self.validation()[0][0]).norm().item()}


def test_the_tasks_own_evaluation_has_the_model_on_the_cpu(device):
    assert on_the(device, Corpus(), STATIC.with_mode("float")).validation.extra["norm"] > 0


class Positions(TinyNet):
    def forward(self, x):
        return super().forward(x + torch.arange(x.shape[-1], device=x.device))


class Positioned(Small):
    def model(self):
        net = Positions()
        net.load_state_dict(tiny.trained())
        return net.eval()


@pytest.mark.slow
def test_a_graph_that_names_a_device_stays_here_and_says_so_once(device):
    recipe = RECIPES["pt2e"].having(transforms=(CorrectBias(),))
    found = on_the(device, Positioned(), recipe)
    assert [line for line in found.warnings if "cuda" in line] == [
        "floats were computed on the CPU, not on cuda: the model's graph names a device"
    ]
    assert {place for ran in device.ran.values() for place, _ in ran} == {"cpu"}
    assert found.digests == execute(Positioned(), recipe).digests


def test_one_that_asks_its_input_goes_there(device):
    found = on_the(device, Positioned(), RECIPES["eager"])
    assert device.places("calibrate", *FLOAT_KERNELS) == {"cuda"}
    assert not [line for line in found.warnings if "cuda" in line]


def test_batches_go_where_the_models_are_that_are_compared(device):
    backend, inputs = load_backend("fx"), [images for images, _ in Small().calibration()]
    prepared = backend.prepare(Small().model(), QAT, (inputs[0],))
    prepared.model.eval()
    for batch in inputs:
        prepared.model(batch)
    backend.observe(prepared, False)
    here = qtrack.compare_models(Small().model(), prepared.model, inputs)
    device.ran.clear()
    there = qtrack.compare_models(Small().model().to("cuda"), prepared.model.to("cuda"), inputs)
    assert device.places("", *FLOAT_KERNELS, "fake_quantize_per_tensor_affine") == {"cuda"}
    assert there.equals(here)
    assert there["sqnr_db"].between(10, 60).all()


# the stand-in itself


def test_the_stand_in_keeps_the_sides_apart(device):
    there, here = torch.ones(3).to("cuda"), torch.ones(3)
    assert (str(there.device), str((there * 2)[1:].device), str(here.device)) == ("cuda:0", "cuda:0", "cpu")
    assert torch.equal(there.cpu(), here)
    for mix in (lambda: there + here, lambda: nn.Linear(3, 3)(there), lambda: torch.equal(there, here)):
        with pytest.raises(RuntimeError, match="on the same device"):
            mix()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


# what does not do


class Weighted(Small):
    def loss(self, output, batch):
        return nn.functional.cross_entropy(output, batch[1], torch.ones(tiny.CLASSES))


class Biased(Small):
    def score(self, output, batch):
        return super().score(output + torch.zeros(tiny.CLASSES), batch)


@pytest.mark.parametrize(
    ("task", "function", "recipe"),
    [(Weighted(), "loss", QAT), (Biased(), "score", STATIC.with_mode("float"))],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_task_that_mixes_devices_is_told_what_to_move(task, function, recipe, device):
    said = rf"{type(task).__name__}.{function}\(\) mixes devices: .* must go as well: .to\(output.device\)"
    with pytest.raises(TaskError, match=said):
        on_the(device, task, recipe)
    execute(task, recipe)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_tasks_own_faults_stay_its_own(where, device, monkeypatch):
    def fail(self, output, batch):
        raise RuntimeError("of another kind")

    monkeypatch.setattr(Small, "loss", fail)
    with using_device(where), pytest.raises(RuntimeError, match=r"^of another kind$"):
        execute(Small(), QAT)


def test_a_device_out_of_memory_is_one_line_and_the_model_is_back(device, monkeypatch):
    models, real = [], Small.model

    def full(self, output, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAnd more")

    monkeypatch.setattr(Small, "score", full)
    monkeypatch.setattr(Small, "model", lambda self: models.append(real(self)) or models[-1])
    with pytest.raises(DataError) as raised:
        on_the(device, Small(), STATIC.with_mode("float"))
    assert str(raised.value) == (
        "cuda is out of memory: smaller batches need less (CUDA out of memory. Tried to allocate 2 GiB.)"
    )
    assert device_of(models[-1]) == CPU


def test_a_device_that_is_not_there_is_told_from_those_that_are(device):
    said = rf"device cuda:3: there is none here.*; there is cpu, cuda:0 \({NAME}\)"
    with pytest.raises(InputError, match=said), using_device("cuda:3"):
        pass
    with using_device("cuda:0"):
        assert str(chosen()) == "cuda:0"
    assert chosen() == CPU


# training goes on


class Interrupted(Exception):
    pass


@pytest.mark.slow
def test_training_goes_on_there_bit_for_bit(device, tmp_path, monkeypatch):
    class Dropping(Small):
        def model(self):
            net = super().model()
            net.pool = nn.Sequential(net.pool, nn.Dropout(0.3))
            return net

    twice = QAT.having(training=Training(epochs=2))
    whole = on_the(device, Dropping(), twice)
    checkpoint, real = Checkpoint(tmp_path / "epoch.pt"), training._begin_epoch

    def stop(backend, prepared, spec, epoch):
        if epoch == 1:
            raise Interrupted
        real(backend, prepared, spec, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_begin_epoch", stop)
        with pytest.raises(Interrupted):
            on_the(device, Dropping(), twice, checkpoint=checkpoint)
    assert on_the(device, Dropping(), twice, checkpoint=checkpoint).digests == whole.digests
    assert [state.tolist() for state in device.generators] == [checkpoint.load()["device_rng"].tolist()]


# what is recorded


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_task(tmp_path)
    monkeypatch.setitem(sys.modules, "tiny", tiny)
    return tmp_path


def tags():
    client = MlflowClient(Ledger.open().uri)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return [(run.data.tags["qtrack.kind"], run.data.tags.get("qtrack.device")) for run in runs]


def test_the_key_of_the_cpu_is_as_it_was(folder, device):
    here = common_ingredients(Small(), {})
    with using_device("cuda"):
        there = common_ingredients(Small(), {})
    assert "device" not in here
    assert there == here | {"device": DEVICE}
    assert execution_key(there) not in (None, execution_key(here))


@pytest.mark.slow
def test_runs_say_where_and_reproduce_there_or_say_that_it_drifted(folder, monkeypatch, caplog):
    with stand_in(monkeypatch) as device:
        done = command("run", "tiny.yaml", "--device", "cuda", "--set", "stages=[float, ptq]")
        assert done.exit_code == 0, done.output
        assert sorted(tags()) == [("campaign", "cuda"), ("stage", "cuda"), ("stage", "cuda")]
        found = reproduce("ptq")
        assert (found.verdict, found.drifted) == ("bit-identical", ())
        assert ("reproduction", "cuda") in tags()
        qtrack.diagnose("ptq", monitor=device)
        assert device.places("quantize: calibrate", *FLOAT_KERNELS) == {"cuda"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    caplog.clear()
    with caplog.at_level(logging.INFO, "qtrack"):
        found = reproduce("ptq")
    assert [(drift.name, drift.was, drift.now) for drift in found.drifted] == [("device", DEVICE, "cpu")]
    assert "what was made on cuda is executed on the CPU: there is no such device here" in caplog.text
    assert ("reproduction", None) in tags()


@pytest.mark.slow
def test_what_was_made_there_does_not_stand_for_what_is_made_here(folder, monkeypatch):
    only_ptq = yaml.safe_dump(PIPELINE | {"stages": ["float", "ptq"]})
    (folder / "tiny.yaml").write_text(only_ptq)
    with stand_in(monkeypatch):
        (folder / "there.yaml").write_text(only_ptq + "device: cuda\n")
        first, second = qtrack.run("there.yaml"), qtrack.run("there.yaml")
    third = qtrack.run("tiny.yaml")
    executed = [[result.known is None for result in results] for results in (first, second, third)]
    assert executed == [[True, True], [False, False], [True, True]]
    runs = second[1].known.run_id, Ledger.open().strategies(["ptq"])[0].run_id
    for one, other, expected in ((*runs, (DEVICE, "cpu")), (*runs[::-1], ("cpu", DEVICE))):
        assert [(d.name, d.was, d.now) for d in diff(one, other).drifts] == [("device", *expected)]


def test_a_device_that_is_not_here_is_one_line_before_anything_runs(folder):
    done = command("run", "tiny.yaml", "--device", "cuda:1")
    assert done.exit_code == 2
    assert done.stderr.startswith("qtrack: device cuda:1: there is none here")
    assert "there is cpu" in done.stderr
    assert not (folder / "mlartifacts").exists()
    done = command("run", "tiny.yaml", "--device", "gpu")
    assert done.exit_code == 2
    assert done.stderr == "qtrack: tiny.yaml: device: 'gpu' is not one of cpu, cuda, cuda:N\n"


def test_a_job_of_a_sweep_asks_for_a_gpu_where_its_pipeline_does(folder):
    (folder / "there.yaml").write_text((folder / "tiny.yaml").read_text() + "device: cuda\n")
    (folder / "sweep.yaml").write_text("{name: s, grid: {pipelines: [tiny.yaml, there.yaml]}}")
    asked = []

    class Refusing:
        slots = 1

        def submit(self, job):
            from concurrent.futures import Future

            asked.append(job.gpus)
            done = Future()
            done.set_exception(ValueError("not here"))
            return done

        def close(self):
            pass

    run_sweep(read_sweep(folder / "sweep.yaml"), Ledger.open(), Refusing())
    assert asked == [0, 1]


def test_the_doctor_lists_devices(device, monkeypatch):
    def row():
        return next(check for check in machine() if check.what == "cuda")

    assert row()[1:] == ("ok", f"cuda:0 {NAME}", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert row().state == "absent"
    assert not row().fails


# on a real one

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_gives_what_the_cpu_gives(name):
    recipe = RECIPES[name]
    with using_device("cuda"):
        there = execute(Tiny(), recipe)
    here = execute(Tiny(), recipe)
    assert there.value == pytest.approx(here.value, abs=0.02)
    assert [row.dtype for row in there.layers] == [row.dtype for row in here.layers]
    assert there.warnings == here.warnings
    assert device_of(there.model) == CPU


@pytest.mark.gpu
@gpu
def test_a_campaign_on_a_gpu_is_recorded_and_reproduced(folder):
    done = command("run", "tiny.yaml", "--device", "cuda", "--json")
    assert done.exit_code == 0, done.output
    assert {row["stage"] for row in json.loads(done.stdout)} == {"float", "ptq", "qat"}
    assert {where for _, where in tags()} == {"cuda"}
    assert reproduce("ptq").holds
