"""How many validation samples would settle what is not sure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qtrack.statistics import Drop, samples_needed

if TYPE_CHECKING:
    from qtrack.ledger import Strategy


def is_unsure(strategy: Strategy) -> bool:
    """Has it finished without an answer to whether it meets the target?"""
    return strategy.status == "FINISHED" and strategy.drop is not None and strategy.target_met is None


def needed_by(strategy: Strategy) -> int | None:
    """Samples with which it would be sure, at the same rates; None where it is sure, or none would do."""
    drop, limit = _drop_of(strategy), strategy.max_drop
    return samples_needed(drop, limit) if is_unsure(strategy) and drop and limit is not None else None


def _drop_of(s: Strategy) -> Drop | None:
    if s.drop is None or s.drop_low is None or s.drop_high is None or not s.samples or not s.confidence:
        return None
    return Drop(s.drop, s.drop_low, s.drop_high, s.confidence, s.samples)


def unsure_notes(strategies: Sequence[Strategy]) -> Iterator[str]:
    """A line for each strategy that may or may not meet its target."""
    for strategy in filter(is_unsure, strategies):
        needed = needed_by(strategy)
        asked = f"about {needed:,} would decide" if needed else "no number of them is known to decide"
        yield f"{strategy.stage}: not sure with {strategy.samples or 0:,} samples; {asked} at the same rates"
