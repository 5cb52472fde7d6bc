"""Diagnosis: the remedy that is named first for the stage before."""

from __future__ import annotations

import logging

from qtrack.recipe import Recipe
from qtrack.stages.evidence import Evidence

log = logging.getLogger("qtrack")


def diagnose(recipe: Recipe, evidence: Evidence, *, follow: bool = True) -> Recipe:
    """Diagnose the stage that this one starts from, and follow the first remedy that has a recipe.

    The recipe stays as it is where nothing is wrong, where no remedy has one, or without ``follow``.
    """
    found = evidence.diagnose()
    log.info("diagnosis: %s: %s", found.category, found.text)
    remedy = next((remedy for remedy in found.remedies if remedy.recipe is not None), None)
    if not follow or found.category == "healthy" or remedy is None or remedy.recipe is None:
        log.info("diagnosis: the recipe stays as it is")
        return recipe
    log.info("diagnosis: the remedy is %s%s", remedy.stage, f": {remedy.why}" if remedy.why else "")
    return remedy.recipe
