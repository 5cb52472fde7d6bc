"""What one recipe changed in another: one line per field, with its full path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import yaml

from qtrack.recipe import Recipe


class Changed(NamedTuple):
    """A field that is not the same in two recipes; None on a side that has no such field."""

    field: str
    was: str | None
    now: str | None


def recipe_diff(recipe: Recipe, previous: Recipe | None, names: tuple[str, str]) -> str:
    """A unified diff of one line per changed field; ``names`` are those of the previous and of this one."""
    if previous is None:
        return "no earlier stage to compare with; recipe.yaml has it all\n"
    old, new = ([f"{path}: {value}" for path, value in _fields(part)] for part in (previous, recipe))
    lines = difflib.unified_diff(old, new, *names, n=0, lineterm="")
    changed = [line for line in lines if not line.startswith("@@")]
    return "\n".join(changed or [f"the same recipe as {names[0]}"]) + "\n"


def changed_fields(was: Recipe, now: Recipe) -> list[Changed]:
    """The same as plain data; an override that came or went is a change of its own."""
    old, new = _fields(was), _fields(now)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    steps = [step for step in matcher.get_opcodes() if step[0] != "equal"]
    gone = [field for _, first, last, _, _ in steps for field in old[first:last]]
    come = [field for _, _, _, first, last in steps for field in new[first:last]]
    return list(_matched(gone, come))


def _matched(gone: list[tuple[str, str]], come: list[tuple[str, str]]) -> Iterator[Changed]:
    """Old and new values of the same path beside each other."""
    for path in dict.fromkeys(path for path, _ in (*gone, *come)):
        values = ([value for name, value in side if name == path] for side in (gone, come))
        for was, now in zip_longest(*values):
            yield Changed(path, was, now)


def _fields(recipe: Recipe) -> list[tuple[str, str]]:
    return list(_values(recipe.model_dump(mode="json")))


def _values(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """``default.weight.bits``, ``8`` for every field; a whole override is one, so that their order shows."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _values(part, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for part in value:
            yield path, _flow(part)
    else:
        yield path, _flow(value)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        value = {name: part for name, part in value.items() if part is not None}
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
        .strip()
        .removesuffix("\n...")
    )
