"""Which recorded stages a new search may learn from: those whose own search met its target."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from qtrack.ledger.names import TARGET_MET, Tag

if TYPE_CHECKING:
    from qtrack.ledger.read import Reader
    from qtrack.ledger.rows import RunRow

MOST_WINNERS = 5


def winning_runs(
    reader: Reader, own: str | None, experiments: Collection[str], architecture: str
) -> list[RunRow]:
    """Those of the own experiment, then those of others with this architecture; each the latest first.

    Of a recipe that several came to only the first of them.
    """
    met = {Tag.TARGET_MET: TARGET_MET[True]}
    others = [one for one in experiments if one != own]
    runs = reader.finished([own], met)[::-1] if own else []
    runs += reader.finished(others, met | {Tag.ARCHITECTURE: architecture})[::-1] if others else []
    by_recipe: dict[str, RunRow] = {}
    for run in runs:
        if Tag.SEARCH in run.tags:
            by_recipe.setdefault(run.tags.get(Tag.RECIPE_DIGEST, run.run_id), run)
    return list(by_recipe.values())
