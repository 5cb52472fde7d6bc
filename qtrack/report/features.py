"""Which backend carries out which feature of a recipe on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qtrack.report.health import Check
from qtrack.report.tables import Column, Table


def backends() -> Iterator[Check]:
    """Each backend: is what it needs installed?"""
    from qtrack.backends.capabilities import CAPABILITIES, PACKAGES, missing

    for name in CAPABILITIES:
        absent = missing(name)
        with_package = f"with {PACKAGES[name]}" if name in PACKAGES else "with torch alone"
        yield Check(f"backend {name}", "absent" if absent else "ok", absent or with_package, necessary=False)


def features_of(backend: str, engines: Sequence[str]) -> dict[str, list[Any]]:
    """Values by feature, ready for JSON; of the engines those that run here."""
    from qtrack.backends.capabilities import CAPABILITIES

    found = {name: list(values) for name, values in CAPABILITIES[backend].items()}
    if "engine" in found:
        found["engine"] = [engine for engine in found["engine"] if engine in engines]
    return found


def features(engines: Sequence[str]) -> Table:
    """A line for all values of a feature that the same backends have."""
    from qtrack.backends import capabilities

    names = tuple(capabilities.CAPABILITIES)
    tables = {name: features_of(name, engines) for name in names}
    rows = []
    for feature in capabilities.features():
        alike: dict[tuple[str, ...], list[Any]] = {}
        for value in dict.fromkeys(value for name in names for value in tables[name].get(feature, ())):
            has = tuple("yes" if value in tables[name].get(feature, ()) else "-" for name in names)
            alike.setdefault(has, []).append(value)
        rows += [(feature, _listed(feature, values), *has) for has, values in alike.items()]
    return Table(tuple(Column(title, "left") for title in ("recipe", "", *names)), tuple(rows))


def _listed(feature: str, values: list[Any]) -> str:
    """``2-8``, ``x86, qnnpack``, ``true, false``; nothing for a part that a recipe has or has not."""
    if values == [True] and "." not in feature:
        return ""
    if isinstance(values[0], int) and not isinstance(values[0], bool) and len(values) > 1:
        return f"{min(values)}-{max(values)}"
    return ", ".join(str(value).lower() for value in values)
