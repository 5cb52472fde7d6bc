"""The command line's frame: help, errors, exit codes."""

import os
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from qtrack.cli import COMMANDS, main

HEAVY = {"torch", "mlflow", "pandas", "numpy", "pydantic", "rich", "matplotlib", "yaml"}
FINE = "name: p\ntask: mine.py:Mine\nstages: [float]\n"


def qtrack(*arguments):
    return CliRunner().invoke(main, arguments)


def raising(error):
    def stand_in(*_, **__):
        raise error

    return stand_in


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "qtrack", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported.isdisjoint(HEAVY)
    assert all(name in done.stdout for name in COMMANDS)


def test_help_is_quick():
    def seconds(*arguments):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds("-m", "qtrack", "--help") < 4 * seconds("-c", "import click")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(name):
    done = qtrack(name, "--help")
    assert done.exit_code == 0
    assert f"qtrack {name}" in done.stdout.partition("Example")[2]


def test_an_unknown_command_is_wrong_usage_and_a_near_one_is_suggested():
    done = qtrack("comapre")
    assert done.exit_code == 2
    assert "compare" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "p.yaml", "--nope"], ["layers"], ["ui", "--port", "0"]]
)
def test_wrong_usage_exits_with_2(arguments):
    assert qtrack(*arguments).exit_code == 2


def test_a_missing_file_is_one_line():
    done = qtrack("run", "missing.yaml")
    assert done.exit_code == 2
    assert done.stderr == "qtrack: missing.yaml: No such file or directory\n"


def test_every_fault_of_a_file_has_its_line(alone):
    (alone / "p.yaml").write_text("name: p\ntask: mine.py:Mine\nstages: [float, nope]\nuntil: never\n")
    done = qtrack("run", "p.yaml")
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("qtrack: p.yaml: ") for line in lines)
    assert "Traceback" not in done.stderr


def test_a_setting_without_a_value_is_wrong_input():
    done = qtrack("run", "p.yaml", "--set", "target.max_drop")
    assert done.exit_code == 2
    assert "write it as key=value" in done.stderr


def test_a_store_that_cannot_be_used_is_found_before_any_work(alone):
    (alone / "mine.py").write_text("import tiny\n\nclass Mine(tiny.Tiny):\n    pass\n")
    (alone / "p.yaml").write_text(FINE)
    done = qtrack("run", "p.yaml", "--tracking-uri", "sqlite:////proc/none/mlflow.db")
    assert done.exit_code == 3
    assert done.stderr.startswith("qtrack: tracking store sqlite:////proc/none/mlflow.db: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_unforeseen_exception_is_one_line_and_exits_with_3(monkeypatch):
    monkeypatch.setattr("qtrack.pipeline.read_plan", raising(ZeroDivisionError("division\nby zero")))
    done = qtrack("run", "p.yaml")
    assert done.exit_code == 3
    assert done.stderr == (
        "qtrack: ZeroDivisionError: division by zero "
        "(this is a fault in qtrack or in the task; --debug shows the traceback)\n"
    )


@pytest.mark.parametrize("arguments", [["--debug", "run", "p.yaml"], ["run", "p.yaml", "--debug"]])
def test_debug_shows_the_traceback(arguments, monkeypatch):
    monkeypatch.setattr("qtrack.pipeline.read_plan", raising(ZeroDivisionError("by zero")))
    done = qtrack(*arguments)
    assert done.exit_code == 3
    assert "Traceback" in done.stderr
    assert "stand_in" in done.stderr


def test_secrets_in_errors_are_masked(monkeypatch):
    monkeypatch.setattr("qtrack.pipeline.read_plan", raising(OSError("http://me:hunter2@host failed")))
    done = qtrack("--debug", "run", "p.yaml")
    assert "hunter2" not in done.stderr
    assert "host failed" in done.stderr


def test_an_interrupt_is_one_line(monkeypatch):
    monkeypatch.setattr("qtrack.pipeline.read_plan", raising(KeyboardInterrupt()))
    done = qtrack("run", "p.yaml")
    assert done.exit_code == 130
    assert done.stderr == "qtrack: interrupted\n"


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "qtrack", "doctor", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
