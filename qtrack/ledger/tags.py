"""Tags of recorded stages, for whoever chooses strategies by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qtrack.ledger.rows import Query

if TYPE_CHECKING:
    from qtrack.ledger.read import Reader
    from qtrack.ledger.strategy import Strategy

AT_ONCE = 500


def tags_of(
    reader: Reader, strategies: Sequence[Strategy], experiments: Sequence[str]
) -> dict[str, Mapping[str, str]]:
    """By the ids of their runs; where a campaign refers to a run, those of the run itself."""
    ids = sorted({strategy.run_id for strategy in strategies})
    parts = [ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE)]
    return {
        run.run_id: run.tags for part in parts for run in reader.source.runs(Query(experiments, ids=part))
    }
