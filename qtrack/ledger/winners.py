"""Which recorded stages a new search may learn from: those whose own search met its target."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain, islice
from typing import TYPE_CHECKING

from qtrack.ledger.names import TARGET_MET, Tag

if TYPE_CHECKING:
    from qtrack.ledger.read import Reader
    from qtrack.ledger.rows import RunRow

MOST_WINNERS = 5
MOST_READ = 1000
"""Stages that are looked at for them, of the own experiment and of others."""


def winning_runs(
    reader: Reader, own: str | None, experiments: Collection[str], architecture: str
) -> list[RunRow]:
    """Those of the own experiment, then those of others with this architecture; each the latest first.

    Of a recipe that several came to only the first of them.
    """
    met = {Tag.TARGET_MET: TARGET_MET[True]}
    others = [one for one in experiments if one != own]
    alike = met | {Tag.ARCHITECTURE: architecture}
    runs = chain(
        islice(reader.finished([own] if own else [], met, latest_first=True), MOST_READ),
        islice(reader.finished(others, alike, latest_first=True), MOST_READ),
    )
    by_recipe: dict[str, RunRow] = {}
    for run in runs:
        if Tag.SEARCH in run.tags:
            by_recipe.setdefault(run.tags.get(Tag.RECIPE_DIGEST, run.run_id), run)
    return list(by_recipe.values())
