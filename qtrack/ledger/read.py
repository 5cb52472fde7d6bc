"""Finds recorded stages by the names that people use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from qtrack.errors import RunNotFound
from qtrack.ledger.client_source import ClientSource
from qtrack.ledger.names import CAMPAIGN, STAGE, Tag
from qtrack.ledger.references import as_referred, references_in
from qtrack.ledger.registry import SCHEME, run_behind
from qtrack.ledger.rows import Query, RunRow, Source
from qtrack.ledger.sql_source import sql_source
from qtrack.ledger.store import Store
from qtrack.ledger.strategy import number, whole

MIN_PREFIX, WHOLE = 4, 32
MAX_LISTED, AT_ONCE = 12, 500
_HEX = frozenset("0123456789abcdef")


class Reader:
    """Finds runs in a store."""

    def __init__(self, store: Store, source: Source | None = None) -> None:
        self.store = store
        self._given = source

    @cached_property
    def source(self) -> Source:
        """The quickest way to read this store."""
        return self._given or sql_source(self.store) or ClientSource(self.store)

    def experiments(self) -> dict[str, str]:
        """Names of all active experiments, by id."""
        return self.source.experiments()

    def stages(self, campaign: RunRow) -> list[RunRow]:
        """All stages of a campaign in their order, whether it executed them or refers to earlier runs.

        One that was recorded twice is there twice.
        """
        tags = {Tag.KIND: STAGE, Tag.CAMPAIGN: campaign.tags.get(Tag.CAMPAIGN, "")}
        runs = [*self.source.runs(Query([campaign.experiment_id], tags)), *self._referred(campaign)]
        return sorted(runs, key=lambda run: (_index(run), run.started_ms))

    def _referred(self, owner: RunRow) -> list[RunRow]:
        references = list(references_in(owner))
        found = self.with_ids([one.run for one in references], [owner.experiment_id])
        return [as_referred(found[one.run], one, owner) for one in references if one.run in found]

    def with_ids(self, ids: Iterable[str], experiments: Sequence[str]) -> dict[str, RunRow]:
        """The runs with these whole ids, by them; what is no id, or of no run, is left out."""
        known = sorted({one for one in ids if set(one) <= _HEX})
        parts = [known[first : first + AT_ONCE] for first in range(0, len(known), AT_ONCE)]
        return {run.run_id: run for part in parts for run in self.source.runs(Query(experiments, ids=part))}

    def finished(
        self, experiments: Sequence[str], tags: Mapping[str, str] | None = None, *, latest_first: bool = False
    ) -> Iterator[RunRow]:
        """All stages that finished and have these values of tags, the oldest first unless it is said."""
        wanted = {Tag.KIND: STAGE, **(tags or {})}
        return self.source.runs(Query(experiments, wanted, status="FINISHED", oldest_first=not latest_first))

    def running(self, experiments: Sequence[str]) -> Iterator[RunRow]:
        """All runs of qtrack's, of whichever kind, that have not ended, the oldest first."""
        return self.source.runs(
            Query(experiments, beginning=(Tag.KIND, ""), status="RUNNING", oldest_first=True)
        )

    def campaigns(self, experiments: Sequence[str], limit: int | None = None) -> Iterator[RunRow]:
        """The runs of campaigns themselves, the latest first."""
        return self.source.runs(Query(experiments, {Tag.KIND: CAMPAIGN}, limit=limit))

    def campaign_named(self, reference: str, experiments: Sequence[str]) -> RunRow:
        """The run of a campaign by its id or a unique beginning of it."""
        query = Query(experiments, {Tag.KIND: CAMPAIGN}, beginning=(Tag.CAMPAIGN, reference))
        found: dict[str, RunRow] = {}
        for run in self.source.runs(query):
            if run.tags[Tag.CAMPAIGN].startswith(reference):
                found.setdefault(run.tags[Tag.CAMPAIGN], run)
            if reference in found or len(found) > MAX_LISTED:
                break
        if reference in found:
            return found[reference]
        if len(found) != 1:
            listed = list(found) or [
                run.tags[Tag.CAMPAIGN] for run in self.campaigns(experiments, MAX_LISTED + 1)
            ]
            raise RunNotFound(_unclear("campaign", reference, listed, bool(found)))
        return next(iter(found.values()))

    def campaign_run(self, campaign: str, experiments: Sequence[str]) -> RunRow:
        """The run of a campaign itself."""
        query = Query(experiments, {Tag.KIND: CAMPAIGN, Tag.CAMPAIGN: campaign}, limit=1)
        for run in self.source.runs(query):
            return run
        raise RunNotFound(f"the run of the campaign {campaign!r} was deleted")

    def run(self, reference: str, experiments: Sequence[str]) -> RunRow:
        """The stage that a reference names; raises RunNotFound with what there is instead."""
        if reference.startswith(SCHEME):
            reference = run_behind(self.store, reference)
        campaign, slash, stage = reference.partition("/")
        if slash:
            return self._stage_of(self.campaign_named(campaign, experiments), stage, reference)
        if len(reference) == WHOLE and (whole_id := self._stage_with_id(reference, experiments)):
            return whole_id
        candidates = [run for latest in self.campaigns(experiments, 1) for run in self.stages(latest)]
        found = _last_of_each([run for run in candidates if run.tags.get(Tag.STAGE) == reference])
        known = {run.run_id for run in found}
        found += [run for run in self._with_prefix(reference, experiments) if run.run_id not in known]
        if len(found) != 1:
            raise RunNotFound(
                _unclear("run", reference, [_named(run) for run in found or candidates], bool(found))
            )
        return found[0]

    def _stage_with_id(self, reference: str, experiments: Sequence[str]) -> RunRow | None:
        found = self.with_ids([reference.lower()], experiments).get(reference.lower())
        return found if found and found.tags.get(Tag.KIND) == STAGE else None

    def _stage_of(self, campaign: RunRow, stage: str, reference: str) -> RunRow:
        candidates = self.stages(campaign)
        found = _last_of_each([run for run in candidates if run.tags.get(Tag.STAGE) == stage])
        if not found:
            raise RunNotFound(_unclear("run", reference, [_named(run) for run in candidates], False))
        return found[0]

    def _with_prefix(self, reference: str, experiments: Sequence[str]) -> list[RunRow]:
        prefix = reference.lower()
        if len(prefix) < MIN_PREFIX or not set(prefix) <= _HEX:
            return []
        query = Query(experiments, {Tag.KIND: STAGE}, id_prefix=prefix, limit=MAX_LISTED + 1)
        return list(self.source.runs(query))


def _index(run: RunRow) -> int:
    return whole(number(run.tags.get(Tag.INDEX))) or 0


def _last_of_each(runs: Sequence[RunRow]) -> list[RunRow]:
    """Of a stage that was recorded more than once, the last that finished, or else the last."""
    return sorted(runs, key=lambda run: (run.status == "FINISHED", run.started_ms))[-1:]


def _named(run: RunRow) -> str:
    return f"{run.tags.get(Tag.STAGE) or run.name} ({run.run_id[:8]})"


def _unclear(what: str, reference: str, candidates: Sequence[str], ambiguous: bool) -> str:
    listed = ", ".join(candidates[:MAX_LISTED]) + (", ..." if len(candidates) > MAX_LISTED else "")
    if ambiguous:
        return f"{what} {reference!r} is ambiguous: {listed}"
    return (
        f"no {what} {reference!r}; there are {listed}"
        if listed
        else f"no {what} {reference!r}: none are recorded here"
    )
