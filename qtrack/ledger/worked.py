"""Which remedies have worked for which causes, as the store's own stages tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from qtrack.finding import Worked
from qtrack.ledger.names import Metric, Tag

if TYPE_CHECKING:
    from qtrack.ledger.rows import RunRow

ENOUGH = 0.5
"""Share of the drop that may be left of it where a remedy has worked."""


class Try(NamedTuple):
    """A stage that started from a diagnosed one."""

    cause: str
    use: str
    worked: bool


def tried_remedies(runs: Sequence[RunRow]) -> dict[str, dict[str, Worked]]:
    """By cause and function; ``runs`` are all finished stages, and what campaigns refer to, as a timeline.

    A stage counts once, in the campaign that executed it, however many others refer to it.
    """
    found: dict[str, dict[str, Worked]] = {}
    for (cause, use), counts in _counted(_tries(runs)).items():
        found.setdefault(cause, {})[use] = Worked(counts[True], counts.total())
    return found


def _counted(tries: Iterator[Try]) -> dict[tuple[str, str], Counter[bool]]:
    counts: dict[tuple[str, str], Counter[bool]] = {}
    for one in tries:
        counts.setdefault((one.cause, one.use), Counter())[one.worked] += 1
    return counts


def _tries(runs: Sequence[RunRow]) -> Iterator[Try]:
    diagnosed = {_place(run.tags, Tag.STAGE): run for run in runs if Tag.CAUSE in run.tags}
    for after in runs:
        before = diagnosed.get(_place(after.tags, Tag.STARTED_FROM))
        if before is None or Tag.ORIGIN in after.tags:
            continue
        drops = [run.metrics.get(Metric.DROP) for run in (before, after)]
        if drops[0] is not None and drops[1] is not None and drops[0] > 0:
            use = after.tags.get(Tag.USE) or after.tags.get(Tag.STAGE) or after.name
            yield Try(before.tags[Tag.CAUSE], use, drops[1] <= ENOUGH * drops[0])


def _place(tags: Mapping[str, str], name: str) -> tuple[str | None, str | None]:
    """A stage by its campaign and its name there."""
    return tags.get(Tag.CAMPAIGN), tags.get(name)
