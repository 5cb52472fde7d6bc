"""What need not be done again, found by the content of all that goes into it.

Finished stages are on record in the store; what an interrupted one had done already is in the scratch folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtrack.engine import execute
from qtrack.ingredients import execution_key, recipe_ingredients
from qtrack.outcome import Outcome, Stopped
from qtrack.pipeline import StageSpec
from qtrack.recipe import Recipe
from qtrack.records import Known, Recorder, Setting
from qtrack.scratch import Checkpoint, Scratch
from qtrack.sources import function_digest
from qtrack.stages import Judged


class Memory:
    """Asks the record and the scratch folder."""

    def __init__(self, setting: Setting, recorder: Recorder, scratch: Scratch, *, fresh: bool) -> None:
        self.plan = setting.plan
        self.recorder = recorder
        self.scratch = scratch
        self.fresh = fresh
        self.common = setting.ingredients
        self._ingredients: dict[str, dict[str, str]] = {}
        self._checkpoints: dict[str, Checkpoint | None] = {}

    def ingredients(self, recipe: Recipe) -> dict[str, str]:
        """All that go into the execution of this recipe; training data are read once for each."""
        if recipe.digest not in self._ingredients:
            found = {**self.common, **recipe_ingredients(self.plan.task, recipe)}
            self._ingredients[recipe.digest] = found
        return self._ingredients[recipe.digest]

    def question(self, spec: StageSpec, before: Recipe, earlier: Mapping[str, Judged]) -> str | None:
        """Over all that a stage may look at: an equal one has the same answer."""
        if execution_key(self.common) is None:
            return None
        target = self.plan.pipeline.target.model_dump(mode="json")
        asked = {"use": spec.use, "options": spec.options, "target": target}
        recipes = {name: judged.outcome.recipe.digest for name, judged in earlier.items()}
        source = function_digest(self.plan.stages[spec.name])
        text = json.dumps([asked, before.digest, recipes, source, dict(self.common)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def answered(self, question: str | None) -> Known | None:
        """The finished stage that was asked the same, and whose execution would be the same now.

        Training data are no part of the question, because only recipes that train have them read.
        """
        known = self._known(question=question) if question else None
        if known is None or known.execution != execution_key(self.ingredients(known.outcome.recipe)):
            return None
        return known

    def executed(self, recipe: Recipe) -> Known | None:
        """The finished stage that executed this recipe on the same ingredients."""
        key = execution_key(self.ingredients(recipe))
        return self._known(execution=key) if key else None

    def _known(self, **what: str) -> Known | None:
        return None if self.fresh else self.recorder.known(self.plan.task, **what)

    def winners(self) -> Sequence[Recipe]:
        """What earlier searches ended with that met their target, for this task or architecture."""
        return () if self.fresh else self.recorder.winners(self.plan.task)

    def probe(self, recipe: Recipe) -> Outcome | None:
        """What the recipe came to when an earlier search tried it."""
        key = execution_key(self.ingredients(recipe))
        if key is None or self.fresh:
            return None
        return self.scratch.probe(key, recipe, lambda: execute(self.plan.task, recipe, thorough=False).model)

    def keep_probe(self, outcome: Outcome) -> None:
        """For the next search that tries the same."""
        key = execution_key(self.ingredients(outcome.recipe))
        if key is not None:
            self.scratch.keep_probe(key, outcome)

    def study(self, asked: Any, recipe: Recipe) -> Path | None:
        """Where the trials of a search around this recipe are; None where the task isn't known by content."""
        key = execution_key(self.ingredients(recipe))
        if key is None:
            return None
        target = self.plan.pipeline.target.model_dump(mode="json")
        text = json.dumps([key, asked, target], sort_keys=True)
        path = self.scratch.study(hashlib.sha256(text.encode()).hexdigest())
        if path and self.fresh:
            path.unlink(missing_ok=True)
        return path

    def checkpoint(self, recipe: Recipe) -> Checkpoint | None:
        """Where the recipe's training keeps itself, here or on a worker; None where it has none."""
        if recipe.digest not in self._checkpoints:
            key = execution_key(self.ingredients(recipe)) if recipe.training else None
            found = self.scratch.checkpoint(key) if key else None
            if found and self.fresh:
                found.clear()
            self._checkpoints[recipe.digest] = found
        return self._checkpoints[recipe.digest]

    @contextmanager
    def training(self, recipe: Recipe) -> Iterator[Checkpoint | None]:
        """The recipe's checkpoint, which is gone once its execution is over."""
        found = self.checkpoint(recipe)
        try:
            yield found
        except Stopped:
            if found:
                found.clear()
            raise
        if found:
            found.clear()
