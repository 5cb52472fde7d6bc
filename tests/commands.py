"""Commands as a user gives them, in processes that know no more of a server than its address."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


def started(*arguments, **environment):
    """A command that is running; it knows neither a database nor a bucket."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_S3_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "qtrack", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **environment},
    )


@contextmanager
def running(*arguments, **environment) -> Iterator[subprocess.Popen[str]]:
    """A command that does not outlive the context."""
    with started(*arguments, **environment) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process):
    stdout, stderr = process.communicate(timeout=300)
    return Done(process.returncode, stdout, stderr)


def command(*arguments, **environment):
    return ended(started(*arguments, **environment))


def only_line(done, remarks=()):
    """What a command that failed has said of it, which must be one line after the remarks of any run."""
    assert (done.exit_code, done.stdout) == (3, "")
    *before, line = done.stderr.splitlines()
    assert before == [*remarks]
    assert line.startswith("qtrack: tracking store ")
    return line
