"""Other calibration samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qtrack.recipe import Choice, Recipe, Seed
from qtrack.stages.evidence import Evidence, needs

Samples = Annotated[int, Field(ge=1, lt=2**63)] | Literal["all"]


@needs("training", source="training")
def calibration(
    recipe: Recipe,
    evidence: Evidence,
    *,
    choice: Choice | None = None,
    samples: Samples | None = None,
    source: Literal["calibration", "training"] | None = None,
    seed: Seed | None = None,
) -> Recipe:
    """Calibrate on other samples; what is not named stays as it is."""
    given = {"choice": choice, "samples": samples, "source": source, "seed": seed}
    changes = {name: None if value == "all" else value for name, value in given.items() if value is not None}
    return recipe.having(calibration=recipe.calibration.having(**changes))
