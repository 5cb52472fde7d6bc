"""Finds recorded stages by the names that people use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

MIN_PREFIX = 4
MAX_LISTED = 12
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

    def stages(self, campaign: str, experiments: Sequence[str]) -> list[RunRow]:
        """All stages of a campaign in their order, whether it executed them or refers to earlier runs.

        One that was recorded twice is there twice.
        """
        runs = self.source.runs(Query(experiments, {Tag.KIND: STAGE, Tag.CAMPAIGN: campaign}))
        runs += self._referred(campaign, experiments)
        return sorted(runs, key=lambda run: (_index(run), run.started_ms))

    def _referred(self, campaign: str, experiments: Sequence[str]) -> list[RunRow]:
        owner = self._campaign_run(campaign, experiments)
        references = list(references_in(owner)) if owner else []
        if owner is None or not references:
            return []
        ids = sorted({one.run for one in references if set(one.run) <= _HEX})
        found = {run.run_id: run for run in self.source.runs(Query(experiments, ids=ids))}
        return [as_referred(found[one.run], one, owner) for one in references if one.run in found]

    def finished(self, experiments: Sequence[str], tags: Mapping[str, str] | None = None) -> list[RunRow]:
        """All stages that finished and have these values of tags, the oldest first."""
        query = Query(experiments, {Tag.KIND: STAGE, **(tags or {})}, status="FINISHED")
        return self.source.runs(query)[::-1]

    def running(self, experiments: Sequence[str]) -> list[RunRow]:
        """All runs of qtrack's, of whichever kind, that have not ended, the oldest first."""
        return self.source.runs(Query(experiments, beginning=(Tag.KIND, ""), status="RUNNING"))[::-1]

    def campaigns(self, experiments: Sequence[str]) -> list[RunRow]:
        """The runs of all campaigns themselves, the oldest first."""
        return self.source.runs(Query(experiments, {Tag.KIND: CAMPAIGN}))[::-1]

    def latest_campaign(self, experiments: Sequence[str]) -> str | None:
        """The id of the campaign that was opened last."""
        runs = self.source.runs(Query(experiments, {Tag.KIND: CAMPAIGN}, limit=1))
        return next((run.tags.get(Tag.CAMPAIGN) for run in runs), None)

    def campaign_named(self, reference: str, experiments: Sequence[str]) -> str:
        """A campaign by its id or a unique beginning of it."""
        query = Query(experiments, {Tag.KIND: CAMPAIGN}, beginning=(Tag.CAMPAIGN, reference))
        names = dict.fromkeys(run.tags[Tag.CAMPAIGN] for run in self.source.runs(query))
        found = [name for name in names if name.startswith(reference)]
        if reference in found:
            return reference
        if len(found) != 1:
            raise RunNotFound(
                _unclear("campaign", reference, found or self._campaigns(experiments), bool(found))
            )
        return str(found[0])

    def campaign_run(self, campaign: str, experiments: Sequence[str]) -> RunRow:
        """The run of a campaign itself."""
        found = self._campaign_run(campaign, experiments)
        if found is None:
            raise RunNotFound(f"the run of the campaign {campaign!r} was deleted")
        return found

    def _campaign_run(self, campaign: str, experiments: Sequence[str]) -> RunRow | None:
        query = Query(experiments, {Tag.KIND: CAMPAIGN, Tag.CAMPAIGN: campaign}, limit=1)
        return next(iter(self.source.runs(query)), None)

    def run(self, reference: str, experiments: Sequence[str]) -> RunRow:
        """The stage that a reference names; raises RunNotFound with what there is instead."""
        if reference.startswith(SCHEME):
            reference = run_behind(self.store, reference)
        campaign, slash, stage = reference.partition("/")
        if slash:
            return self._stage_of(self.campaign_named(campaign, experiments), stage, reference, experiments)
        latest = self.latest_campaign(experiments)
        candidates = self.stages(latest, experiments) if latest else []
        found = _last_of_each([run for run in candidates if run.tags.get(Tag.STAGE) == reference])
        known = {run.run_id for run in found}
        found += [run for run in self._with_prefix(reference, experiments) if run.run_id not in known]
        if len(found) != 1:
            raise RunNotFound(
                _unclear("run", reference, [_named(run) for run in found or candidates], bool(found))
            )
        return found[0]

    def _stage_of(self, campaign: str, stage: str, reference: str, experiments: Sequence[str]) -> RunRow:
        candidates = self.stages(campaign, experiments)
        found = _last_of_each([run for run in candidates if run.tags.get(Tag.STAGE) == stage])
        if not found:
            raise RunNotFound(_unclear("run", reference, [_named(run) for run in candidates], False))
        return found[0]

    def _with_prefix(self, reference: str, experiments: Sequence[str]) -> list[RunRow]:
        prefix = reference.lower()
        if len(prefix) < MIN_PREFIX or not set(prefix) <= _HEX:
            return []
        return self.source.runs(Query(experiments, {Tag.KIND: STAGE}, id_prefix=prefix))

    def _campaigns(self, experiments: Sequence[str]) -> list[str]:
        runs = self.source.runs(Query(experiments, {Tag.KIND: CAMPAIGN}, limit=MAX_LISTED))
        return [run.tags[Tag.CAMPAIGN] for run in runs]


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
