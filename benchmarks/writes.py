"""How many jobs' records a store takes: what bounds a sweep when there are many workers.

    python benchmarks/writes.py --markdown

Records of real jobs (digits, the stages ``float`` and ``ptq``, with models, layer tables, figures) are made
once, as a worker of a sweep hands them over, and addressed anew to each store. It then takes all of them, one
after the other, as the driver of a sweep does: SQLite, PostgreSQL, and a server before each of them with its
artifacts on this disk. Two drivers with half of the records each show whether the driver or the store bounds.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from numerics import machine

from qtrack.ledger import Ledger, mask_secrets
from qtrack.sweep.work import campaign

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the servers are those of the tests

servers = import_module("servers")

JOBS = 12
STAGES = "stages: [float, ptq]"
NOWHERE = "held://until-it-is-sent"


def records(folder: Path, jobs: int) -> list[bytes]:
    """What workers hand over: each a campaign of its own."""
    task = ROOT / "pipelines" / "digits.py"
    (folder / "job.yaml").write_text(f"{{name: job, task: '{task}:Digits', {STAGES}, threads: 1}}")
    found = []
    for seed in range(jobs):
        handed = campaign(str(folder / "job.yaml"), {"recipe.seed": seed}, 1, "", NOWHERE, "1", {})
        if handed.error:
            sys.exit(handed.error)
        found.append(handed.packed)
    return found


def addressed(packed: bytes, uri: str) -> bytes:
    """The same record for another store."""
    readdressed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(packed)) as there,
        tarfile.open(fileobj=readdressed, mode="w:gz", compresslevel=1) as here,
    ):
        for member in there:
            file = there.extractfile(member)
            content = file.read().replace(NOWHERE.encode(), uri.encode()) if file else b""
            member.size = len(content)
            here.addfile(member, io.BytesIO(content))
    return readdressed.getvalue()


@contextmanager
def store(name: str, folder: Path) -> Iterator[str]:
    """The URI of an empty store of this kind."""
    folder.mkdir()
    if name == "SQLite":
        yield f"sqlite:///{folder / 'mlflow.db'}"
    elif name == "server, SQLite":
        with servers.mlflow_server(folder) as uri:
            yield uri
    else:
        with servers.postgres(folder) as uri:
            if name == "PostgreSQL":
                yield uri
            else:
                with servers.mlflow_server(folder, uri) as address:
                    yield address


STORES = ("SQLite", "PostgreSQL", "server, SQLite", "server, PostgreSQL")


def taken(uri: str, packed: list[Path], folder: Path) -> list[float]:
    """Seconds for each record, in a process of its own working folder."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    ledger = Ledger.open(uri)
    assert ledger.experiment_for("digits") == "1"
    found = []
    for path in packed:
        record = addressed(path.read_bytes(), mask_secrets(ledger.uri))
        began = time.perf_counter()
        waiting = [one for one in ledger.take(record) if one.trouble]
        found.append(time.perf_counter() - began)
        assert not waiting, waiting
    return found


def drivers(uri: str, packed: list[Path], folder: Path, count: int) -> float:
    """Jobs per second of so many drivers at once."""
    Ledger.open(uri).experiment_for("digits")
    shares = [packed[number::count] for number in range(count)]
    commands = [
        [sys.executable, __file__, "--take", uri, str(folder / f"{time.time()}"), *map(str, share)]
        for number, share in enumerate(shares)
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    spans = [list(map(float, process.communicate()[0].split())) for process in running]
    if any(process.returncode for process in running):
        sys.exit("a driver failed")
    return len(packed) / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def main() -> None:
    if sys.argv[1:2] == ["--take"]:
        uri, folder, *packed = sys.argv[2:]
        Ledger.open(uri)
        began = time.time()
        taken(uri, [Path(path) for path in packed], Path(folder))
        print(began, time.time())
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--jobs", type=int, default=JOBS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packed = []
        for number, record in enumerate(records(folder, asked.jobs)):
            packed.append(folder / f"record {number}")
            packed[-1].write_bytes(record)
        sizes = statistics.median(path.stat().st_size for path in packed)
        print(f"{len(packed)} jobs of two stages, {sizes / 1e3:.0f} kB each as handed over\n")
        print("| store | seconds per job, median (quartiles) | one driver, jobs/s | two drivers, jobs/s |")
        print("|---|---|---|---|")
        for number, name in enumerate(STORES):
            with store(name, folder / f"one-{number}") as uri:
                seconds = taken(uri, packed, folder / f"taken-{number}")
                low, middle, high = statistics.quantiles(seconds, n=4)
            with store(name, folder / f"two-{number}") as uri:
                two = drivers(uri, packed, folder, 2)
            cells = f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{1 / statistics.mean(seconds):.1f}"
            print(f"| {name} | {' | '.join(cells)} | {two:.1f} |", flush=True)
        print(f"\n{machine()}")


if __name__ == "__main__":
    main()
