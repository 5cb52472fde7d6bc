"""How much a search may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Of the searches in a campaign; None: as much as they take."""

    max_minutes: float | None = None
    """Of all searches together; the probe that is under way when they are over is finished."""
    max_evaluations: int | None = None
    """Of each search: recipes tried."""
