"""One run's record on local disk, complete there before MLflow is told.

    run.json       the store, the experiment, the run's name, tags and start; its id once MLflow has given one
    000003.json    an entry: values, data sets, a folder of files, an addition to an ended run, or the end
    000003/        the files of that entry
    lock           held by the process that writes

An entry is removed when MLflow has it. Whoever finds the folder of a process that was killed sends what is
left. Entries are written under another name and renamed, so that none is ever half there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from qtrack.errors import QtrackError, StoreError
from qtrack.ledger.preflight import disk_is_full

HEADER, LOCK, DONE = "run.json", "lock", "done-"
BEGINNING_S = 60.0
"""A folder without a header may belong to a process that is about to write it; an older one does not."""
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Header:
    """What a run begins with."""

    record: str
    """A name of our own, a tag of the run: how it is found where MLflow's answer was lost."""
    store: str
    """Its URI, without secrets."""
    experiment: str
    name: str
    tags: Mapping[str, str]
    started_ms: int
    run_id: str | None = None
    adds_to: str | None = None
    """The record of an ended run, which this adds to and does not end; empty where it has no name."""


class Journal:
    """Entries of one run, in order."""

    def __init__(self, folder: Path, header: Header, lock: FileLock, *, fresh: bool) -> None:
        self.folder = folder
        self.header = header
        self.asked = not fresh
        """May MLflow have been asked already to create the run?"""
        self.complete = False
        """Has MLflow all of it, its end included?"""
        self._lock = lock
        self._last = max((int(path.stem) for path in folder.glob("[0-9]*")), default=0)

    @classmethod
    def create(cls, root: Path, header: Header) -> Self:
        """A new folder below ``root``; raises StoreError where it cannot be written."""
        folder = root / header.record
        with writing(folder):
            folder.mkdir(parents=True)
            lock = FileLock(folder / LOCK)
            lock.acquire()
            _write(folder / HEADER, asdict(header))
        return cls(folder, header, lock, fresh=True)

    @classmethod
    def abandoned(cls, folder: Path) -> Self | None:
        """What a dead process left; None where its process lives, or it never began: then it is removed."""
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
            header = Header(**json.loads((folder / HEADER).read_text(encoding="utf-8")))
        except (Timeout, FileNotFoundError):
            lock.release()
            if not (folder / HEADER).exists() and _age_s(folder) > BEGINNING_S:
                shutil.rmtree(folder, ignore_errors=True)
            return None
        return cls(folder, header, lock, fresh=False)

    @property
    def run_id(self) -> str | None:
        """As MLflow gave it; None before that."""
        return self.header.run_id

    def created(self, run_id: str) -> None:
        """MLflow has the run."""
        self.header = Header(**{**vars(self.header), "run_id": run_id})
        with writing(self.folder):
            _write(self.folder / HEADER, asdict(self.header))

    def append(self, kind: str, **content: Any) -> None:
        """Add an entry; raises StoreError where the disk does not take it."""
        with writing(self.folder):
            self._last += 1
            _write(self.folder / f"{self._last:06d}.json", {"kind": kind, **content})

    @contextmanager
    def files(self) -> Iterator[Path]:
        """A folder to write files into, which is an entry at the end unless it is empty."""
        waiting = self.folder / "writing"
        shutil.rmtree(waiting, ignore_errors=True)
        with writing(self.folder):
            waiting.mkdir()
            yield waiting
        if next(waiting.iterdir(), None) is None:
            return
        name = f"{self._last + 1:06d}"
        with writing(self.folder):
            waiting.rename(self.folder / name)
        self.append("files", folder=name)

    def entries(self) -> Iterator[tuple[Path, Entry]]:
        """What MLflow does not have yet, in order."""
        for path in sorted(self.folder.glob("[0-9]*.json")):
            yield path, json.loads(path.read_text(encoding="utf-8"))

    def ended(self) -> bool:
        """Has the run come to its end?"""
        return any(entry["kind"] in ("end", "close") for _, entry in self.entries())

    def last_written_ms(self) -> int:
        """When the process that wrote was last seen to."""
        return int(max(path.stat().st_mtime for path in self.folder.iterdir()) * 1000)

    def sent(self, path: Path) -> None:
        """MLflow has this entry."""
        path.unlink()
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)

    def remove(self) -> None:
        """MLflow has it all. Renamed first, for a half removed folder would look like a killed run."""
        self.complete = True
        done = self.folder.with_name(f"{DONE}{self.folder.name}")
        with suppress(FileNotFoundError):
            self.folder.rename(done)
        self._lock.release()
        shutil.rmtree(done, ignore_errors=True)

    def leave(self) -> None:
        """To whoever comes next."""
        self._lock.release()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line where the disk does not take what is written."""
    try:
        yield
    except QtrackError:  # said already, and some are OSErrors themselves
        raise
    except OSError as error:
        full = disk_is_full(error)
        said = "no space left on the device" if full else (error.strerror or str(error)).lower()
        advice = "; what was finished is kept: free some and start the same command again" if full else ""
        raise StoreError(f"cannot write to {folder}: {said}{advice}") from error


def _write(path: Path, data: Any) -> None:
    """Whole or not at all."""
    new = path.with_suffix(".new")
    try:
        with new.open("w", encoding="utf-8") as file:
            json.dump(data, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # somebody else was quicker
        return 0.0


def now_ms() -> int:
    """As MLflow counts time."""
    return int(time.time() * 1000)
