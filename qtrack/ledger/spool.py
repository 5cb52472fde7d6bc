"""All records of a store that are not yet in it, in a local folder.

Whatever is recorded is written there first and sent at once. Where the store does not answer, work goes on,
the user is told once, and what waits is sent at the next contact, after a while, or by ``qtrack sync``: in
order, and each value once. Before a record has begun, a store that is away is an error: nothing is lost yet.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from qtrack.errors import StoreAway, StoreError
from qtrack.ledger.journal import DONE, Header, Journal, now_ms, writing
from qtrack.ledger.quiet import hurried
from qtrack.ledger.sending import send
from qtrack.ledger.store import Store

log = logging.getLogger("qtrack")

RETRY_S = 15.0
SLOW_S = 5.0
REST = 3.0
"""A store that is slow is left alone for so many times as long as it took to answer."""


class Recovered(NamedTuple):
    """What was found of a process that is gone, and what became of it."""

    name: str
    run_id: str | None
    entries: int
    """Sent now."""
    trouble: str = ""
    """Why the rest still waits; empty where the store has it all."""


class Ended(NamedTuple):
    """A run that something is added to after its end."""

    experiment: str
    name: str
    run_id: str | None
    """None as long as the store has not been told of it."""
    record: str
    """Its record's name, by which it is found then."""


class Spool:
    """Opens runs, and sends what they record."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.home / "spool"
        self._journals: list[Journal] = []
        """Of this process, the oldest first."""
        self._lenient = self._has_begun = False
        self._next_try = 0.0
        self._told = self._away = False
        self.waiting = 0
        """Runs of the last session that the store has not all of."""

    @contextmanager
    def session(self) -> Iterator[None]:
        """Records are written in here; at its end the store has them all, or the user is told that not."""
        try:
            yield
        except StoreAway:
            self._told = True
            raise
        finally:
            self._close()

    @contextmanager
    def begun(self) -> Iterator[None]:
        """From here on a store that is away stops no work."""
        self._lenient = self._has_begun = True
        try:
            yield
        finally:
            self._lenient = False

    def open(self, experiment: str, name: str, tags: Mapping[str, str]) -> Journal:
        """A run's journal, and the run in MLflow where that can be reached."""
        return self._begin(Header(uuid.uuid4().hex, str(self.store), experiment, name, dict(tags), now_ms()))

    def add_to(self, run: Ended) -> Journal:
        """A journal of what is added to a run that has ended, or will have when this one is sent."""
        record, store = uuid.uuid4().hex, str(self.store)
        return self._begin(
            Header(record, store, run.experiment, run.name, {}, now_ms(), run.run_id, run.record)
        )

    def _begin(self, header: Header) -> Journal:
        journal = Journal.create(self.folder, header)
        self._journals.append(journal)
        self.send()
        return journal

    def send(self, *, now: bool = False) -> None:
        """Send all that waits; a store that is away is asked again after a while, unless it must be now."""
        if not now and time.monotonic() < self._next_try:
            return
        began = time.monotonic()
        try:
            self._send_all()
        except StoreAway as error:
            if not self._lenient:
                raise
            self._gone(error)
            return
        self._away = False
        took = time.monotonic() - began
        if self._told and took < SLOW_S:
            self._told = False
            log.info("the tracking store answers again, and has what waited")
        if took > SLOW_S:
            self._rest(
                REST * took, f"the tracking store is slow ({took:.0f} s for one record). The work goes on"
            )

    def _send_all(self) -> None:
        with hurried(timeout_s=10) if self._lenient else hurried():
            for journal in tuple(self._journals):
                send(journal, self.store)
                if journal.complete:
                    self._journals.remove(journal)

    @property
    def resting(self) -> bool:
        """Did the store not answer just now, so that it is not to be asked for a while?"""
        return self._lenient and self._away and time.monotonic() < self._next_try

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Questions to the store while work goes on: not worth a long wait where it does not answer."""
        try:
            with hurried(timeout_s=10):
                yield
        except StoreAway as error:
            self._gone(error)
            raise

    def _gone(self, error: StoreAway) -> None:
        self._away = True
        self._rest(RETRY_S, f"{error}. The work goes on; its record waits in {self.folder}")

    def _rest(self, seconds: float, said: str) -> None:
        self._next_try = time.monotonic() + seconds
        if not self._told:
            self._told = True
            log.warning(said)

    def _close(self) -> None:
        """Try once more, and say what still waits; what the store was never told of is forgotten."""
        self._lenient = True
        try:
            self.send(now=True)
        except StoreError as error:
            log.warning(error)
        for journal in self._journals:
            if self._has_begun or journal.run_id:
                journal.leave()
            else:
                journal.remove()
        if self._has_begun and self._journals:
            log.warning("%d runs are not all in the tracking store; later: qtrack sync", len(self._journals))
        self.waiting = len(self._journals) if self._has_begun else 0
        self._journals.clear()
        self._lenient = self._has_begun = self._told = self._away = False
        self._next_try = 0.0

    def recover(self) -> list[Recovered]:
        """Send what processes that are gone have left; a run that they did not end is ended as KILLED."""
        with writing(self.folder):
            for done in self.folder.glob(f"{DONE}*"):
                shutil.rmtree(done, ignore_errors=True)
            folders = [path for path in self.folder.glob("*") if path.is_dir()]
        found = [journal for path in folders if (journal := Journal.abandoned(path))]
        ordered = sorted(found, key=lambda journal: journal.header.started_ms)
        return [self._recovered(journal) for journal in ordered]

    def _recovered(self, journal: Journal) -> Recovered:
        header = journal.header
        if header.store != str(self.store):
            journal.leave()
            return Recovered(header.name, header.run_id, 0, f"it belongs to {header.store}")
        if not journal.ended() and header.adds_to is not None:
            journal.append("close")
        elif not journal.ended():
            journal.append("end", status="KILLED", ended_ms=journal.last_written_ms())
        try:
            count = send(journal, self.store)
        except StoreError as error:
            journal.leave()
            return Recovered(header.name, journal.run_id, 0, str(error))
        return Recovered(header.name, journal.run_id, count)
