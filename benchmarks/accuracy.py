"""What each mode of each backend leaves of the accuracy of the shipped networks.

    python benchmarks/accuracy.py --markdown

Scales per channel, calibration on the task's own split, no other remedy. A drop is in points of accuracy over
the 720 validation images, with its 95% paired interval; a cell says how many layers with weights stay in
float where some do, and is empty where the backend has no such mode.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch
from numerics import machine, markdown, plain

from qtrack import execute
from qtrack.backends import layers_with_weights
from qtrack.backends.capabilities import faults, missing
from qtrack.engine import settled
from qtrack.errors import BackendError
from qtrack.outcome import Outcome
from qtrack.recipe import BackendName, Recipe
from qtrack.statistics import paired_drop
from qtrack.task import Task, load_task

PIPELINES = Path(__file__).parent.parent / "pipelines"
TASKS = {"digits": "Digits", "resnet": "Resnet", "lstm": "Lstm", "transformer": "Transformer"}
MODES = ("static", "dynamic", "weight_only")
BACKENDS = get_args(BackendName)


def recipe_of(backend: str, mode: str) -> Recipe:
    scheme = {"mode": mode, "weight": {"granularity": "per_channel"}}
    return settled(Recipe.model_validate({"backend": backend, "default": scheme}))


def cell(task: Task, baseline: Outcome, backend: str, mode: str) -> str:
    recipe = recipe_of(backend, mode)
    if missing(backend):
        return "not installed"
    if faults(recipe):
        return ""
    try:
        outcome = execute(task, recipe, thorough=False)
    except BackendError as error:
        return f"refused: {error}"
    drop = paired_drop(baseline.validation.scores, outcome.validation.scores)
    left, all_ = len(outcome.float_layers), len(layers_with_weights(task.model()))
    note = f", {left} of {all_} float" if left else ""
    return f"{100 * drop.value:.1f} [{100 * drop.low:.1f}, {100 * drop.high:.1f}]{note}"


def rows(names: list[str]) -> Iterator[tuple[str, ...]]:
    for name in names:
        task = load_task(f"{name}.py:{TASKS[name]}", PIPELINES)
        baseline = execute(task, settled(Recipe(default="float")), thorough=False)
        for mode in MODES:
            found = [cell(task, baseline, backend, mode) for backend in BACKENDS]
            yield (name, f"{100 * baseline.value:.1f}", mode, *found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(TASKS), choices=TASKS, metavar="NAME")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    header = ("network", "float, %", "mode", *(f"{backend}: drop" for backend in BACKENDS))
    table = list(rows(options.networks))
    print(machine(), end="\n\n")
    print((markdown if options.markdown else plain)(header, table))


if __name__ == "__main__":
    main()
