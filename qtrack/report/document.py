"""All that a set of strategies came to, as one page that loads nothing.

The page is a template whose every text is escaped; only drawings go in as they are. It is meant for a phone
as well: tables scroll within themselves, drawings shrink.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qtrack.errors import InputError
from qtrack.report.cells import visible
from qtrack.report.classes import classes_view
from qtrack.report.comparison import comparison
from qtrack.report.diagnosis import findings, measured, remedies, verdict
from qtrack.report.figures import pareto_figure
from qtrack.report.heat_map import HeatMap, heat_map
from qtrack.report.page import drawing, inline
from qtrack.report.recipes import recipes_view
from qtrack.report.tables import Column, Table
from qtrack.report.titles import titles_of
from qtrack.report.verdict import best, closest, sentences

if TYPE_CHECKING:
    from qtrack.ledger import Strategy
    from qtrack.report.material import Material

TEMPLATE = "report.html.j2"
MOST_CLASSES = 200
LEFT_OUT = ("settings", "command", "git")
"""Parts of the environment that stand elsewhere, or are nobody else's affair."""


class Command(NamedTuple):
    """A line for a shell, and what it does."""

    line: str
    does: str


class Section(NamedTuple):
    """What was found about a strategy."""

    title: str
    verdict: str
    tables: tuple[Table, ...]
    command: str
    """What writes the remedies as a pipeline; empty where there are none."""


def document(material: Material) -> str:
    """The page as HTML."""
    strategies = material.strategies
    return (
        _templates()
        .get_template(TEMPLATE)
        .render(
            title=", ".join(dict.fromkeys(s.experiment for s in strategies)) or "qtrack",
            facts=list(_facts(material)),
            sentences=list(sentences(strategies)),
            strategies=comparison(strategies),
            pareto=_pareto(strategies),
            diagnoses=list(_diagnoses(material)),
            heat_map=_heat_map(material),
            classes=_classes(material),
            recipes=_recipes(material),
            environment=_environment(material.environment),
            commands=list(_commands(material)),
            remarks=material.remarks,
        )
    )


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("qtrack.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: Any) -> Any:
    """Text without what acts on a reader unseen; the template's own parts as they are."""
    return visible(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def _facts(material: Material) -> Iterator[str]:
    """Where the strategies come from, and when."""
    strategies = material.strategies
    yield f"campaign {', '.join(dict.fromkeys(s.campaign or 'unknown' for s in strategies))}"
    started = sorted(s.started[:16].replace("T", " ") for s in strategies)
    yield " to ".join(dict.fromkeys((started[0], started[-1]))) + " UTC"
    git = material.environment.get("git") or {}
    if git.get("commit"):
        yield f"commit {str(git['commit'])[:12]}{', with changes' if git.get('dirty') else ''}"


def _pareto(strategies: Sequence[Strategy]) -> Markup | None:
    figure = pareto_figure(strategies)
    return None if figure is None else Markup(inline(drawing(figure)))


def _diagnoses(material: Material) -> Iterator[Section]:
    titles = titles_of(material.strategies)
    for position, found in material.diagnoses.items():
        strategy, mended = material.strategies[position], remedies(found)
        tables = (measured(found), findings(found.findings), *([mended] if mended else []))
        run = shlex.join(["qtrack", "diagnose", _named(strategy), "-o", "remedies.yaml"]) if mended else ""
        yield Section(titles[position], verdict(found), tables, run)


def _named(strategy: Strategy) -> str:
    """As the command line takes it."""
    return f"{strategy.campaign}/{strategy.stage}" if strategy.campaign else strategy.run_id


def _heat_map(material: Material) -> HeatMap | None:
    titles = titles_of(material.strategies)
    return heat_map([titles[i] for i in material.layers], list(material.layers.values()))


def _classes(material: Material) -> Table | None:
    """None where the task has no labels."""
    try:
        view = classes_view(
            [material.strategies[i] for i in material.samples], list(material.samples.values())
        )
    except InputError:
        return None
    return _cut(view.table, MOST_CLASSES)


def _cut(table: Table, most: int) -> Table:
    if len(table.rows) <= most:
        return table
    note = f"the first {most} of {len(table.rows):,}; qtrack compare --by class has all"
    return table._replace(rows=table.rows[:most], notes=(note, *table.notes))


def _recipes(material: Material) -> Table | None:
    """None where there is nothing to compare."""
    if len(material.recipes) < 2:
        return None
    known = [material.strategies[i] for i in material.recipes]
    return recipes_view(known, {recipe.digest: recipe for recipe in material.recipes.values()}).table


def _environment(environment: Mapping[str, Any]) -> Table | None:
    rows = tuple((name, text) for name, text in _flat(environment) if name.split(".")[0] not in LEFT_OUT)
    return Table((Column("what", "left"), Column("value", "left")), rows) if rows else None


def _flat(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """``packages.torch``, ``2.13.0``; what is empty is left out."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        elif value not in (None, "", [], ()):
            yield f"{path}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _commands(material: Material) -> Iterator[Command]:
    """How to come to the same again."""
    strategies = material.strategies
    versions = material.environment.get("packages") or {}
    pins = [f"{name}=={versions[name]}" for name in ("qtrack", "torch") if name in versions]
    if pins:
        yield Command(f"pip install {' '.join(pins)}", "the same versions")
    if material.environment.get("command"):
        yield Command(str(material.environment["command"]), "how it was started")
    chosen = best(strategies) or closest(strategies)
    if chosen is not None:
        run = shlex.quote(_named(chosen))
        yield Command(f"qtrack reproduce {run}", f"execute {chosen.stage} again, and compare")
        yield Command(f"qtrack export {run} -o recipe.yaml", f"{chosen.stage} as a pipeline that runs again")
    for campaign in dict.fromkeys(s.campaign for s in strategies if s.campaign):
        yield Command(f"qtrack compare --campaign {shlex.quote(campaign)}", "this table")
