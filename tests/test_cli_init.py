import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qtrack.cli import main
from qtrack.pipeline import read_plan


def init(*arguments):
    return CliRunner().invoke(main, ["init", *arguments])


def test_init_writes_a_task_and_a_pipeline():
    done = init("my_digits")
    assert done.exit_code == 0
    assert done.stdout.split() == ["my_digits.py", "my_digits.yaml"]
    plan = read_plan(Path("my_digits.yaml"))
    assert list(plan.stages) == ["float", "ptq", "per_channel", "fallback"]
    assert plan.task.name == "my_digits"
    assert plan.task.offers("training")


def test_the_task_can_be_read_at_one_sight():
    init("digits_task")
    lines = [line for line in Path("digits_task.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 45
    assert max(map(len, lines)) <= 110


def test_init_overwrites_nothing_unless_it_is_told_to(alone):
    (alone / "mine.yaml").write_text("precious")
    done = init("mine")
    assert done.exit_code == 2
    assert "mine.yaml" in done.stderr
    assert not (alone / "mine.py").exists()
    assert (alone / "mine.yaml").read_text() == "precious"
    assert init("mine", "--force").exit_code == 0
    assert (alone / "mine.yaml").read_text() != "precious"


@pytest.mark.parametrize("name", ["3d", "a-b", "class", "../x", ""])
def test_the_name_must_be_one_of_a_module(name, alone):
    assert init(name).exit_code == 2
    assert list(alone.iterdir()) == []


@pytest.mark.slow
def test_what_init_writes_runs_as_it_is():
    init("my_digits")
    done = subprocess.run(
        [sys.executable, "-m", "qtrack", "run", "my_digits.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "per_channel" in done.stdout
    assert "Warning" not in done.stderr
