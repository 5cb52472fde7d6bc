"""Which classes gained or lost against the float model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qtrack.errors import InputError
from qtrack.report.fit import fitted
from qtrack.report.tables import Column, Table
from qtrack.report.titles import titles_of
from qtrack.report.view import View

if TYPE_CHECKING:
    from qtrack.ledger import Strategy
    from qtrack.ledger.outcomes import Samples


class ClassChange(NamedTuple):
    """How many samples of a class have a lower and a higher score than under the float model."""

    label: int
    samples: int
    lost: int
    gained: int

    @property
    def net(self) -> int:
        return self.gained - self.lost


def class_changes(found: Samples) -> dict[int, ClassChange]:
    """By label; none where the task has no labels."""
    labels = found.quantized.labels
    if labels is None:
        return {}
    change = found.quantized.scores - found.baseline.scores
    return {int(label): _change(int(label), change[labels == label]) for label in np.unique(labels)}


def _change(label: int, change: Any) -> ClassChange:
    return ClassChange(label, len(change), int((change < 0).sum()), int((change > 0).sum()))


def classes_view(
    strategies: Sequence[Strategy], samples: Sequence[Samples], width: int | None = None
) -> View:
    """A row for each class, the largest loss over all strategies first; a column for each that changed any.

    Raises InputError where no labels are on record.
    """
    changes = [class_changes(found) for found in samples]
    if not any(changes):
        raise InputError("no labels are on record; classes are known where the task's labels() gives them")
    titles = titles_of(strategies)
    shown = [i for i, found in enumerate(changes) if any(one.lost or one.gained for one in found.values())]
    labels = _worst_first(changes)
    columns = (Column("class"), Column("samples"), *(Column(titles[i]) for i in shown))
    rows = tuple(
        (str(label), _count(label, changes), *(_cell(changes[i].get(label)) for i in shown))
        for label in labels
    )
    table = Table(columns, rows, tuple(_notes(titles, shown)))
    spare = range(len(columns) - 1, 2, -1)
    return View("classes", fitted(table, width, spare), list(_records(strategies, changes, labels)))


def _worst_first(changes: Sequence[dict[int, ClassChange]]) -> list[int]:
    labels = sorted({label for found in changes for label in found})
    return sorted(labels, key=lambda label: sum(found[label].net for found in changes if label in found))


def _count(label: int, changes: Sequence[dict[int, ClassChange]]) -> str:
    return str(max(found[label].samples for found in changes if label in found))


def _cell(change: ClassChange | None) -> str:
    if change is None:
        return ""
    return " ".join(
        part
        for part, count in ((f"-{change.lost}", change.lost), (f"+{change.gained}", change.gained))
        if count
    )


def _notes(titles: Sequence[str], shown: Sequence[int]) -> Iterator[str]:
    if shown:
        yield "samples that lost (-) and gained (+) against float; the largest loss over all strategies first"
    same = [title for i, title in enumerate(titles) if i not in shown]
    if same:
        yield f"as float on every sample: {', '.join(same)}"


def _records(
    strategies: Sequence[Strategy], changes: Sequence[dict[int, ClassChange]], labels: Sequence[int]
) -> Iterator[dict[str, Any]]:
    for label in labels:
        for strategy, found in zip(strategies, changes, strict=True):
            if label in found:
                one = found[label]
                yield {"label": label, "stage": strategy.stage, "run_id": strategy.run_id} | {
                    "samples": one.samples,
                    "lost": one.lost,
                    "gained": one.gained,
                    "net": one.net,
                }
