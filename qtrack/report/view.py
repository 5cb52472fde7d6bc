"""One thing to show, in every format that a command offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qtrack.report.tables import Table


class View(NamedTuple):
    """A table for people, and the same for programs."""

    title: str
    table: Table
    records: Sequence[dict[str, Any]]
    """A flat object for each row."""
    verdict: tuple[str, ...] = ()
    """What it all comes to, in sentences."""
    svg: str = ""
    """A drawing that belongs to it."""
