"""Makes `mlruns_example/`: what a team would have on record after three campaigns on two models.

    python pipelines/example.py

starts an MLflow server on an empty store, runs stages of `resnet.yaml` and `digits.yaml` on it three times,
with one ingredient changed from time to time (`CAMPAIGNS`), and puts the store in place of the one that is
there. Whatever got better or worse did so by these ingredients; nothing is edited, and times are as they
were. It takes two minutes.

The server is what makes the store relocatable: runs know their artifacts as `mlflow-artifacts:/...`, wherever
the folder lies. Figures are left out, and some stages of the larger network, so that it stays small.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from qtrack import Ledger
from qtrack.campaign import run_plan
from qtrack.cli.server import serving
from qtrack.ledger.store import sqlite_uri
from qtrack.pipeline import read_plan

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "mlruns_example"


def static(**activation: Any) -> dict[str, Any]:
    return {"recipe.default": {"mode": "static", "activation": activation}}


CAMPAIGNS: tuple[tuple[dict[str, Any], dict[str, tuple[str, ...]]], ...] = (
    # What one tries first: activations range from the smallest to the largest value seen.
    (
        static(observer="min_max"),
        {"resnet": ("float", "per_channel"), "digits": ("float", "ptq", "per_channel")},
    ),
    # Ranges that minimise the error, which is better per channel; training, and layers left in float.
    (
        {},
        {
            "resnet": ("float", "ptq", "per_channel", "qat", "fallback"),
            "digits": ("float", "ptq", "per_channel", "qat", "fallback"),
        },
    ),
    # Seven bits for activations, as machines without VNNI need them: worse, and much worse without training.
    (
        static(reduce_range=True),
        {"resnet": ("float", "per_channel"), "digits": ("float", "ptq", "per_channel", "qat", "fallback")},
    ),
)
"""Fields of the pipeline files that are set, and the stages that are run of each."""


def record(address: str) -> None:
    ledger = Ledger.open(address)
    for settings, stages in CAMPAIGNS:
        for model, names in stages.items():
            path = HERE / f"{model}.yaml"
            run_plan(read_plan(path, {"stages": chosen(path, names), **settings}), ledger)


def chosen(path: Path, names: tuple[str, ...]) -> list[Any]:
    """The entries of these stages in a pipeline file."""
    entries = yaml.safe_load(path.read_text())["stages"]
    return [entry for entry in entries if (entry if isinstance(entry, str) else next(iter(entry))) in names]


def make(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # where runs leave what they spool on their way
        store = Path(scratch, "store")
        (store / "artifacts").mkdir(parents=True)
        with serving(sqlite_uri(store / "mlflow.db")) as (address, _):
            record(address)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(store, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the example store again.")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    make(parser.parse_args().out.absolute())


if __name__ == "__main__":
    main()
