"""Does the diagnosis name what was planted, does its first remedy help, and what does it cost?

    python benchmarks/diagnosis.py --markdown

The cases are those of ``tests/planted.py``: one known fault each, on two networks trained on scikit-learn's
digits (600 validation images, 160 to calibrate with, seed 0, one thread), target: a drop of one point. The
first remedy is executed as it stands, on all validation images, and has recovered what share of the lost
accuracy comes back. The cost is that of a whole diagnosis of ``pipelines/digits.py`` over that of its PTQ
stage, in turns, the median of ROUNDS.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from numerics import machine, markdown, plain

from qtrack import execute
from qtrack.campaign import run_plan
from qtrack.diagnosis import diagnose
from qtrack.finding import Diagnosis
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Recipe
from qtrack.stages import Target
from qtrack.task import load_task

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the cases are those of the tests
planted, memory = (import_module(name) for name in ("planted", "memory"))

TARGET = Target(max_drop=0.01)
ROUNDS = 5
HALF = 0.5


@dataclass(frozen=True)
class Answer:
    """A case, what was said of it, and what the first remedy made of it."""

    case: Any
    diagnosis: Diagnosis
    recovered: float | None

    @property
    def named(self) -> str:
        return self.diagnosis.cause or self.diagnosis.category

    @property
    def right(self) -> bool:
        if not self.case.causes:
            return self.diagnosis.cause is None and self.diagnosis.category == "healthy"
        return self.diagnosis.cause in self.case.causes


def answer(case: Any) -> Answer:
    task = case.task()
    with case.backend():
        found = diagnose(task, case.recipe, TARGET, subject=case.name)
        lost = found.float_value - found.value
        after = mended(case, found) if case.recoverable and found.remedies else None
    recovered = None if after is None else (after - found.value) / lost if lost else 0.0
    if case.recoverable and not found.remedies:
        recovered = 0.0
    return Answer(case, found, recovered)


def mended(case: Any, found: Diagnosis) -> float:
    """The metric with the first remedy: its recipe, or what its search comes to."""
    first, task = found.remedies[0], case.task()
    if first.recipe is not None:
        return execute(task, first.recipe, thorough=False).value
    stages = ["recipe", {first.stage: dict(first.options)}]
    pipeline = Pipeline(name="mend", task="planted", target=TARGET, recipe=case.recipe, stages=stages)
    return run_plan(plan_of(pipeline, task), memory.Memory())[-1].outcome.value


def confusion(answers: list[Answer]) -> list[tuple[str, ...]]:
    counts = Counter((found.case.fault, found.named, found.diagnosis.category) for found in answers)
    right = {(found.case.fault, found.named): found.right for found in answers}
    return [
        ("planted", "named first", "category", "cases", "right"),
        *(
            (fault, named, category, str(count), "yes" if right[fault, named] else "no")
            for (fault, named, category), count in counts.items()
        ),
    ]


def recovery(answers: list[Answer]) -> list[tuple[str, ...]]:
    rows = [("case", "float %", "quantized %", "first remedy", "expected %", "recovered %")]
    for found in answers:
        if found.recovered is None:
            continue
        said = found.diagnosis
        first = said.remedies[0] if said.remedies else None
        options = f" {dict(first.options)}" if first and first.options else ""
        rows.append(
            (
                found.case.name,
                f"{100 * said.float_value:.1f}",
                f"{100 * said.value:.1f}",
                f"{first.stage}{options}" if first else "none",
                f"{100 * first.gain:.0f}" if first else "",
                f"{100 * found.recovered:.0f}",
            )
        )
    return rows


def cost() -> list[tuple[str, ...]]:
    """Diagnosis and PTQ stage of the shipped network in turns; the first round does not count."""
    task = load_task("digits.py:Digits", ROOT / "pipelines")
    rows = [("recipe", "PTQ stage, s", "diagnosis, s", "ratio")]
    per_tensor = Recipe(engine="x86")
    for name, recipe in {
        "per-tensor (loses 61 points)": per_tensor,
        "per-channel (loses 9 points)": per_tensor.with_weights(granularity="per_channel"),
    }.items():
        baseline = execute(task, recipe.with_mode("float"))
        stage_s, diagnosis_s = [], []
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            execute(task, recipe, baseline)
            stage_s.append(time.perf_counter() - began)
            diagnosis_s.append(diagnose(task, recipe, TARGET, subject=name).seconds)
        stage, whole = (statistics.median(times[1:]) for times in (stage_s, diagnosis_s))
        rows.append((name, f"{stage:.2f}", f"{whole:.2f}", f"{whole / stage:.2f}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--only", metavar="WORD", help="Cases whose name holds it.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = markdown if arguments.markdown else plain

    def show(rows: list[tuple[str, ...]]) -> str:
        return str(draw(rows[0], rows[1:]))

    print(machine(), "\n")
    costs = cost()
    known = planted.cases([*planted.ARCHITECTURES, *planted.HELD_OUT])
    chosen = [case for case in known if not arguments.only or arguments.only in case.name]
    answers = []
    for i, case in enumerate(chosen):
        print(f"{i + 1} of {len(chosen)}: {case.name}", file=sys.stderr)
        answers.append(answer(case))
    print(show(confusion(answers)), "\n")
    healthy = [found for found in answers if not found.case.causes]
    false = [found for found in answers if found.diagnosis.category == "implementation"]
    false = [found for found in false if found.case.category != "implementation"]
    print(
        f"planted cause named first: {sum(a.right for a in answers if a.case.causes)} of "
        f"{len(answers) - len(healthy)}; healthy called healthy: {sum(a.right for a in healthy)} of "
        f"{len(healthy)}; false implementation errors: {len(false)}\n"
    )
    print(show(recovery(answers)), "\n")
    tried = [found.recovered for found in answers if found.recovered is not None]
    print(f"the first remedy recovers half or more in {sum(r >= HALF for r in tried)} of {len(tried)}\n")
    print(show(costs))


if __name__ == "__main__":
    main()
