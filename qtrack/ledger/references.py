"""Stages that were not executed again: a campaign refers to the finished run that stands for each.

The reference is a tag of the campaign's own run. Whoever reads the campaign finds that run among its stages,
under the name, the place and the verdict that it has there: the target may be another than the first time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from qtrack.ledger.names import TARGET_MET, Metric, Tag
from qtrack.ledger.rows import RunRow

if TYPE_CHECKING:
    from qtrack.records import StageResult


@dataclass(frozen=True)
class Reference:
    """A stage of a campaign, and the run that stands for it."""

    run: str
    stage: str
    index: int
    drop: float
    drop_low: float
    drop_high: float
    target_met: str

    def to_json(self) -> str:
        """As it stands in a tag."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """None where somebody edited it."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None


def reference_of(result: StageResult) -> Reference:
    """To the known stage that a result rests on."""
    assert result.known
    drop, met = result.judged.drop, TARGET_MET[result.judged.meets_target]
    return Reference(result.known.run_id, result.name, result.index, drop.value, drop.low, drop.high, met)


def references_in(campaign: RunRow) -> Iterator[Reference]:
    """All that a campaign's run holds."""
    for name, text in campaign.tags.items():
        reference = Reference.from_json(text) if name.startswith(Tag.REFERS) else None
        if reference is not None:
            yield reference


def as_referred(run: RunRow, reference: Reference, campaign: RunRow) -> RunRow:
    """The run as a stage of the campaign that refers to it."""
    tags = {name: campaign.tags[name] for name in KEPT if name in campaign.tags}
    tags |= {Tag.STAGE: reference.stage, Tag.INDEX: str(reference.index)}
    tags |= {Tag.TARGET_MET: reference.target_met, Tag.ORIGIN: run.tags.get(Tag.CAMPAIGN, "")}
    drops = {Metric.DROP: reference.drop, Metric.DROP_LOW: reference.drop_low}
    return run.having(tags, drops | {Metric.DROP_HIGH: reference.drop_high})


KEPT = (Tag.CAMPAIGN, Tag.PIPELINE, Tag.MAX_DROP, Tag.CONFIDENCE)
"""What the stage has from the campaign that refers to it."""
