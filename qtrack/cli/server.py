"""An MLflow server of one's own, on loopback, for as long as it is needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qtrack.errors import InputError, StoreError

HOST = "127.0.0.1"
START_S = 90.0
STOP_S = 5.0


@contextmanager
def serving(uri: str, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """An MLflow server on the store, which answers; ended with all its workers at the end.

    Only this machine can reach it, at any free port unless one is named.
    """
    port = port or _free_port()
    _check_free(port)
    address = f"http://{HOST}:{port}"
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(
            _command(uri, port), env=_environment(uri), stdout=said, stderr=said, start_new_session=True
        )
        try:
            _wait_until_healthy(address, server, said)
            yield address, server
        finally:
            _end(server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise InputError(f"port {port} is taken; leave --port out for a free one")


def _command(uri: str, port: int) -> list[str]:
    options = {
        "--host": HOST,
        "--port": str(port),
        "--workers": "1",
        "--artifacts-destination": _artifacts(uri),
    }
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *(part for option in options.items() for part in option),
    ]


def _artifacts(uri: str) -> str:
    """Where artifacts lie that the store knows only by a server's address."""
    from qtrack.ledger.preflight import sqlite_path

    path = sqlite_path(uri)
    folder = path.parent if path else Path.cwd()
    beside = folder / "artifacts"
    return str(beside if beside.is_dir() else folder / "mlartifacts")


def _environment(uri: str) -> dict[str, str]:
    """The store goes in by the environment: a password in an argument could be read by others."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return quiet | dict(os.environ) | {"MLFLOW_BACKEND_STORE_URI": uri}


def _wait_until_healthy(address: str, server: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    from qtrack.ledger import mask_secrets

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise StoreError(f"the MLflow server did not start: {mask_secrets(lines[-1])}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise StoreError(f"the MLflow server did not answer within {START_S:.0f} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which share a process group of their own."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(STOP_S)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
