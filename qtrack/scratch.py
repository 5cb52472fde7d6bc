"""What an interrupted execution leaves in a local folder, so that none of it is done twice.

Files are named by the ``execution_key`` of what they hold: found again by content, never by name. They can be
deleted at any time; that costs time and nothing else.

Each job of a sweep has a folder of its own in it, as long as it is not finished.

* ``KEY.probe.npz``: how a recipe that a search has tried did on the validation split.
* ``KEY.study.log``: the trials of a search over recipe choices, in Optuna's own form.
* ``KEY.epoch.pt``: quantization-aware training after its last whole epoch, wherever it takes place; gone once
  what the execution came to has arrived.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from qtrack.outcome import Cost, Evaluation, Latency, Outcome
from qtrack.recipe import Recipe

log = logging.getLogger("qtrack")

OLD_S = 30 * 86400.0


class Scratch:
    """The folder; without one nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def tidy(self) -> None:
        """Remove what nobody came back for in a month."""
        for path in self.folder.rglob("*") if self.folder else ():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > OLD_S:
                    path.unlink()

    def probe(self, key: str, recipe: Recipe, build: Callable[[], Any]) -> Outcome | None:
        """What a recipe came to when it was tried; ``build`` makes its model again, if it is asked for."""
        path = self._path(key, "probe.npz")
        if path is None or not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                return _outcome(json.loads(str(kept["facts"])), dict(kept), recipe, build)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            _discard(path, error)
            return None

    def keep_probe(self, key: str, outcome: Outcome) -> None:
        """Keep it for the next time."""
        path, found = self._path(key, "probe.npz"), outcome.validation
        arrays: dict[str, Any] = {"scores": found.scores, "labels": found.labels}
        arrays |= {"predictions": found.predictions, "facts": np.array(json.dumps(_facts(outcome)))}
        if path is not None:
            known = {name: values for name, values in arrays.items() if values is not None}
            _whole(path, lambda file: np.savez(file, **known))

    def study(self, key: str) -> Path | None:
        """Where the trials of this question are; None where nothing is kept."""
        return self._path(key, "study.log")

    def checkpoint(self, key: str) -> Checkpoint | None:
        """Where the training of this execution keeps itself."""
        path = self._path(key, "epoch.pt")
        return Checkpoint(path.absolute()) if path else None

    def _path(self, key: str, kind: str) -> Path | None:
        return self.folder / f"{key}.{kind}" if self.folder else None


class Checkpoint:
    """Tensors and plain data, after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None where there is nothing, or it can't be read."""
        if not self.path.exists():
            return None
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected pickle protocol")  # of a file not ours
                return dict(torch.load(self.path, weights_only=True, map_location="cpu"))
        except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, TypeError) as error:
            _discard(self.path, error)
            return None

    def save(self, state: dict[str, Any]) -> None:
        """In place of what was saved before."""
        _whole(self.path, lambda file: torch.save(state, file))

    def clear(self) -> None:
        """The execution is over."""
        self.path.unlink(missing_ok=True)


def _discard(path: Path, error: Exception) -> None:
    log.warning("%s cannot be used (%s) and is removed: it is done again", path, type(error).__name__)
    path.unlink(missing_ok=True)


def _whole(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file whole or not at all; one that the disk does not take costs time later, and no work now."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            write(file)
        new.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror or error)
    except RuntimeError as error:  # torch's, for a full disk among others
        log.warning("%s cannot be written: %s", path, str(error).splitlines()[0])
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {
        "recipe": outcome.recipe.digest,
        "metric": outcome.metric,
        "size_bytes": outcome.size_bytes,
        "float_layers": outcome.float_layers,
        "cost": asdict(outcome.cost),
        "latency": asdict(outcome.latency) if outcome.latency else None,
        "behaviour": outcome.validation.output_digest,
        "nonfinite": outcome.validation.nonfinite,
    }


def _outcome(facts: dict[str, Any], arrays: dict[str, Any], recipe: Recipe, build: Any) -> Outcome:
    if facts["recipe"] != recipe.digest:
        raise ValueError("it is of another recipe")
    validation = Evaluation(
        arrays["scores"],
        arrays.get("labels"),
        arrays.get("predictions"),
        facts["behaviour"],
        nonfinite=facts["nonfinite"],
    )
    return Outcome(
        recipe=recipe,
        build=build,
        example=None,
        metric=facts["metric"],
        validation=validation,
        cost=Cost(**facts["cost"]),
        size_bytes=facts["size_bytes"],
        latency=Latency(**facts["latency"]) if facts.get("latency") else None,
        float_layers=tuple(facts["float_layers"]),
    )
