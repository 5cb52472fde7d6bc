"""Real servers on loopback, ended with their last test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

START_S = 90


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def answering(answer):
    """The address of a server whose answer to a path is (status, headers, text)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, said = answer(self.path)
            content = said.encode()
            self.send_response_only(status)
            for name, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def mlflow_server(
    folder, backend="sqlite:///mlflow.db", *, artifacts="./artifacts", environment=None, arguments=()
):
    """The address of an MLflow server that runs in a folder, with its store there unless told otherwise."""
    port = free_port()
    command = ["mlflow", "server", "--backend-store-uri", backend]
    command += ["--artifacts-destination", artifacts, "--serve-artifacts", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    around = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}
    around.pop("MLFLOW_TRACKING_URI", None)
    address = f"http://127.0.0.1:{port}"
    with serving(folder, command, around, f"{address}/health"):
        yield address


@contextmanager
def moto(folder, port=None):
    """The address of an S3 server that keeps its objects in memory and takes any credentials."""
    pytest.importorskip("moto.server", reason="needs moto[s3]")
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(folder, command, dict(os.environ), f"{address}/moto-api/"):
        yield address


@contextmanager
def serving(folder, command, environment, healthy):
    with (folder / f"{command[0]}.log").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(healthy, process)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def _wait_until_healthy(address, process):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail("the server did not start")


def postgres_programs():
    """Where Debian's package, or another, has its programs; None where there are none."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


class Postgres:
    """A PostgreSQL cluster; its user has a password if one is given.

    Its folder is none of pytest's, which any other pytest that starts closes to all users but its own.
    """

    def __init__(self, password=""):
        pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
        self.programs = postgres_programs()
        if self.programs is None:
            pytest.skip("needs PostgreSQL: apt-get install postgresql")
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="qtrack-postgres-"))
        self.data, secret = self.folder / "data", self.folder / "password"
        secret.write_text(password)
        self.as_user = []
        if os.geteuid() == 0:  # which it refuses to run as
            self.as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(self.folder, "postgres")
        how = ["--auth=scram-sha-256", "--pwfile", secret] if password else ["--auth=trust"]
        self._call("initdb", "-D", self.data, "-U", "qtrack", *how, "--no-sync")
        user = f"qtrack:{password}" if password else "qtrack"
        self.uri = f"postgresql+psycopg2://{user}@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        options += f" -c unix_socket_directories={self.data}"
        self._call("pg_ctl", "-D", self.data, "-w", "-l", self.data / "log", "-o", options, "start")

    def stop(self):
        self._call("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def _call(self, program, *arguments):
        command = [*self.as_user, self.programs / program, *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


@contextmanager
def postgres_cluster(password=""):
    """A running PostgreSQL, which a test may stop if it starts it again."""
    cluster = Postgres(password)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder)


@contextmanager
def postgres(folder):
    """The URI of an empty PostgreSQL database; with a folder, as the other stores, though not in it."""
    with postgres_cluster() as cluster:
        yield cluster.uri
