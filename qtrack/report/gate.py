"""What came of holding a strategy against the promoted one, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtrack.report.cells import Scale

if TYPE_CHECKING:
    from qtrack.difference import Side
    from qtrack.gate import Gate

ANSWERS = {True: "passed", False: "worse", None: "not sure"}


def gate_line(found: Gate, against: str) -> str:
    """The answer, with what it rests on; ``against`` names the promoted one."""
    scale = Scale.of((found.promoted.value, found.strategy.value), found.drop.samples)
    drop = found.drop
    lost = (
        f"{scale.text(drop.value)} [{scale.text(drop.low)}, {scale.text(drop.high)}] {scale.difference_unit}"
    )
    sides = f"{_side(found.strategy, scale)} against {_side(found.promoted, scale)}, {against}"
    allowed = f"{scale.with_unit(found.max_drop)} allowed, {100 * drop.confidence:g}% sure"
    line = f"{ANSWERS[found.passes]}: {sides}: drop {lost.strip()}, {allowed}"
    return f"{line}; {_samples(found)}" if found.passes is None else line


def _side(side: Side, scale: Scale) -> str:
    return f"{side.stage} {scale.text(side.value)}{scale.unit} ({side.run_id[:8]})"


def _samples(found: Gate) -> str:
    """How many samples would settle it."""
    needed = found.samples_needed
    asked = f"about {needed:,} would decide" if needed else "no number of them is known to decide"
    return f"{found.drop.samples:,} samples are too few, {asked} at the same rates"
