"""What it takes to bring a network to its target by leaving layers in float, by several ways.

    python benchmarks/search.py --markdown --nncf-python /path/to/nncf/bin/python

* The networks are those of ``pipelines/``: ``digits`` hardened at three strengths, in the three seams that
  its pipeline plants trouble in and in all ten of it, and ``resnet``. int8 with one scale per tensor, engine
  x86, 160 images to calibrate with, 720 to decide on, 240 that decide nothing. Target: a drop of at most two
  points, 95% sure: the whole interval of the drop on the 720 below it, for every contender.
* ``fallback`` is qtrack's stage in a pipeline [float, ptq, fallback]; ``greedy`` ranks all layers left anew
  for each that goes to float, each tried on the 720; ``greedy as nncf`` keeps nncf's order of things (ranks
  on the 300 images that lost most, and anew only when a step made it worse); ``exhaustive`` tries every
  length of the ranking by own share of the error. See ``search_contenders.py``.
* ``nncf`` is ``nncf.quantize_with_accuracy_control`` itself on OpenVINO, with its own rule (the drop as
  measured, no interval), run by the interpreter of ``--nncf-python``, which ``python -m venv ENV;
  ENV/bin/pip install torch==2.13.0 nncf openvino`` makes. ``nncf, same rule`` is told the worst metric of the
  interval in place of the one measured, and so stops by the rule of all others. ``nncf, per channel`` has the
  scales per channel that are its default, and its own rule. Their drop is that of the model which they
  deliver, as OpenVINO's CPU plugin runs it by default, against the float model in torch.
* Counts and CPU seconds are those of the search, one thread. PTQ, and the evaluations of it and of the float
  model, are in none but nncf's, which does that itself; the last execution, for the test images, is in none.
  A search that goes on for ``--stop-s`` CPU seconds ends where it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numerics import machine, markdown, plain
from safetensors.torch import load_file, save_file
from search_contenders import CONTENDERS, Case, Found
from torch import nn

from qtrack import execute
from qtrack.data import batches_of
from qtrack.recipe import Recipe
from qtrack.stages import Target
from qtrack.statistics import Drop, paired_drop, target_met
from qtrack.task import Task, load_task

HERE = Path(__file__).resolve().parent
PIPELINES = HERE.parent / "pipelines"
TARGET = Target(max_drop=0.02, confidence=0.95)
RECIPE = Recipe(engine="x86")

load_task("digits.py:Digits", PIPELINES)
digits: Any = sys.modules["digits"]

ALL_SEAMS = tuple(
    (f"blocks.{block}.{first}", f"blocks.{block}.{second}")
    for block in range(len(digits.BLOCKS))
    for first, second in (("expand", "depthwise"), ("depthwise", "project"))
)


class Hardened(digits.Digits):
    """The digits network with channel ranges spread at these seams, so strongly."""

    def __init__(self, seams: Iterable[tuple[str, str]], strength: float) -> None:
        self.seams, self.strength = seams, strength

    def model(self) -> nn.Module:
        net = digits.DigitsNet()
        net.load_state_dict(load_file(digits.WEIGHTS))
        return digits.unequalize(net, self.seams, self.strength, seed=0)


NETWORKS: dict[str, Callable[[], Task]] = {
    **{
        f"digits, 3 seams, {strength}": partial(Hardened, digits.SEAMS, strength)
        for strength in (2.5, 3.05, 3.6)
    },
    **{
        f"digits, 10 seams, {strength}": partial(Hardened, ALL_SEAMS, strength)
        for strength in (1.5, 2.0, 2.5)
    },
    "resnet": lambda: load_task("resnet.py:Resnet", PIPELINES),
}


@dataclass(frozen=True)
class Result:
    """One contender on one network; ``failure`` in place of all else where it did not run."""

    drop: Drop | None = None
    value: float = math.nan
    test: float = math.nan
    float_layers: int = 0
    evaluations: int = 0
    models: int | None = None
    forwards: int = 0
    cpu_s: float = math.nan
    note: str = ""
    failure: str | None = None

    @property
    def met(self) -> bool | None:
        return target_met(self.drop, TARGET.max_drop) if self.drop else None


def case_of(name: str) -> Case:
    task = NETWORKS[name]()
    baseline = execute(task, RECIPE.with_mode("float"))
    return Case(name, task, RECIPE, TARGET, baseline, execute(task, RECIPE, baseline))


def measured(case: Case, contender: str, stop_s: float) -> Result:
    found: Found = CONTENDERS[contender](case, stop_s)
    outcome = execute(case.task, found.chosen.outcome.recipe, case.baseline)
    assert outcome.test is not None
    return Result(
        drop=found.chosen.drop,
        value=outcome.value,
        test=outcome.test.value,
        float_layers=len(outcome.float_layers),
        evaluations=found.evaluations,
        models=found.models,
        forwards=found.forwards,
        cpu_s=found.cpu_s,
        note=found.note,
    )


# ---- nncf, in its own environment ----


def by_nncf(case: Case, python: str | None, options: Mapping[str, Any]) -> Result:
    if python is None:
        return Result(failure="skipped: no --nncf-python")
    with tempfile.TemporaryDirectory() as folder:
        write(case, Path(folder), {"max_drop": TARGET.max_drop, **options})
        command = [str(Path(python).absolute()), str(HERE / "search_nncf.py"), folder]
        try:
            done = run_on_one_core(command, folder)
        except OSError as error:
            return Result(failure=f"skipped: {python}: {error.strerror}")
    if done.returncode:
        return Result(failure=f"skipped: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return delivered(case, json.loads(done.stdout.splitlines()[-1]))


def run_on_one_core(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    """OpenVINO takes as many threads as it finds cores."""
    core = {min(os.sched_getaffinity(0))}
    known = os.environ | {"PYTHONPATH": str(HERE.parent)}
    limit = partial(os.sched_setaffinity, 0, core)
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=known, preexec_fn=limit)


def write(case: Case, folder: Path, options: Mapping[str, Any]) -> None:
    """What ``search_nncf.py`` reads."""
    data = {}
    for split in ("calibration", "validation", "test"):
        batches = list(batches_of(case.task, split))
        data[f"{split}.images"] = torch.cat([images for images, _ in batches])
        data[f"{split}.labels"] = torch.cat([labels for _, labels in batches])
    save_file(data, folder / "data.safetensors")
    example = (data["calibration.images"][:2],)
    batch = {0: torch.export.Dim("batch", min=1)}
    network = torch.export.export(case.task.model().eval(), example, dynamic_shapes=(batch,))
    torch.export.save(network, folder / "network.pt2")
    (folder / "options.json").write_text(json.dumps(options))


def delivered(case: Case, answer: Mapping[str, Any]) -> Result:
    scores = np.array(answer["validation"])
    return Result(
        drop=paired_drop(case.baseline.validation.scores, scores, TARGET.confidence),
        value=float(scores.mean()),
        test=float(np.mean(answer["test"])),
        float_layers=len(answer["float_layers"]),
        evaluations=answer["whole"],
        forwards=answer["samples"],
        cpu_s=answer["cpu_s"],
        note=f"claims {100 * answer['claimed']:.1f}; {answer['calls']} calls of the validation function; "
        f"runs in {answer['precision']}; {answer['versions']}",
    )


NNCF: dict[str, dict[str, Any]] = {
    "nncf": {"per_channel": False, "confidence": None},
    "nncf, same rule": {"per_channel": False, "confidence": TARGET.confidence},
    "nncf, per channel": {"per_channel": True, "confidence": None},
}


# ---- Tables ----

HEADER = (
    "network",
    "contender",
    "full evaluations",
    "models",
    "forward passes, k samples",
    "CPU s",
    "layers in float",
    "accuracy %",
    "drop, points [95%]",
    "target met",
    "test %",
    "remarks",
)


ANSWER = {True: "yes", False: "no", None: "not sure"}


def row(network: str, contender: str, result: Result) -> tuple[str, ...]:
    if result.failure or result.drop is None:
        return (network, contender, *[""] * (len(HEADER) - 3), result.failure or "")
    drop = result.drop
    return (
        network,
        contender,
        str(result.evaluations),
        "" if result.models is None else str(result.models),
        f"{result.forwards / 1000:.1f}",
        f"{result.cpu_s:.1f}",
        str(result.float_layers),
        f"{100 * result.value:.1f}",
        f"{100 * drop.value:.1f} [{100 * drop.low:.1f}, {100 * drop.high:.1f}]",
        ANSWER[result.met],
        f"{100 * result.test:.1f}",
        result.note,
    )


def start_row(case: Case) -> tuple[str, ...]:
    """What all contenders start from."""
    drop = paired_drop(case.baseline.validation.scores, case.ptq.validation.scores, TARGET.confidence)
    test = case.ptq.test.value if case.ptq.test else math.nan
    start = Result(drop, case.ptq.value, test, len(case.ptq.float_layers), note=f"{len(case.layers)} layers")
    cells = row(case.name, "PTQ, the start", start)
    return (*cells[:2], "", "", "", "", *cells[6:])


def goals(case: Case, results: Mapping[str, Result]) -> Iterator[tuple[str, ...]]:
    """What is asked of ``fallback``, as far as there is something to compare it with."""
    ours, best = results.get("fallback"), results.get("exhaustive")
    if ours is None:
        return
    most = math.ceil(math.log2(len(case.layers))) + 4
    evaluations = ours.evaluations + 1  # the stage executes what its search came to
    yield goal(case, "full evaluations, with the last", f"{evaluations}", f"{most}", evaluations <= most)
    if best:
        met = bool(ours.met) or not best.met
        yield goal(case, "target met", ANSWER[ours.met], f"{ANSWER[best.met]} by exhaustive", met)
        fewer = ours.float_layers <= best.float_layers
        yield goal(case, "layers in float", f"{ours.float_layers}", f"{best.float_layers}", fewer)
    for name in ("greedy", "greedy as nncf"):
        if name in results:
            limit = results[name].cpu_s / 5
            quick = ours.cpu_s <= limit
            yield goal(case, f"CPU s, a fifth of {name}", f"{ours.cpu_s:.1f}", f"{limit:.1f}", quick)


def goal(case: Case, what: str, ours: str, limit: str, holds: bool) -> tuple[str, ...]:
    return (case.name, what, ours, limit, "yes" if holds else "no")


def run(case: Case, contenders: Iterable[str], options: argparse.Namespace) -> dict[str, Result]:
    results = {}
    for name in contenders:
        print(f"{case.name}: {name}", file=sys.stderr, flush=True)
        if name in NNCF:
            results[name] = by_nncf(case, options.nncf_python, NNCF[name])
        else:
            results[name] = measured(case, name, options.stop_s)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = [*CONTENDERS, *NNCF]
    parser.add_argument("--only", metavar="WORD", help="Networks whose name holds it.")
    parser.add_argument("--contenders", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument(
        "--nncf-python", metavar="PATH", help="An interpreter that has torch, nncf and openvino."
    )
    parser.add_argument(
        "--stop-s", type=float, default=300.0, help="CPU seconds for a search, 300 by default."
    )
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    table, asked = [], []
    for name in NETWORKS:
        if options.only and options.only not in name:
            continue
        case = case_of(name)
        results = run(case, options.contenders, options)
        table += [start_row(case), *(row(name, contender, found) for contender, found in results.items())]
        asked += list(goals(case, results))
    draw = markdown if options.markdown else plain
    print(machine(), draw(HEADER, table), sep="\n\n")
    if asked:
        print("\n" + draw(("network", "goal", "fallback", "limit", "holds"), asked))


if __name__ == "__main__":
    main()
