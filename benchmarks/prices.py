"""Does the price table predict the latency of mixed models?

    python benchmarks/prices.py --markdown

A table is measured once for each network, at one torch thread, on one batch. Then models are made of random
choices of rungs (a fifth, half or four fifths of the layers in float by chance, each on any of its rungs of
that kind), and called in turns with each other. A time is the median over the rounds, in time of the calling
thread: the same as wall time, but for what else the machine is busy with.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from networks import network
from numerics import machine, markdown, plain
from torch import Tensor, nn

from qtrack.backends.engines import using_engine
from qtrack.engine import quantize, settled
from qtrack.recipe import Recipe
from qtrack.search.prices import PriceTable
from qtrack.sensitivity.prices import prices
from qtrack.task import Task, load_task

HEADER = ("network", "model", "in float", "conversions", "predicted ms", "measured ms", "off %")
PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"
BATCH, SIDE, CALIBRATION = 16, 64, 4


class Untrained(Task):
    """ResNet-18 on noise: its times are those of a trained one."""

    name = "resnet18"

    def __init__(self) -> None:
        self.net = network("resnet18")

    def model(self) -> nn.Module:
        return copy.deepcopy(self.net)

    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        images = [torch.randn(BATCH, 3, SIDE, SIDE, generator=generator) for _ in range(CALIBRATION)]
        return [(batch, torch.zeros(BATCH, dtype=torch.int64)) for batch in images]

    validation = calibration


def tasks() -> dict[str, Task]:
    return {"resnet": load_task("resnet.py:Resnet", PIPELINES), "resnet18 64x64": Untrained()}


def choices(table: PriceTable, count: int) -> Iterator[tuple[str, dict[str, str]]]:
    """The recipe as it is, all in float, and mixtures of both."""
    yield "recipe", {}
    floats = {one.layer: "float" for one in table.layers if any(rung.name == "float" for rung in one.rungs)}
    yield "float", floats
    draw = random.Random(0)
    for position in range(count):
        share = draw.choice((0.2, 0.5, 0.8))
        yield f"mixed {position + 1}", {one.layer: _drawn(one, share, draw) for one in table.layers}


def _drawn(layer: object, share: float, draw: random.Random) -> str:
    in_float = draw.random() < share
    rungs = [rung.name for rung in layer.rungs if rung.in_float == in_float]
    return draw.choice(rungs or [layer.rungs[0].name])


def rows(name: str, task: Task, count: int, seconds: float) -> list[tuple[str, ...]]:
    recipe = settled(Recipe())
    began = time.perf_counter()
    table, cost = prices(task, recipe)
    print(
        f"{name}: priced in {time.perf_counter() - began:.1f} s, {cost.forward_samples} samples forward",
        file=sys.stderr,
    )
    chosen = list(choices(table, count))
    with using_engine(recipe.engine):
        models = [quantize(task, table.recipe(recipe, choice)).quantized.model for _, choice in chosen]
        measured = in_turns(models, task.inputs(next(iter(task.calibration()))), seconds)
    return [
        _row(name, table, label, choice, ms) for (label, choice), ms in zip(chosen, measured, strict=True)
    ]


def in_turns(models: list[nn.Module], inputs: tuple[Tensor, ...], seconds: float) -> list[float]:
    times: list[list[float]] = [[] for _ in models]
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times[0]) < 8:
        for model, one in zip(models, times, strict=True):
            model(*inputs)  # with its own weights in the caches
            start = time.thread_time()
            model(*inputs)
            one.append(1000 * (time.thread_time() - start))
    return [median(one[1:]) for one in times]


def _row(name: str, table: PriceTable, label: str, choice: dict[str, str], ms: float) -> tuple[str, ...]:
    in_float = sum(rung.in_float for rung in table.rungs(choice).values())
    conversions = len(list(table.conversions(choice)))
    predicted = table.predicted_ms(choice)
    off = f"{100 * (predicted / ms - 1):+.0f}"
    return (
        name,
        label,
        f"{in_float} of {len(table.layers)}",
        str(conversions),
        f"{predicted:.2f}",
        f"{ms:.2f}",
        off,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Does the price table predict the latency of mixed models?")
    parser.add_argument("--networks", nargs="+", default=list(tasks()), choices=tasks(), metavar="NAME")
    parser.add_argument("--models", type=int, default=8, help="random choices for each network")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring, for each network")
    parser.add_argument("--markdown", action="store_true", help="a table in Markdown")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        found = [
            row for name in asked.networks for row in rows(name, tasks()[name], asked.models, asked.seconds)
        ]
    print(machine(), end="\n\n")
    print((markdown if asked.markdown else plain)(HEADER, found))


if __name__ == "__main__":
    main()
