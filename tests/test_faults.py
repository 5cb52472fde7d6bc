"""Nothing is lost and nothing is doubled: the benchmark of faults, with a tenth of its counts."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def faults():
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.append(folder)
    yield import_module("faults")
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def lab(faults, tmp_path_factory):
    return faults.Lab(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("counts", [(20, 0, 0), (0, 5, 0), (0, 0, 2)], ids=["kills", "losses", "disks"])
def test_nothing_is_lost_and_nothing_doubled(faults, lab, counts):
    found = faults.conduct(lab, faults.trials(*counts, seed=1))
    assert {one.trial.name: one.faults for one in found if one.faults} == {}
    assert all(one.completed and one.verdict.once and one.verdict.equal for one in found)
    assert len(found) == sum(counts)


def test_what_is_lost_is_seen(faults, lab):
    folder = lab.undisturbed
    store = faults.Store(folder / "mlflow.db")
    known = faults.expected(store)
    run = known["qat"]
    (run.files / "layers.json").write_text("{")
    run.points["train/loss", 9] += 1
    found = faults.audit(store, folder, known)
    assert found.lost == 1
    assert any("layers.json of qat" in fault for fault in found.faults)
