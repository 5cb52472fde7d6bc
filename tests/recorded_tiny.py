"""A campaign of the tiny task on record, and ways to change what goes into the next one."""

import json
from contextlib import contextmanager
from pathlib import Path

import tiny
import torch
import yaml
from click.testing import CliRunner

from qtrack import Ledger
from qtrack.cli import main

TASK = """\
import sys
sys.path.insert(0, {tests!r})
import tiny
import tiny_helper


class Mine(tiny.Tiny):
    pass
"""
PIPELINE = {
    "name": "tiny",
    "task": "tiny_task.py:Mine",
    "recipe": {"engine": "x86"},
    "stages": ["float", "ptq", {"qat": {"epochs": 1}}],
}


def write_task(folder):
    (folder / "tiny_task.py").write_text(TASK.format(tests=str(Path(__file__).parent)))
    (folder / "tiny_helper.py").write_text("FACTOR = 1\n")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(PIPELINE))


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def artifact(stage, path):
    (strategy,) = Ledger.open().strategies([stage])
    return Path("mlartifacts/tiny") / strategy.run_id / "artifacts" / path


@contextmanager
def edited(path, change):
    """A recorded file with its data changed in place, for a while."""
    kept = path.read_bytes()
    data = json.loads(kept)
    change(data)
    path.write_text(json.dumps(data))
    try:
        yield
    finally:
        path.write_bytes(kept)


# changes: each of one ingredient


def one_ulp(patch):
    def model(self, made=tiny.Tiny.model):
        net = made(self)
        with torch.no_grad():
            weight = net.head.weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
        return net

    patch.setattr(tiny.Tiny, "model", model)


def batches_with(change, split="calibration"):
    def plant(patch):
        made = getattr(tiny.Tiny, split)

        def changed(self):
            parts = list(zip(*made(self), strict=True))
            images, labels = (torch.cat(part).clone() for part in parts)
            images, labels, size = change(images, labels)
            return list(zip(images.split(size), labels.split(size), strict=True))

        patch.setattr(tiny.Tiny, split, changed)

    return plant


def replaced(images, labels):
    images[5] = -images[5]
    return images, labels, 16


def reordered(images, labels):
    return images.flip(0), labels.flip(0), 16


def rebatched(images, labels):
    return images, labels, 8


def relabelled(images, labels):
    labels[0] = 3 - labels[0]
    return images, labels, 16


def deterministic(patch):
    patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)


def capped(patch):
    patch.setenv("ATEN_CPU_CAPABILITY", "avx2")


PLANTED = {
    "a float weight, by one ulp": (one_ulp, "float_weights"),
    "a calibration sample": (batches_with(replaced), "data.calibration.content"),
    "the order of samples": (batches_with(reordered), "data.calibration.order"),
    "the batch size": (batches_with(rebatched), "data.calibration.batches"),
    "a label": (batches_with(relabelled, "validation"), "data.validation.labels"),
    "a validation sample": (batches_with(replaced, "validation"), "data.validation.content"),
    "a training sample": (batches_with(replaced, "training"), "data.training.content"),
    "determinism": (deterministic, "determinism"),
    "a cap of the instruction set": (capped, "cpu.variables"),
}
