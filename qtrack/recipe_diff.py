"""What one recipe changed in another: one line per field, with its full path."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import yaml

from qtrack.recipe import Recipe

Fields = list[tuple[str, str]]
Steps = list[tuple[Fields, Fields]]
"""What is gone and what has come, piece by piece."""
OVERRIDES = "overrides"


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
    steps = [(old[a:b], new[c:d]) for kind, a, b, c, d in matcher.get_opcodes() if kind != "equal"]
    return [changed for path in _paths(steps) for changed in _of_path(path, steps)]


def differing_fields(recipes: Sequence[Recipe]) -> dict[str, list[str | None]]:
    """Fields that are not the same in all of them, each with its value in every one; overrides by number.

    None: a recipe has no such field. Within the default scheme that is no difference of its own, since it
    follows from the mode or from the kind of observer, which stand there as well.
    """
    found = [dict(_numbered(recipe)) for recipe in recipes]
    names = dict.fromkeys(name for fields in found for name in fields)
    rows = {name: [fields.get(name) for fields in found] for name in names if not _is_parent(name, names)}
    return {name: values for name, values in rows.items() if _differ(name, values)}


def _numbered(recipe: Recipe) -> Fields:
    """Each field under a name of its own."""
    fields, count = _fields(recipe), itertools.count()
    return [(f"{path}.{next(count)}" if path == OVERRIDES else path, value) for path, value in fields]


def _is_parent(name: str, names: Iterable[str]) -> bool:
    """Is it null in one recipe, and has fields in another?"""
    return any(other.startswith(f"{name}.") for other in names)


def _differ(name: str, values: Sequence[str | None]) -> bool:
    told = [value for value in values if value is not None]
    if name.startswith("default.") or set(told) == {"null"}:
        return len(set(told)) > 1
    return len(set(values)) > 1


def _paths(steps: Steps) -> Iterator[str]:
    """In their order; a part that is null on one side stands for none of its fields."""
    paths = dict.fromkeys(path for gone, come in steps for path, _ in (*gone, *come))
    yield from (path for path in paths if not any(other.startswith(f"{path}.") for other in paths))


def _of_path(path: str, steps: Steps) -> Iterator[Changed]:
    """Its old and new values beside each other."""
    gone = [value for fields, _ in steps for name, value in fields if name == path]
    come = [value for _, fields in steps for name, value in fields if name == path]
    yield from (Changed(path, was, now) for was, now in zip_longest(gone, come))


def _fields(recipe: Recipe) -> Fields:
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
