"""How fast a large store is read, beside MLflow's own client on the same data.

    python benchmarks/ledger.py --markdown

Builds a store of many runs in a temporary folder, by bulk inserts into the tables that MLflow made, and reads
it in turns, ours and MLflow's, in one process:

* ``compare``: all strategies of one experiment of 1,000 runs, against ``search_runs`` of the same runs;
* ``history``: all strategies of an experiment of 10,000, likewise;
* ``curves``: 4 curves of 200 layers for 100 runs, against ``get_metric_history`` for each of them.

What both have read is compared before any time is printed.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from numerics import machine, markdown, plain

from qtrack.ledger import Ledger
from qtrack.ledger.client_source import ClientSource
from qtrack.ledger.names import Tag
from qtrack.ledger.rows import Query
from qtrack.ledger.strategy import strategy_of

METRICS = (
    *("accuracy", "drop", "drop_low", "drop_high", "sqnr_db", "size_bytes", "latency_ms", "latency_iqr_ms"),
    *("float_latency_ms", "float_layers", "seconds", "evaluations", "forward_samples", "test_accuracy"),
    *(f"seconds/phase_{number}" for number in range(16)),
)
PARAMS = tuple(f"param_{number}" for number in range(15))
CURVES = ("layers/sqnr_db", "layers/own_sqnr_db", "layers/weight_sqnr_db", "train/loss")
LAYERS, STAGES = 200, 10
EXPERIMENTS = {"thousand": 1_000, "many": 10_000}
Read = Callable[[], Any]


def build(path: Path, with_curves: int) -> None:
    """Fill the store: the runs of each experiment, the first ones of the larger with curves."""
    ledger = Ledger.open(f"sqlite:///{path}")
    ids = {name: int(ledger._store.experiment_for(name)) for name in EXPERIMENTS}
    chance = random.Random(0)
    with closing(sqlite3.connect(path)) as database:
        for name, count in EXPERIMENTS.items():
            for number in range(count):
                curves = name == "many" and number < with_curves
                _insert(database, ids[name], number, chance, curves=curves)
        database.commit()


def _insert(
    database: sqlite3.Connection, experiment: int, number: int, chance: random.Random, *, curves: bool
) -> None:
    run, start = uuid.UUID(int=chance.getrandbits(128)).hex, 1_700_000_000_000 + 1000 * number
    row = (run, f"stage {number % STAGES}", "LOCAL", "qtrack", "", "me", "FINISHED", start, start + 900, "")
    database.execute(
        "INSERT INTO runs VALUES (?,?,?,?,?,?,?,?,?,?,'active','/nowhere',?,NULL)", (*row, experiment)
    )
    tags = {Tag.KIND: "stage", Tag.CAMPAIGN: f"campaign-{number // STAGES}", Tag.METRIC: "accuracy"}
    tags |= {Tag.STAGE: f"stage {number % STAGES}", Tag.INDEX: str(number % STAGES)}
    database.executemany("INSERT INTO tags VALUES (?,?,?)", [(key, text, run) for key, text in tags.items()])
    database.executemany("INSERT INTO params VALUES (?,'0.001',?)", [(key, run) for key in PARAMS])
    points = [(key, chance.random(), start, run, 0) for key in METRICS]
    if curves:
        points += [(key, chance.gauss(30, 5), start, run, step) for key in CURVES for step in range(LAYERS)]
    latest = {key: (key, value, time_ms, step, False, of) for key, value, time_ms, of, step in points}
    database.executemany("INSERT INTO metrics VALUES (?,?,?,?,?,0)", points)
    database.executemany("INSERT INTO latest_metrics VALUES (?,?,?,?,?,?)", latest.values())


def pairs(uri: str) -> Iterator[tuple[str, Read, Read]]:
    """What is read, by us and by MLflow's client."""
    ledger = Ledger.open(uri)
    client, ids = ClientSource(ledger._store), {n: i for i, n in ledger._reader.experiments().items()}

    def strategies(name: str) -> tuple[Read, Read]:
        query = Query([ids[name]], {Tag.KIND: "stage"}, status="FINISHED")
        return (
            lambda: ledger.finished(name),
            lambda: [strategy_of(row, name) for row in reversed(list(client.runs(query)))],
        )

    yield ("compare, 1,000 runs", *strategies("thousand"))
    yield ("history, 10,000 runs", *strategies("many"))
    oldest = [strategy.run_id for strategy in ledger.finished("many")[:100]]
    source = ledger._reader.source
    yield (
        "curves, 100 runs x 4 x 200",
        lambda: source.curves(oldest, CURVES),
        lambda: client.curves(oldest, CURVES),
    )


def measured(what: str, ours: Read, theirs: Read, rounds: int) -> tuple[str, ...]:
    """In turns; the medians and their ratio."""
    if _sorted(ours()) != _sorted(theirs()):
        raise SystemExit(f"{what}: what was read differs")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for kept, read in zip(times, (ours, theirs), strict=True):
            began = time.perf_counter()
            read()
            kept.append(time.perf_counter() - began)
        print(f"{what}: {times[0][-1]:.3f} s, MLflow {times[1][-1]:.3f} s", file=sys.stderr, flush=True)
    quick, slow = map(statistics.median, times)
    return what, f"{quick:.3f}", f"{slow:.2f}", f"{slow / quick:.1f}"


def _sorted(found: Any) -> Any:
    return sorted(found.items()) if isinstance(found, dict) else found


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast a large store is read, beside MLflow's client.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--with-curves", type=int, default=500, metavar="N", help="runs that have curves")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qtrack-ledger-") as folder:
        path = Path(folder) / "mlflow.db"
        build(path, arguments.with_curves)
        size_mb = path.stat().st_size / 1e6
        found = [measured(*pair, arguments.rounds) for pair in pairs(f"sqlite:///{path}")]
    header = ("read", "qtrack, s", "MLflow's client, s", "times faster")
    print(machine())
    print(
        f"{sum(EXPERIMENTS.values()):,} runs in SQLite ({size_mb:.0f} MB), {len(METRICS)} metrics, ", end=""
    )
    print(f"{len(PARAMS)} params and 5 tags each; median of {arguments.rounds} rounds in turns\n")
    print((markdown if arguments.markdown else plain)(header, found))


if __name__ == "__main__":
    main()
