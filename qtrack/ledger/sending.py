"""Entries of a journal as calls of MLflow, each of which may be made again without effect.

That is what makes each value arrive once, whenever a process dies or an answer is lost: a run is looked for
by its record's name before it is created a second time; points carry their own time, and MLflow drops exact
duplicates; params, tags, data sets, files and the end of a run overwrite themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from qtrack.errors import StoreError
from qtrack.ledger.client_source import tagged
from qtrack.ledger.journal import Entry, Header, Journal
from qtrack.ledger.names import Shown, Tag
from qtrack.ledger.notes import amended
from qtrack.ledger.store import Store

TAKEN = ("UNIQUE constraint failed", "duplicate key value", "Duplicate entry")
"""What SQLite, PostgreSQL and MySQL say where MLflow finds no row, and is too late to add it."""
SAID = {"values": "the metrics", "inputs": "the data sets", "files": "the files", "amend": "the diagnosis"}
MAX_TAG = 8000
BATCH = 800  # MLflow takes 1,000 values a call, of which 100 may be tags and 100 params


def send(journal: Journal, store: Store) -> int:
    """Send what the journal holds, and count it; raises StoreAway, or StoreError where MLflow refuses it."""
    count = 0
    if journal.run_id is None:
        _create(journal, store)
        count += 1
    for path, entry in journal.entries():
        with store.calling(f"record {_said(entry)} of the run {journal.header.name!r}") as client:
            SENDERS[entry["kind"]](client, str(journal.run_id), entry, journal.folder)
        count += 1
        if entry["kind"] in ("end", "close"):
            journal.remove()
        else:
            journal.sent(path)
    return count


def _create(journal: Journal, store: Store) -> None:
    header = journal.header
    if header.adds_to is not None:
        journal.created(_ended(store, header))
        return
    with store.calling(f"open the run {header.name!r}") as client:
        found = _found(client, header.experiment, header.record) if journal.asked else None
        journal.asked = True
        tags = {**header.tags, Tag.RECORD: header.record}
        run_id = (
            found or client.create_run(header.experiment, header.started_ms, tags, header.name).info.run_id
        )
    journal.created(run_id)


def _ended(store: Store, header: Header) -> str:
    """The run that is added to, which the store has by now: its own journal is older, and sent before."""
    with store.calling(f"find the run {header.name!r}") as client:
        found = _found(client, header.experiment, str(header.adds_to))
        if found is None:
            raise StoreError(f"the run {header.name!r} is not in the store: nothing can be added to it")
        return found


def _found(client: MlflowClient, experiment: str, record: str) -> str | None:
    runs = client.search_runs([experiment], tagged(Tag.RECORD, record), max_results=1)
    return runs[0].info.run_id if runs else None


def _said(entry: Entry) -> str:
    return SAID.get(entry["kind"], "the end")


def _values(client: MlflowClient, run: str, entry: Entry, folder: Path) -> None:
    points = [Metric(*point) for point in entry["points"]]
    params = [Param(name, value) for name, value in entry["params"].items()]
    tags = [RunTag(name, value) for name, value in entry["tags"].items()]
    while points or params or tags:
        client.log_batch(run, metrics=points[:BATCH], params=params, tags=tags)
        points, params, tags = points[BATCH:], [], []


def _inputs(client: MlflowClient, run: str, entry: Entry, folder: Path) -> None:
    """A data set that another process has put in at this moment is refused, and found when asked again."""
    datasets = [_dataset(**one) for one in entry["datasets"]]
    for tries_left in reversed(range(len(datasets) + 1)):
        try:
            client.log_inputs(run, datasets=datasets)
            break
        except MlflowException as error:
            if not (tries_left and any(word in str(error) for word in TAKEN)):
                raise


def _dataset(context: str, **fields: str) -> DatasetInput:
    return DatasetInput(Dataset(**fields), [InputTag(Shown.CONTEXT, context)])


def _files(client: MlflowClient, run: str, entry: Entry, folder: Path) -> None:
    source = folder / entry["folder"]
    if not source.is_dir():
        raise StoreError(f"{source} is gone: files of the run {run} are lost")
    client.log_artifacts(run, str(source))


def _amend(client: MlflowClient, run: str, entry: Entry, folder: Path) -> None:
    """New tags in the place of all that are listed, and a paragraph of the note in that of the one before."""
    tags = client.get_run(run).data.tags
    for name in {*entry["names"]} & {*tags} - {*entry["tags"]}:
        client.delete_tag(run, name)
    note = amended(tags.get(Shown.NOTE, ""), entry["paragraph"])
    changed = {**entry["tags"], Shown.NOTE: note}
    client.log_batch(run, tags=[RunTag(name, value[:MAX_TAG]) for name, value in changed.items()])


def _close(client: MlflowClient, run: str, entry: Entry, folder: Path) -> None:
    """What was added is all there; the run's own end stays as it is."""


def _end(client: MlflowClient, run: str, entry: Entry, folder: Path) -> None:
    client.set_terminated(run, entry["status"], entry["ended_ms"])


SENDERS: Mapping[str, Callable[[MlflowClient, str, Entry, Path], Any]] = {
    "values": _values,
    "inputs": _inputs,
    "files": _files,
    "amend": _amend,
    "close": _close,
    "end": _end,
}
