"""What strategies are called where their campaigns do not stand above them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qtrack.ledger import Strategy


def titles_of(strategies: Sequence[Strategy]) -> list[str]:
    """The stage's name, with the beginning of the run's id where two have the same."""
    counts = Counter(s.stage for s in strategies)
    return [s.stage if counts[s.stage] == 1 else f"{s.stage} {s.run_id[:8]}" for s in strategies]
