"""All that the campaigns of an experiment came to, in the order of time: executed there, or referred to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

from qtrack.ledger.names import Tag
from qtrack.ledger.references import as_referred, references_in

if TYPE_CHECKING:
    from qtrack.ledger.read import Reader
    from qtrack.ledger.rows import RunRow


def timeline(reader: Reader, experiments: Sequence[str], most: int, stage: str | None = None) -> list[RunRow]:
    """Finished stages, the oldest first; one that a campaign refers to stands at its time as well.

    Of all, or of those with this name, no more than ``most``, and those the latest.
    """
    wanted = {Tag.STAGE: stage} if stage else {}
    executed = reader.finished(experiments, wanted, latest_first=True)
    referred = _referred(reader, experiments, stage)
    latest = islice(merge(executed, referred, key=lambda run: -run.started_ms), most)
    return sorted(latest, key=lambda run: run.started_ms)


def _referred(reader: Reader, experiments: Sequence[str], stage: str | None) -> Iterator[RunRow]:
    """The latest first."""
    for owner in reader.campaigns(experiments):
        references = [one for one in references_in(owner) if stage in (None, one.stage)]
        references.sort(key=lambda one: -one.index)
        known = reader.with_ids([one.run for one in references], [owner.experiment_id])
        for reference in references:
            run = known.get(reference.run)
            if run is not None and run.status == "FINISHED":
                at = owner.started_ms + reference.index
                yield replace(as_referred(run, reference, owner), started_ms=at)
