"""Tables of what was found left behind by processes that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtrack.report.cells import NONE
from qtrack.report.tables import Column, Table

if TYPE_CHECKING:
    from qtrack.ledger.repair import Repaired
    from qtrack.ledger.spool import Recovered


def recovered(found: Sequence[Recovered]) -> Table:
    """A row for each record that waited."""
    columns = (Column("run", "left"), Column("id", "left"), Column("sent"), Column("", "left"))
    rows = (
        (
            one.name,
            _short(one.run_id),
            str(one.entries),
            f"waits: {one.trouble}" if one.trouble else "complete",
        )
        for one in found
    )
    return Table(columns, tuple(rows))


def repaired(found: Sequence[Repaired]) -> Table:
    """A row for each run that was running."""
    titles = ("run", "id", "kind", "heartbeat", "")
    rows = (
        (
            one.name,
            _short(one.run_id),
            one.kind,
            one.heartbeat or NONE,
            "ended as KILLED" if one.ended else "alive",
        )
        for one in found
    )
    return Table(tuple(Column(title, "left") for title in titles), tuple(rows))


def _short(run_id: str | None) -> str:
    return run_id[:8] if run_id else NONE
