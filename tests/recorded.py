"""What tests of the recorded campaign share; those that change a file put it back."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import yaml
from click.testing import CliRunner

from qtrack import Ledger
from qtrack.cli import main

STAGES = ("float", "ptq", "dynamic", "weight_only", "float16")
TASK = "import sys\nsys.path.insert(0, {tests!r})\nimport tiny\n\n\nclass Mine(tiny.Tiny):\n    pass\n"


def write_pipeline(folder):
    (folder / "recorded_task.py").write_text(TASK.format(tests=str(Path(__file__).parent)))
    pipeline = {"name": "tiny", "task": "recorded_task.py:Mine", "recipe": {"engine": "x86"}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**pipeline, "stages": list(STAGES)}))


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_id(stage):
    return Ledger.open().strategies([stage])[0].run_id


def artifact(stage, path):
    """Where a file of a run lies."""
    return Path("mlartifacts/tiny") / run_id(stage) / "artifacts" / path


@contextmanager
def holding(path, content):
    """A recorded file with other content, for a while."""
    kept = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        yield
    finally:
        path.write_bytes(kept)
