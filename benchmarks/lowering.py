"""What lowering makes of a converted pt2e model, beside the float model and FX's kernels.

    python benchmarks/lowering.py --markdown

All contenders of a network are called in turns in one process, at one torch thread, under ``no_grad``, on one
batch in channels-last form; a time is the median over the rounds. Compilers' caches are off, so that seconds
to make are those of a first time; they include the first call, and for FX and pt2e export, calibration and
conversion. The difference is the largest of any output to those of the converted pt2e model.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch._inductor.config
from networks import digits_task, network
from numerics import machine, markdown, plain
from torch import Tensor, nn

from qtrack.backends import load_backend
from qtrack.backends.pt2e_lowering import compiled, lowered
from qtrack.errors import BackendError
from qtrack.recipe import Recipe

CONVERTED = "pt2e as converted"
HEADER = ("network", "contender", "ms", "times float", "s to make", "difference", "largest output")
NETWORKS = ("digits", "resnet18")
BATCH = 64
SIDE = 64
"""Pixels of ResNet-18's images."""


@dataclass
class Contender:
    """A model that is ready to be called, or why there is none."""

    name: str
    batch: Tensor
    program: Callable[[Tensor], Tensor] | None = None
    made_s: float = float("nan")
    failure: str = ""
    times_ms: list[float] = field(default_factory=list)

    def call(self) -> Tensor:
        assert self.program is not None
        return self.program(self.batch)


def contenders(name: str, batch: Tensor) -> list[Contender]:
    """The float model, FX, pt2e, and pt2e lowered by each way."""
    model = network(name)
    pt2e = made(CONVERTED, batch, lambda: converted(model, "pt2e", batch))
    source: Any = pt2e.program
    rows = batch.contiguous()
    return [
        made("float eager", batch, lambda: model),
        made("fx, x86", batch, lambda: converted(model, "fx", batch)),
        pt2e,
        made("pt2e lowered by torchao", batch, lambda: lowered(source, (batch,))),
        made("pt2e compiled", batch, lambda: compiled(source, (batch,), freezing=False)),
        made("pt2e compiled, frozen", batch, lambda: compiled(source, (batch,), freezing=True)),
        made("the same, channels first", rows, lambda: compiled(source, (rows,), freezing=True)),
    ]


def made(name: str, batch: Tensor, make: Callable[[], Any]) -> Contender:
    contender, began = Contender(name, batch), time.perf_counter()
    torch._dynamo.reset()
    try:
        contender.program = make()
        contender.call()
    except BackendError as error:
        contender.failure = str(error)
    contender.made_s = time.perf_counter() - began
    return contender


def converted(model: nn.Module, backend_name: str, batch: Tensor) -> nn.Module:
    """Calibrated on the batch, with scales per channel."""
    recipe = Recipe(backend=backend_name).with_weights(granularity="per_channel")
    backend = load_backend(backend_name)
    prepared = backend.prepare(model, recipe, (batch,))
    prepared.model(batch)
    return backend.convert(prepared, (batch,)).model


def in_turns(running: list[Contender], rounds: int) -> None:
    for _ in range(rounds):
        for contender in running:
            began = time.perf_counter()
            contender.call()
            contender.times_ms.append(1000 * (time.perf_counter() - began))


def rows(name: str, rounds: int) -> list[tuple[str, ...]]:
    found = contenders(name, _batch(name))
    running = [contender for contender in found if not contender.failure]
    in_turns(running, 1)  # to warm up
    outputs = {contender.name: contender.call() for contender in running}
    for contender in running:
        contender.times_ms.clear()
    in_turns(running, rounds)
    return [_row(name, contender, median(found[0].times_ms), outputs) for contender in found]


def _row(name: str, contender: Contender, float_ms: float, outputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    if contender.failure:
        return (name, contender.name, contender.failure, "", f"{contender.made_s:.1f}", "", "")
    output, ms = outputs[contender.name], median(contender.times_ms)
    gap, largest = (output - outputs[CONVERTED]).abs().max(), output.abs().max()
    made_s = f"{contender.made_s:.1f}"
    return (name, contender.name, f"{ms:.2f}", f"{float_ms / ms:.2f}", made_s, f"{gap:.3g}", f"{largest:.3g}")


def _batch(name: str) -> Tensor:
    if name == "digits":
        images = torch.cat([images for images, _ in digits_task().validation()])[:BATCH]
    else:
        images = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description="What lowering makes of a converted pt2e model.")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--markdown", action="store_true", help="a table in Markdown")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.quantized.engine = "x86"
    torch._inductor.config.force_disable_caches = True
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = [row for name in asked.networks for row in rows(name, asked.rounds)]
    print(machine(), end="\n\n")
    print((markdown if asked.markdown else plain)(HEADER, table))


if __name__ == "__main__":
    main()
