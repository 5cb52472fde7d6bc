"""Everything that qtrack raises on purpose.

QtrackError
  RecipeError          (ValueError)       a recipe that cannot be used as written           exit 2
  PipelineError        (ValueError)       a pipeline file that cannot be used as written    exit 2
  TaskError            (TypeError)        a task that cannot be imported or lacks a part    exit 2
  DataError            (ValueError)       batches that are empty, broken or do not fit      exit 2
  RunNotFound          (LookupError)      no such run in the tracking store                 exit 2
  BackendError         (RuntimeError)     the quantization library refused the model        exit 3
    BackendUnavailable                    its package is not installed, or not this machine exit 3
  StoreError           (ConnectionError)  the tracking store cannot be reached or written   exit 3
    StoreAway                             for now: no answer, or one that may be another later  exit 3

The exit codes are those of the command line: 0 done, 1 the check asked for failed, 2 wrong usage or input,
3 the work itself failed.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, MOST = 500, 50
"""Letters of a fault, and faults of a file, that are still worth reading."""


class QtrackError(Exception):
    """Base of all errors that qtrack raises on purpose; the message is meant for the user as it is."""

    exit_code = 3


class InputError(QtrackError):
    """What the user gave cannot be used as it is."""

    exit_code = 2


class FaultsError(InputError, ValueError):
    """Carries every fault found in a file, so that one reading mends them all."""

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        shown = [fault if len(fault) <= LONGEST else f"{fault[: LONGEST - 3]}..." for fault in self.faults]
        more = [f"and {len(shown) - MOST} more faults"] if len(shown) > MOST else []
        super().__init__("\n".join(shown[:MOST] + more))


class RecipeError(FaultsError):
    """A recipe that cannot be used as written."""


class PipelineError(FaultsError):
    """A pipeline file that cannot be used as written."""


class TaskError(InputError, TypeError):
    """A task that cannot be imported, or lacks a part that was asked of it."""


class DataError(InputError, ValueError):
    """Batches that are empty, broken, or do not fit the model."""


class RunNotFound(InputError, LookupError):
    """No such run in the tracking store."""


class BackendError(QtrackError, RuntimeError):
    """The quantization library refused the model or the recipe."""


class BackendUnavailable(BackendError):
    """The backend's package is not installed, or this machine cannot run its kernels."""


class StoreError(QtrackError, ConnectionError):
    """The tracking store cannot be reached, read or written."""


class StoreAway(StoreError):
    """The tracking store does not answer, or not as it should; what was asked of it may work later."""
