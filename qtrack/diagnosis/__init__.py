"""PyTorch's guide to quantization accuracy debugging as a program: which error, on what evidence, what next.

Each check is one file whose ``check`` makes a ``Finding`` of an ``Examination`` (the calibration audit: to
several), and one line in CHECKS. A check is cheap to ask: what is measured is measured once, when a check
first asks for it. What a fault's remedy would bring is measured on the network's outputs, by executing the
changed recipe, so the order of causes rests on trials and not on rules; where a trial takes too long (QAT,
searches) the expectation says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from qtrack.data import batches_of, inspect_splits
from qtrack.diagnosis import (
    bias,
    calibration,
    channels,
    dynamic,
    equalization,
    fusion,
    kernels,
    ladder,
    nonfinite,
    observers,
    saturation,
    sensitivity,
    training,
)
from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.inputs import Chosen, spread_of
from qtrack.diagnosis.samples import facts
from qtrack.engine import check_forward
from qtrack.finding import Category, Diagnosis, Finding, Legs, Remedy, Worked
from qtrack.monitor import SILENT, Monitor
from qtrack.numerics.extent import extents
from qtrack.recipe import Recipe
from qtrack.stages import Target
from qtrack.task import Inputs, Split, Task

History = Callable[[str], Mapping[str, Worked]]
CHECKS: tuple[Callable[[Examination], Finding | list[Finding]], ...] = (
    nonfinite.check,
    sensitivity.check,
    kernels.check,
    calibration.check,
    fusion.check,
    channels.check,
    observers.check,
    equalization.check,
    bias.check,
    dynamic.check,
    saturation.check,
    calibration.spread,
    ladder.check,
    training.check,
)
"""In the order in which causes that explain as much are named."""
SPLITS: tuple[Split, ...] = ("calibration", "validation")
SEVERITIES = ("fault", "remark", "not checked", "fine")


def diagnose(
    task: Task,
    recipe: Recipe,
    target: Target,
    *,
    subject: str,
    run_id: str | None = None,
    worked: History = lambda cause: {},
    monitor: Monitor = SILENT,
) -> Diagnosis:
    """Execute the recipe, look at the model with every check, and say what to try next.

    ``worked`` gives, for a cause, how often the stages that mend it did so in earlier runs. Raises what
    ``execute`` raises, and RecipeError where the recipe quantizes nothing.
    """
    began = time.perf_counter()
    examination = Examination(task, recipe, target, inspect_splits(task, monitor), monitor)
    check_forward(task)
    findings = _ordered(_found(examination, monitor))
    findings = tuple(_with_history(finding, worked) for finding in findings)
    category = category_of(examination)
    legs = {name: found.value for name, found in examination.legs.items()}
    return Diagnosis(
        subject=subject,
        category=category,
        text=_sentence(category, findings),
        metric=task.metric,
        float_value=examination.floating.value,
        value=examination.quantized.value,
        drop=examination.drop,
        legs=Legs(**legs),
        findings=findings,
        remedies=_remedies(findings),
        seconds=time.perf_counter() - began,
        forward_samples=examination.forward_samples,
        recipe_digest=examination.recipe.digest,
        run_id=run_id,
    )


def audit(task: Task, monitor: Monitor = SILENT) -> tuple[Finding, ...]:
    """Look at the calibration split alone, before anything is quantized; raises DataError on broken data."""
    splits = inspect_splits(task, monitor)
    check_forward(task)
    model = task.model().eval()
    spreads = {str(split): spread_of(_inputs(task, split)) for split in SPLITS}
    ranges = [extents(model, _inputs(task, split)) for split in SPLITS]
    return tuple(facts(Chosen(splits["calibration"], splits), spreads, *ranges))


def _inputs(task: Task, split: Split) -> Iterator[Inputs]:
    return map(task.inputs, batches_of(task, split))


def category_of(examination: Examination) -> Category:
    """Which of the guide's kinds of error it is; the kernels' where most of the loss is theirs."""
    if examination.quantized.nonfinite or examination.floating.nonfinite:
        return "not finite"
    if not examination.suffers:
        return "healthy"
    if kernels.loss(examination) >= 0.5:
        return "implementation"
    return "data-sensitive" if sensitivity.is_sensitive(examination) else "data-insensitive"


def _found(examination: Examination, monitor: Monitor) -> Iterator[Finding]:
    with monitor.phase("checks", len(CHECKS)) as advance:
        for check in CHECKS:
            found = check(examination)
            yield from found if isinstance(found, list) else [found]
            advance(1)


def _ordered(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    """Faults by what mending them brings, in tenths; else in the order of the checks."""
    return tuple(
        sorted(
            findings,
            key=lambda f: (SEVERITIES.index(f.severity), -round(f.gain, 1) if f.severity == "fault" else 0),
        )
    )


def _with_history(finding: Finding, worked: History) -> Finding:
    if finding.cause is None or not finding.remedies:
        return finding
    earlier = worked(finding.cause)
    return replace(
        finding, remedies=tuple(replace(one, worked=earlier.get(one.stage)) for one in finding.remedies)
    )


def _remedies(findings: tuple[Finding, ...]) -> tuple[Remedy, ...]:
    """Each stage with its options once, by its worth, in tenths, then in the order of the findings."""
    found: dict[tuple[str, str], Remedy] = {}
    for finding in findings:
        for remedy in finding.remedies:
            found.setdefault((remedy.stage, str(remedy.options)), remedy)
    return tuple(sorted(found.values(), key=lambda one: -round(one.worth, 1)))


SENTENCES: Mapping[Category, str] = {
    "healthy": "no loss beyond chance or the target",
    "data-insensitive": "the error is spread over all samples",
    "data-sensitive": "a few samples have most of the error",
    "implementation": "integer kernels do not compute what their reference does",
    "not finite": "the output holds NaN or infinity",
}


def _sentence(category: Category, findings: tuple[Finding, ...]) -> str:
    first = next((finding for finding in findings if finding.severity == "fault"), None)
    return SENTENCES[category] + (f"; first cause: {first.cause}" if first else "")
