"""The same recipe on another backend."""

from __future__ import annotations

from qtrack.backends.capabilities import has_engines
from qtrack.recipe import BackendName, Recipe
from qtrack.stages.evidence import Evidence


def backend(recipe: Recipe, evidence: Evidence, *, to: BackendName) -> Recipe:
    """Carry the recipe out with another backend, and change nothing else; one without engines names none."""
    return recipe.having(backend=to, engine=recipe.engine if has_engines(to) else None)
