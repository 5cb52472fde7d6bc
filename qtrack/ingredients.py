"""What goes into an execution: names with short values, equal where the same recipe must give the same model.

They are recorded with each stage (``ingredients`` in ``fingerprint.json``) and gathered again by ``qtrack
reproduce``, in both cases by this file, so that a name means the same on both sides.

* ``recipe``, ``engine``, ``float_weights``: the recipe holds the seeds and the choice of samples.
* ``data.SPLIT.content`` (the samples whatever their order), ``.order``, ``.labels``, ``.batches`` (how many,
  and the size of the first). ``training`` is read once, seeded as QAT seeds it, and only where the recipe
  trains or calibrates on it.
* ``source.task``, ``source.model``: the files that define the task's class and those of the model's modules,
  with the classes that they derive from. ``source.imports``: the files that these import, wherever in them,
  and so on. Files of site-packages, Python and qtrack are left out, for which the versions stand. Line ends,
  white space at the end of lines and empty lines at the end of the file do not count, comments do.
* ``version.*``, ``cpu.*`` (``cpu.variables`` cap the instruction set), ``threads``, ``determinism``, and
  ``device`` where floats are not computed on the CPU.
  ``version.qtrack`` has a digest of those of its files with it that execute recipes, so that an edit counts.

Equal ingredients give an equal execution, so their digest, the ``execution_key``, is what finished work is
found again by: never a name.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

from qtrack.data import SplitInfo, inspect_split
from qtrack.engine.devices import CPU, chosen, described
from qtrack.engine.digests import digest_of
from qtrack.environment import INSTRUCTION_SET_CAPS, cpu_model, package_version
from qtrack.recipe import Recipe
from qtrack.sources import NONE, defining, digest_of_files, imported, qtrack_digest
from qtrack.task import Task

PACKAGES = ("torch", "torchao", "qtrack", "numpy")
ABSENT = {"device": "cpu"}
"""What an ingredient is where a complete record does not have it, if it is not NONE."""
IMPLIED = ("content", "order", "labels")
"""Of a split: where one differs, those after it differ as well and say nothing of their own."""


class Drift(NamedTuple):
    """An ingredient that is not what it was."""

    name: str
    was: str
    now: str


def common_ingredients(task: Task, splits: Mapping[str, SplitInfo]) -> dict[str, str]:
    """Those that all stages of a campaign share."""
    model = task.model()
    found = {"float_weights": digest_of(model.state_dict())}
    for split in splits.values():
        found |= _of_split(split)
    return found | _of_sources(type(task), {type(module) for module in model.modules()}) | _of_machine()


def recipe_ingredients(task: Task, recipe: Recipe) -> dict[str, str]:
    """Those that depend on the recipe."""
    found = {"recipe": recipe.digest, "engine": recipe.engine or NONE}
    if not recipe.reads_training:
        return found
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training_seed)
        return found | _of_split(inspect_split(task, "training"))


def execution_key(ingredients: Mapping[str, str]) -> str | None:
    """Equal for executions that must come to the same; None where the task's source is not known.

    A task that was typed into a shell cannot be told from its edited form.
    """
    if ingredients.get("source.task", NONE) == NONE:
        return None
    return _sha256(json.dumps(dict(ingredients), sort_keys=True))


def drifted(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[Drift]:
    """Recorded ingredients that are something else now; of a split, only what is the cause of the rest."""
    found = {
        name: Drift(name, was, is_now)
        for name, was in recorded.items()
        if (is_now := now.get(name, ABSENT.get(name, NONE))) != was
    }
    return [drift for name, drift in found.items() if not any(cause in found for cause in _causes(name))]


def _causes(name: str) -> Iterator[str]:
    split, _, part = name.rpartition(".")
    if split.startswith("data.") and part in IMPLIED:
        yield from (f"{split}.{cause}" for cause in IMPLIED[: IMPLIED.index(part)])


def unrecorded(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names that the record says nothing about, as those of older versions of qtrack."""
    return [name for name in now if name not in recorded]


def _of_sources(task: type, modules: Iterable[type]) -> dict[str, str]:
    tasks, models = defining([task]), defining(modules)
    return {
        "source.task": digest_of_files(tasks),
        "source.model": digest_of_files(models),
        "source.imports": digest_of_files(imported(tasks | models)),
    }


def _of_split(split: SplitInfo) -> dict[str, str]:
    name = f"data.{split.name}"
    return {
        f"{name}.content": _sha256("".join(sorted(split.sample_digests))),
        f"{name}.order": split.digest,
        f"{name}.labels": split.labels_digest or NONE,
        f"{name}.batches": f"{split.batches} of {split.batch_size}",
    }


def _of_machine() -> dict[str, str]:
    found = {f"version.{name}": package_version(name) or NONE for name in PACKAGES}
    found["version.qtrack"] += f" ({qtrack_digest()})"
    variables = [f"{name}={os.environ[name]}" for name in INSTRUCTION_SET_CAPS if name in os.environ]
    found |= {} if chosen() == CPU else {"device": described(chosen())}
    return found | {
        "version.python": platform.python_version(),
        "cpu.model": cpu_model(),
        "cpu.capability": torch.backends.cpu.get_cpu_capability(),
        "cpu.variables": " ".join(variables) or NONE,
        "threads": str(torch.get_num_threads()),
        "determinism": "on" if torch.are_deterministic_algorithms_enabled() else "off",
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
