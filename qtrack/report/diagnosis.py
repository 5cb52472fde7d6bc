"""A diagnosis as a sentence and tables: what was measured, on what evidence, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from qtrack.ledger.files import plain
from qtrack.report.cells import NONE, Scale, number, significant
from qtrack.report.comparison import intervals
from qtrack.report.fit import folded
from qtrack.report.tables import Column, Table

if TYPE_CHECKING:
    from qtrack.finding import Diagnosis, Figure, Finding, Remedy

SHOWN = ("fault", "remark")
"""Findings that have a row; the others have a line for all."""
MOST_LAYERS = 3
LONGEST_ENTRY, SHORTEST_ENTRY = 100, 24
"""Letters of a stage with its options."""
OTHER_COLUMNS = 68
"""Those of a remedy, so that its reason stands in one line where there is room."""
MOST_FIGURES = 4
"""Of a remark, on a terminal."""


def verdict(found: Diagnosis) -> str:
    """The kind of error, and what that means here."""
    return f"{found.category}: {found.text}"


def measured(found: Diagnosis) -> Table:
    """The metric with one part of the quantization at a time; the drop is that of the kernels."""
    legs, drop = found.legs, found.drop
    values = (found.float_value, legs.weights, legs.activations, legs.both, found.value)
    scale = _scale(found)
    confidence = "interval" if drop.confidence is None else f"{100 * drop.confidence:g}%"
    columns = (
        Column("", "left"),
        Column("float"),
        Column("weights\nalone"),
        Column("activations\nalone"),
        Column("both\nemulated"),
        Column("on its\nkernels"),
        Column(f"drop [{confidence}]\n{scale.difference_unit}"),
    )
    (lost,) = intervals([(drop.value, drop.low, drop.high)], scale)
    row = (f"{found.metric} {scale.unit}".strip(), *(scale.text(value) for value in values), lost)
    took = f"{found.seconds:.1f} s, {number(found.forward_samples)} samples forward"
    over = f"{found.subject} over {number(drop.samples)} validation samples"
    return Table(columns, (row,), (f"{over}; {took}",))


def findings(found: Sequence[Finding], severities: Sequence[str] = SHOWN) -> Table:
    """Those of these severities with their figures; a line for all others that are fine."""
    columns = (Column("", "left"), Column("finding", "left"), Column("sure"))
    shown = [finding for finding in found if finding.severity in severities]
    rows = tuple((one.severity, _said(one), _percent(one.confidence)) for one in shown)
    faults = frozenset(i for i, one in enumerate(shown) if one.severity == "fault")
    rest = [finding for finding in found if finding.severity not in severities]
    return Table(columns, rows, tuple(_rest(rest)), marked=faults)


def screen(found: Diagnosis, width: int) -> Iterator[str | Table]:
    """The verdict, what it rests on, and the remedies, for a terminal of this width."""
    yield verdict(found)
    yield measured(found)
    yield _evidence(found.findings, width, SHOWN)
    table = remedies(found, max(width - OTHER_COLUMNS, SHORTEST_ENTRY))
    if table is not None:
        yield folded(table, width, len(table.columns) - 1)


def audit_screen(found: Sequence[Finding], width: int) -> Table:
    """All findings of an audit, which are few, for a terminal of this width."""
    return _evidence(found, width, ("fault", "remark", "fine", "not checked"))


def _evidence(found: Sequence[Finding], width: int, severities: Sequence[str]) -> Table:
    """To fit a screen, what is no fault says less."""
    brief = [one if one.severity == "fault" else _brief(one) for one in found]
    return folded(findings(brief, severities), width, 1)


def _brief(finding: Finding) -> Finding:
    known = tuple(figure for figure in finding.figures if figure.value is not None)
    return replace(finding, threshold="", figures=known[:MOST_FIGURES])


def _said(finding: Finding) -> str:
    """What it is, and below it on which evidence."""
    known = [figure for figure in finding.figures if figure.value is not None]
    parts = [", ".join(map(_figure, known))] if known else []
    parts += [f"threshold: {finding.threshold}"] if finding.threshold else []
    if finding.layers and finding.layers[0] not in finding.text:
        parts.append(f"layers: {_some(finding.layers)}")
    return "\n".join(filter(None, (f"{finding.check}: {finding.text}", "; ".join(parts))))


def _figure(figure: Figure) -> str:
    value = figure.value
    if isinstance(value, int | float):
        value = _short(value)
    unit = figure.unit if figure.unit in ("", "%") else f" {figure.unit}"
    return f"{figure.name}: {value}{unit}"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return number(value) if float(value).is_integer() else significant(value)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LAYERS} more" if len(names) > MOST_LAYERS else ""
    return ", ".join(names[:MOST_LAYERS]) + more


def _rest(found: Sequence[Finding]) -> Iterator[str]:
    fine = [finding.check for finding in found if finding.severity == "fine"]
    if fine:
        yield f"fine: {', '.join(dict.fromkeys(fine))}"
    for finding in found:
        if finding.severity == "not checked":
            yield f"not checked: {finding.check}: {finding.text}"


def remedies(found: Diagnosis, longest: int = LONGEST_ENTRY) -> Table | None:
    """In the order in which to try them, options cut where they are long; None where none is known."""
    if not found.remedies:
        return None
    scale = _scale(found)
    columns = (
        Column("remedy", "left"),
        Column(f"gain\n{scale.difference_unit}"),
        Column("cost\nruns"),
        Column("worked\nearlier", "left"),
        Column("because", "left"),
    )
    lost = max(found.drop.value or 0.0, 0.0)
    rows = tuple(
        (
            entry_text(remedy.stage, remedy.options, longest),
            scale.text(remedy.gain * lost),
            significant(remedy.cost, 2),
            _worked(remedy),
            remedy.why,
        )
        for remedy in found.remedies
    )
    note = "gain: expected, of what is lost; cost: in executions of the diagnosed recipe"
    return Table(columns, rows, (note,))


def entry_text(stage: str, options: Mapping[str, Any], longest: int = LONGEST_ENTRY) -> str:
    """A stage with its options as it stands in a pipeline file, cut where it is long."""
    if not options:
        return stage
    written = yaml.safe_dump(plain(options), default_flow_style=True, width=math.inf, sort_keys=False)
    text = f"{stage}: {written.strip()}"
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _worked(remedy: Remedy) -> str:
    return NONE if remedy.worked is None else f"{remedy.worked.times} of {remedy.worked.tried}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f}%"


def _scale(found: Diagnosis) -> Scale:
    legs = found.legs
    values = (found.float_value, found.value, legs.weights, legs.activations, legs.both)
    known = [value for value in values if value is not None and math.isfinite(value)]
    return Scale.of(known, found.drop.samples)
