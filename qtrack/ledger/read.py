"""Finds recorded stages by the names that people use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow.entities import Run

from qtrack.errors import RunNotFound
from qtrack.ledger.names import CAMPAIGN, STAGE, Tag
from qtrack.ledger.references import as_referred, references_in
from qtrack.ledger.registry import SCHEME, run_behind
from qtrack.ledger.store import Store
from qtrack.ledger.strategy import number, whole

PAGE = 1000
MIN_PREFIX = 4
MAX_LISTED = 12
_HEX = frozenset("0123456789abcdef")


class Reader:
    """Finds runs in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def experiments(self) -> dict[str, str]:
        """Names of all active experiments, by id."""
        found: dict[str, str] = {}
        token: str | None = None
        with self.store.calling("list the experiments") as client:
            while True:
                page = client.search_experiments(max_results=PAGE, page_token=token)
                found |= {experiment.experiment_id: experiment.name for experiment in page}
                token = page.token
                if not token:
                    return found

    def stages(self, campaign: str, experiments: Sequence[str]) -> list[Run]:
        """All stages of a campaign in their order, whether it executed them or refers to earlier runs.

        One that was recorded twice is there twice.
        """
        runs = self._search(experiments, tagged(Tag.KIND, STAGE), tagged(Tag.CAMPAIGN, campaign))
        runs += self._referred(campaign, experiments)
        return sorted(runs, key=lambda run: (_index(run), run.info.start_time))

    def _referred(self, campaign: str, experiments: Sequence[str]) -> list[Run]:
        owner = self._campaign_run(campaign, experiments)
        references = list(references_in(owner)) if owner else []
        if owner is None or not references:
            return []
        ids = ", ".join(f"'{run_id}'" for run_id in {one.run for one in references} if set(run_id) <= _HEX)
        found = {_id(run): run for run in self._search(experiments, f"attributes.run_id IN ({ids})")}
        return [as_referred(found[one.run], one, owner) for one in references if one.run in found]

    def finished(self, experiments: Sequence[str], *conditions: str) -> list[Run]:
        """All stages that finished and meet further conditions, the oldest first."""
        done = "attributes.status = 'FINISHED'"
        return self._search(experiments, tagged(Tag.KIND, STAGE), done, *conditions)[::-1]

    def running(self, experiments: Sequence[str]) -> list[Run]:
        """All runs of qtrack's, of whichever kind, that have not ended, the oldest first."""
        return self._search(experiments, f"tags.`{Tag.KIND}` != ''", "attributes.status = 'RUNNING'")[::-1]

    def latest_campaign(self, experiments: Sequence[str]) -> str | None:
        """The id of the campaign that was opened last."""
        runs = self._search(experiments, tagged(Tag.KIND, CAMPAIGN), limit=1)
        return next((run.data.tags.get(Tag.CAMPAIGN) for run in runs), None)

    def campaign_named(self, reference: str, experiments: Sequence[str]) -> str:
        """A campaign by its id or a unique beginning of it."""
        runs = self._search(experiments, tagged(Tag.KIND, CAMPAIGN), _like(Tag.CAMPAIGN, reference))
        names = dict.fromkeys(run.data.tags[Tag.CAMPAIGN] for run in runs)
        found = [name for name in names if name.startswith(reference)]
        if reference in found:
            return reference
        if len(found) != 1:
            raise RunNotFound(
                _unclear("campaign", reference, found or self._campaigns(experiments), bool(found))
            )
        return str(found[0])

    def campaign_run(self, campaign: str, experiments: Sequence[str]) -> Run:
        """The run of a campaign itself."""
        found = self._campaign_run(campaign, experiments)
        if found is None:
            raise RunNotFound(f"the run of the campaign {campaign!r} was deleted")
        return found

    def _campaign_run(self, campaign: str, experiments: Sequence[str]) -> Run | None:
        runs = self._search(experiments, tagged(Tag.KIND, CAMPAIGN), tagged(Tag.CAMPAIGN, campaign), limit=1)
        return runs[0] if runs else None

    def run(self, reference: str, experiments: Sequence[str]) -> Run:
        """The stage that a reference names; raises RunNotFound with what there is instead."""
        if reference.startswith(SCHEME):
            reference = run_behind(self.store, reference)
        campaign, slash, stage = reference.partition("/")
        if slash:
            return self._stage_of(self.campaign_named(campaign, experiments), stage, reference, experiments)
        latest = self.latest_campaign(experiments)
        candidates = self.stages(latest, experiments) if latest else []
        found = _last_of_each([run for run in candidates if run.data.tags.get(Tag.STAGE) == reference])
        found += [
            run for run in self._with_prefix(reference, experiments) if run.info.run_id not in map(_id, found)
        ]
        if len(found) != 1:
            raise RunNotFound(
                _unclear("run", reference, [_named(run) for run in found or candidates], bool(found))
            )
        return found[0]

    def _stage_of(self, campaign: str, stage: str, reference: str, experiments: Sequence[str]) -> Run:
        candidates = self.stages(campaign, experiments)
        found = _last_of_each([run for run in candidates if run.data.tags.get(Tag.STAGE) == stage])
        if not found:
            raise RunNotFound(_unclear("run", reference, [_named(run) for run in candidates], False))
        return found[0]

    def _with_prefix(self, reference: str, experiments: Sequence[str]) -> list[Run]:
        prefix = reference.lower()
        if len(prefix) < MIN_PREFIX or not set(prefix) <= _HEX:
            return []
        by_id = f"attributes.run_id LIKE '{prefix}%'"
        return [
            run
            for run in self._search(experiments, tagged(Tag.KIND, STAGE), by_id)
            if run.info.run_id.startswith(prefix)
        ]

    def _campaigns(self, experiments: Sequence[str]) -> list[str]:
        runs = self._search(experiments, tagged(Tag.KIND, CAMPAIGN), limit=MAX_LISTED)
        return [run.data.tags[Tag.CAMPAIGN] for run in runs]

    def _search(self, experiments: Sequence[str], *conditions: str, limit: int | None = None) -> list[Run]:
        """Runs that meet all conditions, the latest first."""
        return list(self._pages(experiments, " AND ".join(conditions), limit)) if experiments else []

    def _pages(self, experiments: Sequence[str], condition: str, limit: int | None) -> Iterator[Run]:
        token: str | None = None
        while True:
            with self.store.calling("search the runs") as client:
                page = client.search_runs(
                    list(experiments),
                    condition,
                    max_results=limit or PAGE,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
            yield from page
            token = page.token
            if not token or limit:
                return


def tagged(tag: str, value: str) -> str:
    """MLflow's filter for runs whose tag has this value."""
    return f"tags.`{tag}` = {_quoted(value)}"


def _like(tag: str, beginning: str) -> str:
    """Begins with; the signs that LIKE gives a meaning are left to match anything, and checked afterwards."""
    return f"tags.`{tag}` LIKE {_quoted(beginning + '%')}"


def _quoted(value: str) -> str:
    """MLflow's filters know no escapes: a value with both kinds of quotes cannot be asked for."""
    if "'" in value and '"' in value:
        raise RunNotFound(f"{value!r} cannot be the name of a run")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _index(run: Run) -> int:
    return whole(number(run.data.tags.get(Tag.INDEX))) or 0


def _last_of_each(runs: Sequence[Run]) -> list[Run]:
    """Of a stage that was recorded more than once, the last that finished, or else the last."""
    ranked = sorted(runs, key=lambda run: (run.info.status == "FINISHED", run.info.start_time))
    return ranked[-1:]


def _id(run: Run) -> str:
    return str(run.info.run_id)


def _named(run: Run) -> str:
    return f"{run.data.tags.get(Tag.STAGE) or run.info.run_name} ({_id(run)[:8]})"


def _unclear(what: str, reference: str, candidates: Sequence[str], ambiguous: bool) -> str:
    listed = ", ".join(candidates[:MAX_LISTED]) + (", ..." if len(candidates) > MAX_LISTED else "")
    if ambiguous:
        return f"{what} {reference!r} is ambiguous: {listed}"
    return (
        f"no {what} {reference!r}; there are {listed}"
        if listed
        else f"no {what} {reference!r}: none are recorded here"
    )
