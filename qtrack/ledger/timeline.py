"""All that the campaigns of an experiment came to, in the order of time: executed there, or referred to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qtrack.ledger.references import as_referred, references_in

if TYPE_CHECKING:
    from qtrack.ledger.read import Reader
    from qtrack.ledger.rows import RunRow


def timeline(reader: Reader, experiments: Sequence[str]) -> list[RunRow]:
    """Finished stages, the oldest first; one that a campaign refers to stands at its time as well."""
    finished = reader.finished(experiments)
    known = {run.run_id: run for run in finished}
    referred = [run for owner in reader.campaigns(experiments) for run in _referred(owner, known)]
    return sorted([*finished, *referred], key=lambda run: run.started_ms)


def _referred(owner: RunRow, known: Mapping[str, RunRow]) -> Iterator[RunRow]:
    for reference in references_in(owner):
        if reference.run in known:
            run = as_referred(known[reference.run], reference, owner)
            yield replace(run, started_ms=owner.started_ms + reference.index)
