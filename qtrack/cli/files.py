"""Files that commands write for the user."""

from __future__ import annotations

from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole; raises InputError in one line where that cannot be."""
    from qtrack.errors import InputError

    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
