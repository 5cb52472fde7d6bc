"""Reproductions: read what was recorded of a stage, and record what its second execution came to.

A reproduction is a flat run of its own kind, without a campaign: whoever lists strategies does not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qtrack.errors import StoreError
from qtrack.ledger.files import write_json
from qtrack.ledger.logs import Lines, captured
from qtrack.ledger.metrics import Point
from qtrack.ledger.names import REPRODUCTION, File, Metric, Shown, Tag, task_metric_key
from qtrack.ledger.outcomes import read_evaluation
from qtrack.ledger.rows import RunRow
from qtrack.ledger.run import OpenRun
from qtrack.ledger.spool import Spool
from qtrack.recipe import Recipe, recipe_to_yaml

if TYPE_CHECKING:
    from qtrack.reproduction import Recorded, Reproduction

KEPT = (Tag.PIPELINE, Tag.METRIC, Tag.RECIPE_DIGEST, Tag.BACKEND, Tag.ENGINE, Tag.STAGE)
"""Tags that a reproduction has in common with the stage."""


def recorded_of(
    run: RunRow, recipe: Recipe, fingerprint: Mapping[str, Any], samples: Path, layers: tuple[str, ...]
) -> Recorded:
    """From a run's files; raises StoreError where they lack what every finished stage leaves."""
    from qtrack.reproduction import Recorded, Result

    try:
        found = read_evaluation(samples)
        for scale in fingerprint["scales"].values():
            np.asarray(scale, float)
        result = Result(
            parameters=str(fingerprint["parameters"]),
            behaviour=str(fingerprint["behaviour"]),
            scales=fingerprint["scales"],
            tensors={name: str(digest) for name, digest in fingerprint.get("tensors", {}).items()},
            value=found.value,
            scores=found.scores,
            predictions=found.predictions,
        )
        ingredients = _ingredients(fingerprint)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise StoreError(f"the run {run.name!r} cannot be compared with: {error!r:.250}") from error
    return Recorded(
        run_id=run.run_id,
        stage=run.tags.get(Tag.STAGE) or run.name,
        metric=run.tags.get(Tag.METRIC, "metric"),
        recipe=recipe,
        ingredients=ingredients,
        result=result,
        layers=layers,
        labels=found.labels,
    )


def _ingredients(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """As recorded, or the few that runs of older versions hold."""
    if fingerprint.get("ingredients"):
        return {name: str(value) for name, value in fingerprint["ingredients"].items()}
    found = {name: str(fingerprint[name]) for name in ("recipe", "float_weights") if name in fingerprint}
    orders = {
        f"data.{name}.order": str(split["digest"]) for name, split in fingerprint.get("splits", {}).items()
    }
    return found | orders


@contextmanager
def recorded_reproduction(spool: Spool, stage: RunRow, recorded: Recorded) -> Iterator[ReproductionWriter]:
    """Open a reproduction's run beside the stage's, before the work begins."""
    from qtrack.engine.devices import CPU, chosen

    tags = {name: stage.tags[name] for name in KEPT if name in stage.tags}
    tags |= {Tag.KIND: REPRODUCTION, Tag.REPRODUCES: recorded.run_id}
    tags |= {Shown.SOURCE: "qtrack", Shown.SOURCE_TYPE: "LOCAL"}
    tags |= {} if chosen() == CPU else {Tag.DEVICE: str(chosen())}
    with captured() as lines, spool.session():
        writer = ReproductionWriter(spool, stage.experiment_id, recorded, tags, lines)
        with writer.run.kept():
            writer.begin()
            with spool.begun():
                yield writer


class ReproductionWriter:
    """Records one reproduction."""

    def __init__(
        self, spool: Spool, experiment: str, recorded: Recorded, tags: Mapping[str, str], lines: Lines
    ) -> None:
        self.recorded = recorded
        self.run = OpenRun(spool, experiment, f"reproduce {recorded.stage}", tags, lines)

    def begin(self) -> None:
        """The recipe stands on record before the work."""
        with self.run.files() as folder:
            (folder / File.RECIPE).write_text(recipe_to_yaml(self.recorded.recipe), encoding="utf-8")

    def result(self, found: Reproduction, ingredients: Mapping[str, str], seconds: float) -> None:
        """The verdict, and what it rests on."""
        values = {
            task_metric_key(found.metric): found.value,
            Metric.DRIFTED: len(found.drifted),
            Metric.DIFFERING_SAMPLES: found.differing_samples,
            Metric.SCALE_DIFFERENCE: found.scale_difference,
            Metric.SECONDS: seconds,
        }
        self.run.log(
            [Point(key, value) for key, value in values.items() if value is not None and isfinite(value)],
            tags={Tag.VERDICT: found.verdict},
        )
        with self.run.files() as folder:
            write_json(folder / File.REPRODUCTION, found.to_dict() | {"now": ingredients})
