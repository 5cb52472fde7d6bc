"""A plan's stages applied to recipes, and nothing executed."""

from __future__ import annotations

from typing import Any, NoReturn

from pydantic import ValidationError

from qtrack.backends.capabilities import check
from qtrack.engine import settled
from qtrack.errors import PipelineError, RecipeError
from qtrack.pipeline import Plan, StageSpec
from qtrack.reading import faults_of
from qtrack.recipe import Recipe
from qtrack.stages import Evidence


def rewritten(plan: Plan, spec: StageSpec, recipe: Recipe, evidence: Evidence) -> Recipe:
    """What a stage makes of a recipe, checked; raises RecipeError."""
    try:
        found: Recipe = plan.stages[spec.name](recipe, evidence, **spec.options)
    except ValidationError as cause:
        raise RecipeError(faults_of(cause, Recipe, f"stage {spec.name}")) from cause
    check(found, f"stage {spec.name}: recipe")
    return settled(found)


def foreseen(plan: Plan) -> list[Recipe]:
    """The recipes that the stages will probably execute, in order, of as many as need no execution to say it.

    A stage that searches or looks at what was executed is left out, and so are those that start from it.
    """
    start = settled(plan.pipeline.recipe)
    evidence = Evidence(plan.pipeline.target, None, None, {}, _nothing_executed)
    recipes: dict[str | None, Recipe | None] = {None: start}
    last: str | None = None
    for spec in plan.pipeline.stages:
        recipe = recipes.get(spec.start or last)
        recipes[spec.name] = found = recipe and _foreseen(plan, spec, recipe, evidence)
        if found is None or found.quantizes:
            last = spec.name
    return [recipe for name, recipe in recipes.items() if name and recipe]


def _foreseen(plan: Plan, spec: StageSpec, recipe: Recipe, evidence: Evidence) -> Recipe | None:
    try:
        return rewritten(plan, spec, recipe, evidence)
    except Exception:  # whatever it misses, it fails on it again in its turn, and is heard then
        return None


def first_quantized(plan: Plan) -> tuple[StageSpec, Recipe]:
    """The first stage whose recipe quantizes, and that recipe; raises PipelineError where there is none.

    One that searches, or asks for evidence in another way, cannot be the first: nothing is executed here.
    """
    start = settled(plan.pipeline.recipe)
    evidence = Evidence(plan.pipeline.target, None, None, {}, _nothing_executed)
    recipes: dict[str | None, Recipe] = {}
    for spec in plan.pipeline.stages:
        try:
            recipe = rewritten(plan, spec, recipes.get(spec.start, start), evidence)
        except RecipeError as error:
            raise PipelineError(f"stage {spec.name}: {error}") from error
        if recipe.quantizes:
            return spec, recipe
        recipes[spec.name] = recipe
    raise PipelineError(f"no stage of the pipeline {plan.pipeline.name!r} quantizes anything")


def _nothing_executed(*_: Any) -> NoReturn:
    raise RecipeError(
        "it needs what an execution comes to: let it start from a stage that quantizes, such as ptq"
    )
