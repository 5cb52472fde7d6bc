"""Diagnoses, recorded with the finished run that they are about, whose status, end and metrics stay."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qtrack.errors import StoreError
from qtrack.finding import diagnosis_from
from qtrack.ledger.artifacts import corrupt
from qtrack.ledger.files import read_json, write_json
from qtrack.ledger.masking import mask_secrets
from qtrack.ledger.names import File, Tag
from qtrack.ledger.notes import diagnosis_note
from qtrack.ledger.spool import Ended

if TYPE_CHECKING:
    from qtrack.finding import Diagnosis
    from qtrack.ledger.artifacts import Artifacts
    from qtrack.ledger.rows import RunRow
    from qtrack.ledger.spool import Spool

NAMES = (Tag.VERDICT, Tag.CAUSE)


def diagnosis_tags(found: Diagnosis) -> dict[str, str]:
    """The kind of error, and what it comes from where that is known."""
    return {Tag.VERDICT: found.category} | ({Tag.CAUSE: mask_secrets(found.cause)} if found.cause else {})


def ended(run: RunRow) -> Ended:
    """A run of the store, as one that something is added to."""
    return Ended(run.experiment_id, run.name, run.run_id, run.tags.get(Tag.RECORD, ""))


def write_diagnosis(spool: Spool, run: Ended, found: Diagnosis) -> None:
    """In the place of an earlier one; within a session of the spool."""
    journal = spool.add_to(run)
    with journal.files() as folder:
        write_json(folder / File.DIAGNOSIS, replace(found, run_id=run.run_id).to_dict())
    paragraph = mask_secrets(diagnosis_note(found))
    journal.append("amend", tags=diagnosis_tags(found), names=NAMES, paragraph=paragraph)
    journal.append("close")
    spool.send()


def read_diagnosis(artifacts: Artifacts, run: RunRow) -> Diagnosis | None:
    """None where the run was not diagnosed; raises StoreError where the record is not whole."""
    if Tag.VERDICT not in run.tags:
        return None
    text = artifacts.text(run, File.DIAGNOSIS)
    try:
        return diagnosis_from(read_json(text))
    except (ValueError, StoreError) as error:
        raise corrupt(run, File.DIAGNOSIS, error) from error
