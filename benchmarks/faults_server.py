"""A real ``mlflow server`` on loopback that can be stopped, and a proxy before it that spoils its answers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

START_S = 90.0
LOOPBACK = "127.0.0.1"


class Server:
    """Runs in a folder of its own: SQLite behind it, artifacts through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://{LOOPBACK}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db"]
        command += ["--artifacts-destination", "./artifacts", "--serve-artifacts", "--workers", "1"]
        command += ["--host", LOOPBACK, "--port", str(self.port)]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("ab") as said:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=said, stderr=said, start_new_session=True
            )

    def answers(self) -> None:
        """Wait until it does."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not start; see {self.folder / 'server.log'}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """The server and its workers, by this signal."""
        if self.process is None:
            return
        self._signal(number)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def _signal(self, number: int) -> None:
        assert self.process
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass(frozen=True)
class Spoiling:
    """What the proxy does to requests, from when to when after its start, and to which share of them."""

    kind: str
    begin_s: float
    end_s: float
    share: float
    seed: int
    slow_s: float = 0.0


class Proxy:
    """Stands before a server, in a process of its own."""

    def __init__(self, server: Server, spoiling: Spoiling) -> None:
        self.port = free_port()
        self.uri = f"http://{LOOPBACK}:{self.port}"
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                asyncio.run(_serve(self.port, server.port, spoiling))
            finally:
                os._exit(1)
        _listening(self.port)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _listening(port: int) -> None:
    for _ in range(500):
        with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return
        time.sleep(0.01)
    raise RuntimeError("the proxy did not start")


async def _serve(port: int, server: int, spoiling: Spoiling) -> None:
    began, chance = time.monotonic(), random.Random(spoiling.seed)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            request = await _request(reader)
            age_s = time.monotonic() - began
            hit = spoiling.begin_s <= age_s <= spoiling.end_s and chance.random() < spoiling.share
            await _answer(request, writer, server, spoiling if hit else None)
        with suppress(OSError):
            writer.close()

    async with await asyncio.start_server(handle, LOOPBACK, port) as proxy:
        await proxy.serve_forever()


async def _answer(request: bytes, writer: asyncio.StreamWriter, server: int, hit: Spoiling | None) -> None:
    """Pass a request on, and its answer back, unless it is hit."""
    kind = hit.kind if hit else ""
    if kind == "cut":
        writer.transport.abort()
        return
    if kind in ("500", "503"):
        writer.write(_error(kind))
        await writer.drain()
        return
    answer = await _forwarded(request, server)
    if hit and kind == "slow":
        await asyncio.sleep(hit.slow_s)
    if kind == "unheard":  # the server has done it, and nobody learns of it
        writer.transport.abort()
        return
    writer.write({"500 once done": _error("500"), "torn": answer[: len(answer) // 2]}.get(kind, answer))
    await writer.drain()
    if kind == "torn":
        writer.transport.abort()


def _error(code: str) -> bytes:
    return f"HTTP/1.1 {code} Spoiled\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()


async def _forwarded(request: bytes, server: int) -> bytes:
    reader, writer = await asyncio.open_connection(LOOPBACK, server)
    try:
        writer.write(request)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """A whole request, changed so that the server closes the connection after its answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head[:-4].split(b"\r\n")
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
    }
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    body = await _body(reader, fields)
    return b"\r\n".join([*kept, b"Connection: close", b"", body])


async def _body(reader: asyncio.StreamReader, fields: dict[bytes, bytes]) -> bytes:
    if fields.get(b"transfer-encoding", b"").lower() != b"chunked":
        return await reader.readexactly(int(fields.get(b"content-length", b"0")))
    body = b""
    while True:
        size = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(size, 16) + 2)
        body += size + chunk
        if chunk == b"\r\n":
            return body
