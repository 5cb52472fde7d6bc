"""Runs a backend while imports of torch.ao are watched; prints as JSON who asked for it.

    python tests/removal.py pt2e static

Importing torch loads parts of torch.ao, so a finder would see nothing of what is asked for again: it is the
statement that is watched. What qtrack asks for is refused; what torch asks for is its own affair.
"""

import builtins
import json
import sys
import warnings
from importlib import import_module
from pathlib import Path

import torch

REMOVED = "torch.ao"
TOUCHED = ("qtrack", "qtrack.cli", "qtrack.api", "qtrack.engine", "qtrack.backends.capabilities")
really_import = builtins.__import__
askers: set[str] = set()


def watched(name, namespace=None, local=None, names=(), level=0):
    who = (namespace or {}).get("__name__", "")
    asked = [name, *(f"{name}.{part}" for part in names or ())] if level == 0 else []
    if any(f"{one}.".startswith(f"{REMOVED}.") for one in asked) and not who.startswith("torch."):
        if who.startswith("qtrack."):
            raise ImportError(f"{who} asks for {name}")
        askers.add(who)
    return really_import(name, namespace, local, names, level)


def main(backend: str, mode: str) -> None:
    builtins.__import__ = watched
    for module in TOUCHED:
        import_module(module)
    from tiny import Tiny

    from qtrack.engine import execute
    from qtrack.pipeline import read_plan
    from qtrack.recipe import Recipe

    torch.set_num_threads(1)
    read_plan(Path(__file__).parents[1] / "pipelines" / "digits.yaml")
    recipe = Recipe(backend=backend, transforms=("equalize", "correct_bias"))
    execute(Tiny(), recipe.with_mode(mode).with_weights(granularity="per_channel"))
    print(json.dumps(sorted(askers)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
