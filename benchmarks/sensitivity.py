"""Does one sweep rank layers as switching them one by one does, and what do both cost?

    python benchmarks/sensitivity.py --markdown

First table: rank correlations with the exact measure over the calibration samples, and the CPU time of the
sweep in units of one forward pass of the float and the quantized model over the same samples. Second table:
the scores of each layer alone on the validation split, from one switchboard with its set-up and by making a
model for each (prepare, calibrate, convert, evaluate). CPU times are of the calling thread, taken in turns at
one torch thread; of several rounds the median counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from numerics import machine, markdown, plain
from prices import PIPELINES, Untrained
from torch import Tensor, nn

from qtrack.backends.engines import using_engine
from qtrack.engine import execute, settled
from qtrack.numerics.effects import effects
from qtrack.ranking import Measure
from qtrack.recipe import Float, Override, Recipe
from qtrack.sensitivity import Sensitivity
from qtrack.task import Task, load_task

RANKED = (
    "network",
    "layers",
    "samples",
    "output / alone",
    "loss / alone",
    "own / alone",
    "sweep, forward passes",
    "without loss",
    "sweep, samples run",
    "exact, samples run",
)
ALONE = ("network", "layers", "equal scores", "switched, CPU s", "naive, CPU s", "ratio")
DIFFERENT = ("network", "layer", "score switched", "score converted")
Row = tuple[str, ...]


class WithLoss(Untrained):
    def loss(self, output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(output, batch[1])


TASKS: dict[str, Callable[[], Task]] = {
    "digits": lambda: load_task("digits.py:Digits", PIPELINES),
    "resnet": lambda: load_task("resnet.py:Resnet", PIPELINES),
    "transformer": lambda: load_task("transformer.py:Transformer", PIPELINES),
    "resnet18 64x64": WithLoss,
}
UNTRAINED = "resnet18 64x64"


def cpu_s(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def in_turns(contenders: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each, after one round that does not count."""
    times = [[cpu_s(work) for work in contenders] for _ in range(rounds + 1)][1:]
    return [median(column) for column in zip(*times, strict=True)]


def ranked(name: str, recipe: Recipe, rounds: int) -> Row:
    task = TASKS[name]()
    found = Sensitivity(task, recipe)
    sweep = found.ranking
    both = sweep if name == UNTRAINED else found.exact(sweep)
    floor, whole, less = in_turns(_sweeps(task, found), rounds)
    measures: tuple[Measure, ...] = ("output", "loss", "own")
    rhos = [both.correlation(measure, "alone") for measure in measures]
    exact = both.forward_samples - sweep.forward_samples
    return (
        name,
        str(len(both.shares)),
        str(both.samples),
        *("" if rho is None else f"{rho:.2f}" for rho in rhos),
        f"{whole / floor:.2f}",
        f"{less / floor:.2f}",
        str(sweep.forward_samples),
        str(exact or ""),
    )


def _sweeps(task: Task, found: Sensitivity) -> tuple[Callable[[], object], ...]:
    """One forward pass of both models, and the sweep with and without the loss, over the same batches."""
    batches = [found._measured(batch) for batch in found._calibration()]
    floating, quantized = task.model().eval(), found.parts.quantized.model

    def forward() -> None:
        with torch.inference_mode():
            for one in batches:
                floating(*one.inputs), quantized(*one.inputs)

    def sweep(objectives: int) -> None:
        for one in batches:
            effects(found.board, one.inputs, one.objectives()[:objectives])

    return forward, lambda: sweep(2), lambda: sweep(1)


def alone(name: str, recipe: Recipe, rounds: int) -> tuple[Row, list[Row]]:
    task = TASKS[name]()
    recipes = dict(recipes_alone(Sensitivity(task, recipe)))
    switched, converted = dict[str, float](), dict[str, float]()

    def ours() -> None:
        switched.update(Sensitivity(task, recipe).scores_alone("validation"))

    def naive() -> None:
        for layer, one in recipes.items():
            converted[layer] = float(execute(task, one, thorough=False).validation.scores.mean())

    quick, slow = in_turns((ours, naive), rounds)
    different = [layer for layer in recipes if switched[layer] != converted[layer]]
    equal = f"{len(recipes) - len(different)} of {len(recipes)}"
    row = (name, str(len(recipes)), equal, f"{quick:.2f}", f"{slow:.2f}", f"{slow / quick:.1f}")
    return row, [(name, layer, f"{switched[layer]:.4f}", f"{converted[layer]:.4f}") for layer in different]


def recipes_alone(found: Sensitivity) -> Iterator[tuple[str, Recipe]]:
    """By layer, the recipe in which it alone is quantized.

    What only moves or cuts off integers has to be left in float as well, on its own and where it was fused
    into a function that is: by itself it would round what goes through it.
    """
    board = found.board
    modules = dict(found.task.model().named_modules())
    parts = {layer: set(_parts(found, layer, modules)) for layer in board.layers}
    moves = {_plain(name, modules) for name in found.parts.quantized.pair.moves}
    for layer in board.layers:
        others = moves.union(*(parts[other] for other in board.layers if other != layer)) - parts[layer]
        ways = [{"layer" if name in modules else "call": name} for name in sorted(others)]
        yield layer, found.recipe.having(overrides=tuple(Override(scheme=Float(), **way) for way in ways))


def _parts(found: Sensitivity, layer: str, modules: dict[str, nn.Module]) -> Iterator[str]:
    """The layer itself, and the modules that are fused into it."""
    yield _plain(layer, modules)
    for site in found.board.switches[layer]:
        yield from (str(node.target) for node in found.board.spans[site] if str(node.target) in modules)


def _plain(name: str, modules: dict[str, nn.Module]) -> str:
    """Of a second call of a module, the module."""
    called = name.partition("#")[0]
    return called if called in modules else name


def main() -> None:
    parser = argparse.ArgumentParser(description="Does one sweep rank layers as the exact mode does?")
    parser.add_argument("--networks", nargs="+", default=list(TASKS), choices=TASKS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe, table = settled(Recipe()), markdown if asked.markdown else plain
    with using_engine(recipe.engine):
        print(machine(), end="\n\n")
        print(table(RANKED, [ranked(name, recipe, asked.rounds) for name in asked.networks]), end="\n\n")
        found = [alone(name, recipe, asked.rounds) for name in asked.networks if name != UNTRAINED]
    print(table(ALONE, [row for row, _ in found]))
    different = [row for _, rows in found for row in rows]
    if different:
        print("\n" + table(DIFFERENT, different))


if __name__ == "__main__":
    main()
