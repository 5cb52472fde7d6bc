"""What foreign code says: for people in one line, or not at all."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO

STDERR = 2
LONGEST = 250
"""Letters of what torch says of a kernel: the rest are names of its backends."""


def first_line(error: Exception) -> str:
    """What foreign code said, in one line of bearable length."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


@contextmanager
def unheard() -> Iterator[None]:
    """Hold back warnings and log messages."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def hushed() -> Iterator[None]:
    """The same, and whatever a library writes to stderr, by Python's (a notebook has its own) or past it."""
    with unheard(), redirect_stderr(StringIO()), _nowhere():
        yield


@contextmanager
def _nowhere() -> Iterator[None]:
    """The file descriptor of stderr on /dev/null, where the process has one."""
    with suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
    try:
        kept = os.dup(STDERR)
    except OSError:  # closed, as in a daemon
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
