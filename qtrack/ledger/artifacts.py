"""Files of a run, copied to where they can be read; whatever is wrong with them is one line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qtrack.errors import StoreError
from qtrack.ledger.rows import RunRow
from qtrack.ledger.store import Store

MAX_RECORD_BYTES = 64_000_000


class Artifacts:
    """Those of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def text(self, run: RunRow, path: str) -> str:
        """The text of a file; raises StoreError where it cannot be had."""
        with self.copy(run, path) as file:
            try:
                if file.stat().st_size > MAX_RECORD_BYTES:
                    raise corrupt(run, path, ValueError(f"it has more than {MAX_RECORD_BYTES:,} bytes"))
                return file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise corrupt(run, path, error) from error

    @contextmanager
    def copy(self, run: RunRow, path: str) -> Iterator[Path]:
        """A copy of a file or folder; raises StoreError where it cannot be had."""
        with self.copies(run, [path]) as folder:
            yield folder / path

    @contextmanager
    def copies(self, run: RunRow, needed: Sequence[str], wanted: Sequence[str] = ()) -> Iterator[Path]:
        """A folder with copies of what is needed, and of what is wanted if it is there."""
        with tempfile.TemporaryDirectory(prefix="qtrack-") as folder:
            with self.store.calling(f"read the files of the run {shown(run)}") as client:
                present = {file.path for file in client.list_artifacts(run.run_id)}
                for path in present & {*needed, *wanted}:
                    client.download_artifacts(run.run_id, path, folder)
            missing = [path for path in needed if path not in present]
            if missing:
                raise StoreError(f"the run {shown(run)} has left no {missing[0]}")
            yield Path(folder)


def shown(run: RunRow) -> str:
    """A run as people know it."""
    return f"{run.name!r} ({run.run_id[:8]}, {run.status})"


def corrupt(run: RunRow, path: str, error: Exception) -> StoreError:
    """One line on a file that is not what it was."""
    return StoreError(f"{path} of the run {shown(run)} is corrupt: {str(error).splitlines()[0]}")
