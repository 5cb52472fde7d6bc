"""Which strategies are shown, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import compress
from typing import Any

from qtrack.errors import InputError
from qtrack.ledger import Strategy

Tags = Mapping[str, Mapping[str, str]]
"""By the id of a run."""


def field_names() -> list[str]:
    """What rows can be chosen and sorted by."""
    return [field.name for field in fields(Strategy)]


def chosen(
    strategies: Sequence[Strategy], conditions: Iterable[str], tags: Callable[[], Tags]
) -> list[Strategy]:
    """Those that meet every condition, written as ``stage=qat`` or ``qtrack.engine=x86``.

    Numbers are compared as numbers; true, false and null are written as in JSON. ``tags`` is asked only
    where a condition names no field. Raises InputError on one that is neither field nor tag.
    """
    meet = [True] * len(strategies)
    for condition in conditions:
        name, equals, wanted = condition.partition("=")
        if not equals:
            raise InputError(f"--filter {condition}: write it as FIELD=VALUE or TAG=VALUE")
        values = _values(strategies, name, tags)
        meet = [so_far and _matches(value, wanted) for so_far, value in zip(meet, values, strict=True)]
    return list(compress(strategies, meet))


def _values(strategies: Sequence[Strategy], name: str, tags: Callable[[], Tags]) -> list[Any]:
    """Of a field or a tag, in each strategy."""
    if name in field_names():
        return [getattr(s, name) for s in strategies]
    known = tags()
    found = [known.get(s.run_id, {}).get(name) for s in strategies]
    if strategies and not any(value is not None for value in found):
        there = sorted({tag for of_run in known.values() for tag in of_run if not tag.startswith("mlflow.")})
        raise _unknown("--filter", name, (*field_names(), *there))
    return found


def _matches(found: Any, wanted: str) -> bool:
    if found is None or isinstance(found, bool):
        return wanted == {None: "null", True: "true", False: "false"}[found]
    if isinstance(found, str):
        return found == wanted
    try:
        return bool(found == float(wanted))
    except ValueError:
        return False


def ordered(strategies: Sequence[Strategy], by: str) -> list[Strategy]:
    """By a field, ``FIELD`` or ``FIELD:desc``; those without it come last. Raises InputError on no field."""
    name, colon, direction = by.partition(":")
    if name not in field_names():
        raise _unknown("--sort", name, field_names())
    if colon and direction not in ("asc", "desc"):
        raise InputError(f"--sort {by}: the order is asc or desc")
    known = [s for s in strategies if getattr(s, name) is not None]
    rest = [s for s in strategies if getattr(s, name) is None]
    return sorted(known, key=lambda s: getattr(s, name), reverse=direction == "desc") + rest


def _unknown(option: str, name: str, known: Iterable[str]) -> InputError:
    return InputError(f"{option}: no field {name!r}; there are {', '.join(known)}")
