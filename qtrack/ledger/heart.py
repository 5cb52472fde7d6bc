"""Signs that the process which writes a run still lives: a tag that moves by itself, and who it is."""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qtrack.ledger.names import Tag

if TYPE_CHECKING:
    from qtrack.ledger.journal import Journal
    from qtrack.ledger.store import Store

log = logging.getLogger("qtrack.heartbeat")

BEAT_S = 15.0
PATIENCE_S = 1.0


@contextmanager
def beating(store: Store, journal: Journal) -> Iterator[None]:
    """Renew the run's heartbeat for as long as this lasts; one that fails would come too late later."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_S):
            if journal.run_id is None:
                continue
            try:
                store.client.set_tag(journal.run_id, Tag.HEARTBEAT, _now())
            except Exception as error:  # whatever MLflow raises while its store is away
                log.debug("no heartbeat: %s", error)

    thread = threading.Thread(target=beat, name="qtrack heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE_S)


def signs_of_life() -> dict[str, str]:
    """Tags of a run that begins in this process."""
    return {Tag.HEARTBEAT: _now(), Tag.PROCESS: json.dumps(_identity(os.getpid()))}


def is_alive(tags: Mapping[str, str], older_than_s: float) -> bool:
    """May the process behind a running run still live?

    Not if its heartbeat is older and, where it ran on this host, no process is what it was. On another host
    the heartbeat alone tells.
    """
    age_s = _age_s(tags.get(Tag.HEARTBEAT, ""))
    if age_s is not None and age_s <= older_than_s:
        return True
    try:
        known = json.loads(tags.get(Tag.PROCESS, "{}"))
        return bool(known == _identity(int(known["pid"])))
    except (ValueError, KeyError, TypeError):  # of an older version, or edited
        return False


def _age_s(text: str) -> float | None:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
    except (ValueError, TypeError):
        return None


def _identity(pid: int) -> dict[str, str | int]:
    """A process id is used again after a while; with its start it is not."""
    return {"host": platform.node(), "pid": pid, "started": _started(pid)}


def _started(pid: int) -> str:
    """In clock ticks since the machine's boot, and which boot; empty where there is no such process.

    Where the system has no ``/proc``, whether there is one is all that can be known.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else f"{boot}/{fields[19]}"
    except FileNotFoundError:
        return "alive" if not Path("/proc").is_dir() and _exists(pid) else ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
