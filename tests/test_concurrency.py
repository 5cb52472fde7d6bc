"""Several processes that record into one store at once: nothing lost, nothing mixed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from servers import mlflow_server, postgres

from qtrack.ledger import Ledger
from qtrack.ledger.client_source import ClientSource
from qtrack.ledger.rows import Query

pytestmark = pytest.mark.slow

PROCESSES = 4
TASK = "import sys\nsys.path.insert(0, {tests!r})\nimport tiny\n\n\nclass Mine(tiny.Tiny):\n    pass\n"
STAGES = ["float", "ptq", "per_channel", {"qat": {"epochs": 2}}]
NAMES = ["float", "ptq", "per_channel", "qat"]


@contextmanager
def sqlite(folder):
    yield f"sqlite:///{folder}/mlflow.db"


@pytest.mark.parametrize("store", [sqlite, mlflow_server, postgres])
def test_four_pipelines_at_once_are_recorded_each_whole(store, tmp_path):
    with store(tmp_path) as uri:
        started = [begin(tmp_path / f"process {number}", number, uri) for number in range(PROCESSES)]
        for process in started:
            _out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
        look(Ledger.open(uri))


def begin(folder, number, uri):
    """Each with a seed of its own, so that none can refer to another's stages."""
    folder.mkdir()
    (folder / "mine.py").write_text(TASK.format(tests=str(Path(__file__).parent)))
    fields = {"name": f"pipeline {number}", "task": "mine.py:Mine", "stages": STAGES, "threads": 1}
    fields["recipe"] = {"engine": "x86", "seed": 100 + number}
    (folder / "mine.yaml").write_text(yaml.safe_dump(fields))
    return subprocess.Popen(
        [sys.executable, "-m", "qtrack", "run", "mine.yaml", "--tracking-uri", uri],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def look(ledger):
    found = ledger.finished("tiny")
    assert Counter(row.stage for row in found) == dict.fromkeys(NAMES, PROCESSES)
    for number in range(PROCESSES):
        own = [row for row in found if row.pipeline == f"pipeline {number}"]
        assert len({row.campaign for row in own}) == 1
        rows = ledger.strategies(campaign=own[0].campaign)
        assert [row.stage for row in rows] == NAMES
        assert all(row.status == "FINISHED" and row.origin is None for row in rows)
        for row in rows:
            recipe = ledger.recipe(row.run_id)
            assert (recipe.digest, recipe.seed) == (row.recipe_digest, 100 + number)
            assert len(ledger.layers(row.run_id)) == (0 if row.stage == "float" else 5)
        losses = ledger._reader.source.curves([rows[-1].run_id], ["train/loss"])
        assert [point.step for point in losses[rows[-1].run_id, "train/loss"]] == [1, 2]
    query = Query(list(ledger._reader.experiments()))
    read = [
        sorted(map(repr, one.runs(query))) for one in (ledger._reader.source, ClientSource(ledger._store))
    ]
    assert read[0] == read[1]
    assert ledger.sync() == []
    assert not ledger.repair()
