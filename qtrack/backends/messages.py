"""What foreign code said, for people."""

from __future__ import annotations

LONGEST = 250
"""Letters of what torch says of a kernel: the rest are names of its backends."""


def first_line(error: Exception) -> str:
    """What foreign code said, in one line of bearable length."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
