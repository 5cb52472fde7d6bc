"""What foreign code says: for people in one line, or not at all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
