"""May a strategy take the place of the promoted one? Decided on the same validation samples under both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qtrack.difference import Side, side_of, why_unpaired
from qtrack.errors import InputError
from qtrack.reproduction import Recorded
from qtrack.statistics import Drop, paired_drop, samples_needed, target_met

LABELS = "data.validation.labels"


@dataclass(frozen=True)
class Gate:
    """A strategy against the promoted one."""

    promoted: Side
    strategy: Side
    drop: Drop
    """Of the strategy against the promoted one."""
    max_drop: float

    @property
    def passes(self) -> bool | None:
        """True: surely not worse by more than is allowed; False: surely worse; None: not sure."""
        return target_met(self.drop, self.max_drop)

    @property
    def samples_needed(self) -> int | None:
        """With which it would be sure, at the same rates; None where it is, or no number would do."""
        return samples_needed(self.drop, self.max_drop) if self.passes is None else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self) | {"passes": self.passes, "samples_needed": self.samples_needed}


def gated(promoted: Recorded, strategy: Recorded, max_drop: float, confidence: float) -> Gate:
    """Compare the two; raises InputError where they were not validated on the same data."""
    _check_data(promoted, strategy)
    first, second = promoted.result.scores, strategy.result.scores
    drop = paired_drop(first, second, confidence)
    if promoted.run_id == strategy.run_id:
        drop = Drop(0.0, 0.0, 0.0, confidence, len(first))
    return Gate(side_of(promoted), side_of(strategy), drop, max_drop)


def _check_data(promoted: Recorded, strategy: Recorded) -> None:
    why = why_unpaired(promoted, strategy)
    if not why and promoted.ingredients.get(LABELS) != strategy.ingredients.get(LABELS):
        why = "not comparable: validation had other labels"
    if why:
        one, other = (f"{side.stage} ({side.run_id[:8]})" for side in (strategy, promoted))
        advice = "run the pipeline of the promoted one on the data of today"
        raise InputError(f"{one} and the promoted {other} are {why}; {advice}")
