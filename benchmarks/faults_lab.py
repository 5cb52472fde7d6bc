"""Where trials take place: a folder with a small pipeline, and qtrack's command line in forked processes.

torch and MLflow are imported once, here; a command that begins in a fork of this process is at work at once.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.figure import Figure

from qtrack.cli import main
from qtrack.report import figures

TESTS = Path(__file__).resolve().parents[1] / "tests"
PATIENCE_S = 120.0
"""A command that takes longer hangs."""
STEP_S = 0.002
STAGES = ("float", "ptq", "per_channel", "qat", "fallback", "dynamic")
TASK = "import tiny\n\n\nclass Small(tiny.Tiny):\n    name = {name!r}\n"
PIPELINE = """\
name: faults
task: small.py:Small
target: {max_drop: 0.0}          # out of reach for certain: the fallback tries all that it can
threads: 1
recipe: {engine: x86}
stages: [float, ptq, per_channel, qat: {epochs: 3}, fallback: {from: ptq}, dynamic]
"""
RUN = ("run", "small.yaml")


@dataclass(frozen=True)
class Ended:
    """A command that came to its end, by itself or not."""

    arguments: tuple[str, ...]
    code: int
    seconds: float
    said: str
    hung: bool = False

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL and not self.hung

    def complaints(self, *, may_fail: bool = False) -> Iterator[str]:
        """What is not as it should be; a failure that is expected is one line that does not blame qtrack."""
        name = " ".join(self.arguments[:1])
        if self.hung:
            yield f"{name} hung for {self.seconds:.0f} s"
        if "Traceback (most recent call last)" in self.said:
            yield f"{name} printed a traceback"
        if self.killed or self.hung or self.code == 0:
            return
        errors = [line for line in self.said.splitlines() if line.startswith("qtrack: ")]
        if not may_fail:
            yield f"{name} ended with {self.code}: {' '.join(errors)}"
        elif len(errors) != 1 or self.code != 3 or "this is a fault in qtrack" in errors[0]:
            yield f"{name} ended with {self.code} and not one clean line: {errors}"


class Command:
    """qtrack's command line at work in a fork; what it prints goes to a file beside its folder."""

    def __init__(self, folder: Path, *arguments: str, limit_bytes: int | None = None) -> None:
        self.arguments = arguments
        self.said = folder.with_name(f"{folder.name}.out")
        self.began_at = self.said.stat().st_size if self.said.exists() else 0
        self.began = time.monotonic()
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(folder, self.said, arguments, limit_bytes)

    def wait(self, seconds: float) -> bool:
        """Has it ended within this time?"""
        deadline = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(STEP_S)
        return True

    def kill(self) -> Ended:
        """Without warning."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait(PATIENCE_S)
        return self._ended()

    def end(self) -> Ended:
        """Wait until it has ended by itself, but not for ever."""
        if self.wait(PATIENCE_S - (time.monotonic() - self.began)):
            return self._ended()
        ended = self.kill()
        return Ended(ended.arguments, ended.code, ended.seconds, ended.said, hung=True)

    def _ended(self) -> Ended:
        said = self.said.read_bytes()[self.began_at :].decode(errors="replace")
        assert self.code is not None
        return Ended(self.arguments, self.code, time.monotonic() - self.began, said)


def qtrack(folder: Path, *arguments: str) -> Ended:
    """One command from its beginning to its end."""
    return Command(folder, *arguments).end()


def _become(folder: Path, said: Path, arguments: tuple[str, ...], limit_bytes: int | None) -> None:
    """Be that command, and never return."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        print("$ qtrack", *arguments, file=sys.stderr, flush=True)
        if limit_bytes is not None:  # of each file; Python ignores the signal that comes with it
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        figures.stage_figures = _one_figure
        main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
        if modules := os.environ.get("FAULTS_MODULES"):
            Path(modules).write_text(json.dumps(sorted(sys.modules)))
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Lab:
    """A folder with the empty store and the undisturbed run that all trials are compared with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        _settle()
        self.empty = self._empty_store()
        self.undisturbed = self.folder("undisturbed")
        self.seconds = self._undisturbed_s()

    def folder(self, name: str, experiment: str = "faults", at: Path | None = None) -> Path:
        """A new trial's: with task and pipeline, and the empty store where that is a local one."""
        folder = at or self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "small.py").write_text(TASK.format(name=experiment))
        (folder / "small.yaml").write_text(PIPELINE)
        if experiment == "faults":
            shutil.copy(self.empty, folder / "mlflow.db")
        return folder

    def _empty_store(self) -> Path:
        folder = self.root / "empty"
        folder.mkdir()
        qtrack(folder, "repair")
        return folder / "mlflow.db"

    def _undisturbed_s(self) -> float:
        """How long a run takes while another runs beside it, as in the trials."""
        _import_what(self, self.folder("imports"))
        both = [Command(folder, *RUN) for folder in (self.undisturbed, self.folder("beside"))]
        ended = [command.end() for command in both]
        for one in ended:
            if one.code:
                raise SystemExit(f"the undisturbed run fails: {one.said}")
        return min(one.seconds for one in ended)


def _settle() -> None:
    """What all forks begin with."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_MODEL_CATALOG_URI": ""}
    torch.set_num_threads(1)
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    import_module("tiny").trained()


def _import_what(lab: Lab, folder: Path) -> None:
    """Import here whatever a run, and one that refers to it, import on their way."""
    qtrack(folder, *RUN)
    os.environ["FAULTS_MODULES"] = str(lab.root / "modules.json")
    qtrack(folder, *RUN, "--set", "target.max_drop=0.5")
    names = json.loads(Path(os.environ.pop("FAULTS_MODULES")).read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            if name not in sys.modules and name not in ("small", "__main__"):
                with suppress(Exception):  # of a library's own optional parts
                    import_module(name)


def _one_figure(result: object) -> Iterator[tuple[str, Figure]]:
    """In place of the report's, which take half of a run's time: kills shall hit work and record."""
    yield "layers", Figure(figsize=(1, 1))
