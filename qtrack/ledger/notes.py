"""What stands under a run's name in MLflow's UI: a few sentences in Markdown, and where to go from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtrack.ledger.names import TARGET_MET

if TYPE_CHECKING:
    from qtrack.finding import Diagnosis
    from qtrack.ledger.strategy import Strategy
    from qtrack.records import StageResult

DIAGNOSIS = "Diagnosis:"
_TARGET = {
    True: "The target is met.",
    False: "The target is missed.",
    None: "Too few samples to say if the target is met.",
}


def stage_note(campaign: str, result: StageResult) -> str:
    """A stage: its metric, its drop with interval, its worst layer; what to do next.

    MLflow shows the first lines and folds the rest away.
    """
    outcome, worst = result.outcome, result.outcome.worst_layer
    said = f"**{_cell(result.name)}**: {_cell(headline(result))}."
    lines = [f"{said} {_TARGET[result.judged.meets_target]}"]
    lines.append(f"Layers: {_code(f'qtrack layers {campaign}/{result.name}')}. {_compare(campaign)}")
    if worst is not None:
        lines.append(f"Worst layer: {_code(worst.layer)}, {worst.own_sqnr_db:.1f} dB of its own.")
    if result.probes:
        lines.append(f"Its search tried {len(result.probes)} recipes: `search.json`.")
    if outcome.warnings:
        lines.append(f"{len(outcome.warnings)} warnings: `log.txt`.")
    return "\n\n".join(lines)


def diagnosis_note(found: Diagnosis) -> str:
    """A diagnosed stage's paragraph: the kind of error, what it comes from, and what is best tried next."""
    said = f"{DIAGNOSIS} **{_cell(found.category)}**: {_cell(found.text)}."
    if found.cause:
        said += f" Cause: {_cell(found.cause)}."
    if found.remedies:
        said += f" First remedy: {_code(found.remedies[0].stage)}."
    return f"{said} All of it: `diagnosis.json`."


def amended(note: str, paragraph: str) -> str:
    """The note with this paragraph, in the place of one that begins with the same word."""
    word = paragraph.split()[0]
    kept = [part for part in note.split("\n\n") if part and part.split()[:1] != [word]]
    return "\n\n".join([*kept, paragraph])


def campaign_note(campaign: str, results: Sequence[StageResult]) -> str:
    """A campaign: one row for each stage."""
    if not results:
        return "No stage came to its end: see `error.txt` and `log.txt` of the last stage's run."
    rows = [
        f"| {_cell(result.name)} | {_cell(headline(result))} | {TARGET_MET[result.judged.meets_target]} |"
        for result in results
    ]
    return "\n".join([_compare(campaign), "", "| stage | result | target met |", "|---|---|---|", *rows])


def version_note(strategy: Strategy) -> str:
    """A registered model's version: which stage it is, what it came to, and how it is proven again."""
    what = f"**{_cell(strategy.stage)}** of {_code(strategy.campaign or 'no campaign')}"
    lines = [f"{what} (experiment {_cell(strategy.experiment)})."]
    if strategy.value is not None:
        lines[0] += (
            f" {_cell(strategy.metric or 'metric')} {strategy.value:.4f}. {_TARGET[strategy.target_met]}"
        )
    lines.append(f"Recipe {_code((strategy.recipe_digest or 'unknown')[:12])}.")
    lines.append(f"The same model again: {_code(f'qtrack reproduce {strategy.run_id}')}.")
    return "\n\n".join(lines)


def headline(result: StageResult) -> str:
    """The metric with its drop and the drop's interval."""
    drop = result.judged.drop
    interval = f"{drop.low:.4f} to {drop.high:.4f} at {drop.confidence:.0%}"
    return f"{result.outcome.metric} {result.outcome.value:.4f}, drop {drop.value:.4f} ({interval})"


def _compare(campaign: str) -> str:
    return f"All stages: {_code(f'qtrack compare --campaign {campaign}')}"


def _code(text: str) -> str:
    return f"`{_line(text).replace('`', '')}`"


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _line(text: str) -> str:
    """Without the line ends that would end a code span or a cell."""
    return " ".join(text.split())
