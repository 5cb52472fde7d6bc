"""Runs that MLflow believes to be running and whose process is gone are ended as KILLED."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from qtrack.ledger.heart import BEAT_S, is_alive
from qtrack.ledger.journal import now_ms
from qtrack.ledger.names import Tag
from qtrack.ledger.read import Reader
from qtrack.ledger.rows import RunRow
from qtrack.ledger.store import Store

STALE_S = 4 * BEAT_S


class Repaired(NamedTuple):
    """A running run, and whether it was ended."""

    run_id: str
    name: str
    kind: str
    heartbeat: str
    ended: bool


def repair(
    store: Store, reader: Reader, experiments: Sequence[str], older_than_s: float = STALE_S
) -> list[Repaired]:
    """Look at all running runs of qtrack's, and end those that are dead."""
    return [_repaired(store, run, older_than_s) for run in reader.running(experiments)]


def _repaired(store: Store, run: RunRow, older_than_s: float) -> Repaired:
    tags = run.tags
    dead = not is_alive(tags, older_than_s)
    if dead:
        with store.calling(f"end the run {run.name!r}") as client:
            client.set_terminated(run.run_id, "KILLED", _last_seen_ms(tags.get(Tag.HEARTBEAT, "")))
    return Repaired(run.run_id, run.name, tags.get(Tag.KIND, ""), tags.get(Tag.HEARTBEAT, ""), dead)


def _last_seen_ms(heartbeat: str) -> int:
    try:
        return int(datetime.fromisoformat(heartbeat).timestamp() * 1000)
    except ValueError:  # a tag that somebody edited
        return now_ms()
