"""What goes into an execution: names with short values, equal where the same recipe must give the same model.

They are recorded with each stage (``ingredients`` in ``fingerprint.json``) and gathered again by ``qtrack
reproduce``, in both cases by this file, so that a name means the same on both sides.

* ``recipe``, ``engine``, ``float_weights``: the recipe holds the seeds and the choice of samples.
* ``data.SPLIT.content`` (the samples whatever their order), ``.order``, ``.labels``, ``.batches`` (how many,
  and the size of the first). ``training`` is read once, seeded as QAT seeds it, and only where the recipe
  trains.
* ``source.task``, ``source.model``: the files that define the task's class and those of the model's modules,
  with the classes that they derive from. Files of site-packages, Python and qtrack are left out, for which
  the versions stand; so are files that hold none of these classes. Line ends, white space at the end of
  lines and empty lines at the end of the file do not count, comments do.
* ``version.*``, ``cpu.*`` (``cpu.variables`` cap the instruction set), ``threads``, ``determinism``.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from qtrack.data import SplitInfo, inspect_split
from qtrack.engine.digests import digest_of
from qtrack.environment import INSTRUCTION_SET_CAPS, cpu_model, package_version
from qtrack.recipe import Recipe
from qtrack.task import Task

NONE = "none"
PACKAGES = ("torch", "torchao", "qtrack", "numpy")
FOREIGN = {"site-packages", "dist-packages"}
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
    found |= {"source.task": source_digest([type(task)])}
    found |= {"source.model": source_digest({type(module) for module in model.modules()})}
    return found | _of_machine()


def recipe_ingredients(task: Task, recipe: Recipe) -> dict[str, str]:
    """Those that depend on the recipe."""
    found = {"recipe": recipe.digest, "engine": recipe.engine or NONE}
    if recipe.training is None:
        return found
    seed = recipe.seed if recipe.training.seed is None else recipe.training.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return found | _of_split(inspect_split(task, "training"))


def drifted(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[Drift]:
    """Recorded ingredients that are something else now; of a split, only what is the cause of the rest."""
    found = {
        name: Drift(name, was, now.get(name, NONE))
        for name, was in recorded.items()
        if now.get(name, NONE) != was
    }
    return [drift for name, drift in found.items() if not any(cause in found for cause in _causes(name))]


def _causes(name: str) -> Iterator[str]:
    split, _, part = name.rpartition(".")
    if split.startswith("data.") and part in IMPLIED:
        yield from (f"{split}.{cause}" for cause in IMPLIED[: IMPLIED.index(part)])


def unrecorded(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names that the record says nothing about, as those of older versions of qtrack."""
    return [name for name in now if name not in recorded]


def source_digest(classes: Iterable[type]) -> str:
    """SHA-256 over the user's own source files of some classes; ``none`` where there are none."""
    files = {path for cls in classes for base in cls.__mro__ if (path := _own_source(base))}
    if not files:
        return NONE
    texts = sorted((path.name, _normalized(path.read_text("utf-8", errors="replace"))) for path in files)
    return _sha256("\0".join(part for text in texts for part in text))


def _own_source(cls: type) -> Path | None:
    """The file that defines a class, unless it was installed rather than written here."""
    try:
        name = inspect.getsourcefile(cls)
    except (TypeError, OSError):  # built in, or made by a program
        return None
    path = Path(name).resolve() if name else None
    if path is None or not path.is_file() or FOREIGN & set(path.parts):
        return None
    return None if any(path.is_relative_to(folder) for folder in _libraries()) else path


def _libraries() -> Iterator[Path]:
    yield Path(__file__).resolve().parent
    yield from (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


def _normalized(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n")


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
    variables = [f"{name}={os.environ[name]}" for name in INSTRUCTION_SET_CAPS if name in os.environ]
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
