"""A record that is written where no store is: kept as files, and sent by whoever holds the store.

So a worker on another machine needs neither credentials nor the store itself, and only one process writes to
it. What a worker hands over is sent as what a dead process left behind is: in order, and each value once.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qtrack.errors import StoreAway
from qtrack.ledger.journal import writing
from qtrack.ledger.spool import Spool
from qtrack.ledger.store import Store
from qtrack.ledger.write import CampaignWriter, recorded_campaign
from qtrack.records import Known

if TYPE_CHECKING:
    from qtrack.finding import Worked
    from qtrack.ledger.write import Figures, Report
    from qtrack.recipe import Recipe
    from qtrack.records import Setting
    from qtrack.task import Task


class HeldLedger:
    """Implements Recorder; knows of no earlier run."""

    def __init__(
        self,
        folder: Path,
        store: str,
        experiment: str,
        tags: Mapping[str, str],
        figures: Figures | None = None,
        report: Report | None = None,
    ) -> None:
        """``store`` is the masked URI of where it goes later, ``experiment`` the id that it has there."""
        self._spool = _HeldSpool(_NoStore(folder, store, experiment))
        self._tags = tags
        self.id = ""
        """Of the campaign that was opened."""
        self._figures = figures
        self._report = report

    @contextmanager
    def campaign(self, setting: Setting) -> Iterator[CampaignWriter]:
        """With these tags on all its runs."""
        figures, report = self._figures, self._report
        with recorded_campaign(self._spool, setting, figures, report, self._tags) as campaign:
            self.id = campaign.id
            yield campaign

    def known(self, task: Task, *, question: str | None = None, execution: str | None = None) -> Known | None:
        return None

    def winners(self, task: Task) -> Sequence[Recipe]:
        return ()

    def worked(self) -> Callable[[str], Mapping[str, Worked]]:
        return lambda cause: {}

    def packed(self) -> bytes:
        """All that was recorded, as a tar file."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
            for path in sorted(self._spool.folder.glob("*")):
                tar.add(path, arcname=path.name)
        return packed.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Put it into another spool, from where it is sent; a half unpacked record is never seen there."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder.parent) as waiting,
            tarfile.open(fileobj=io.BytesIO(packed)) as tar,
        ):
            tar.extractall(waiting, filter="data")
            for record in Path(waiting).iterdir():
                record.rename(folder / record.name)


class _NoStore(Store):
    """Says no to all that is asked of it."""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        self.uri, self.home, self.seconds = uri, folder, 0.0
        self._experiment = experiment

    def experiment_for(self, name: str) -> str:
        return self._experiment

    def calling(self, doing: str) -> NoReturn:
        raise StoreAway(f"cannot {doing}: a worker has no store")


class _HeldSpool(Spool):
    """Sends nothing."""

    def send(self, *, now: bool = False) -> None:
        pass

    def _close(self) -> None:
        for journal in self._journals:
            journal.leave()
        self._journals.clear()

    def recover(self) -> Any:
        return []
