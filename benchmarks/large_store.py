"""Reading a store of 100,000 runs: time and memory of whole commands, each in a fresh process.

    python benchmarks/large_store.py --markdown

Builds the store in a temporary folder by bulk inserts (``ledger.py`` has the rows: 30 metrics, 15 params, 5
tags for each stage): 40 experiments, each with campaigns of 10 stages and the campaigns' own runs. Memory is
the process's peak resident size.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path

import ledger as rows

from qtrack.ledger import Ledger
from qtrack.ledger.names import Tag

EXPERIMENTS, RUNS = 40, 100_000
COMMANDS = {
    "compare of an experiment": ["compare", "--experiment", "net-7", "--json"],
    "compare of the latest campaign": ["compare", "--json"],
    "compare of two runs by name": ["compare", "campaign-3-5/stage 1", "campaign-3-5/stage 2", "--json"],
    "history of an experiment": ["history", "--experiment", "net-7", "--json"],
}


def build(path: Path, runs: int, experiments: int = EXPERIMENTS) -> int:
    """Fill the store; the result is how many runs it has."""
    ledger = Ledger.open(f"sqlite:///{path}")
    ids = [int(ledger._store.experiment_for(f"net-{number}")) for number in range(experiments)]
    chance, count = random.Random(0), 0
    with closing(sqlite3.connect(path)) as database:
        for place, experiment in enumerate(ids):
            for number in range(runs // experiments * rows.STAGES // (rows.STAGES + 1)):
                rows._insert(database, experiment, number, chance, curves=False)
                count += 1
                if number % rows.STAGES == 0:
                    _campaign(database, experiment, f"campaign-{number // rows.STAGES}", number, chance)
                    count += 1
            database.execute(
                "UPDATE tags SET value = replace(value, 'campaign-', ?) WHERE key = ? AND run_uuid IN "
                "(SELECT run_uuid FROM runs WHERE experiment_id = ?)",
                (f"campaign-{place}-", Tag.CAMPAIGN, experiment),
            )
        database.commit()
    return count


def _campaign(
    database: sqlite3.Connection, experiment: int, name: str, number: int, chance: random.Random
) -> None:
    run, start = uuid.UUID(int=chance.getrandbits(128)).hex, 1_700_000_000_000 + 1000 * number
    row = (run, name, "LOCAL", "qtrack", "", "me", "FINISHED", start, start + 900, "")
    database.execute(
        "INSERT INTO runs VALUES (?,?,?,?,?,?,?,?,?,?,'active','/nowhere',?,NULL)", (*row, experiment)
    )
    tags = {Tag.KIND: "campaign", Tag.CAMPAIGN: name}
    database.executemany("INSERT INTO tags VALUES (?,?,?)", [(key, text, run) for key, text in tags.items()])


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall seconds, and peak resident MB."""
    program = (
        "import sys\nfrom qtrack.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    text = open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]\n"
        "    print(text, file=sys.stderr)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"},
    )
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - began, int(done.stderr.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--folder", type=Path, help="Keep the store here; one that is there is used.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        if not (folder / "mlflow.db").exists():
            print(f"{build(folder / 'mlflow.db', asked.runs):,} runs in {EXPERIMENTS} experiments\n")
        print("| command | s | MB |\n|---|---|---|")
        for name, command in COMMANDS.items():
            found = [measured(command, folder) for _ in range(3)]
            seconds, memory = sorted(found)[1][0], max(one[1] for one in found)
            print(f"| {name} | {seconds:.2f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
