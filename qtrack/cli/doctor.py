"""``qtrack doctor``: what works here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from qtrack.cli.options import as_json, debug, tracking_uri
from qtrack.cli.signals import terminating_as_interrupted

if TYPE_CHECKING:
    from qtrack.report.health import Check

BROKEN = 1


@click.command()
@click.option("--operators", is_flag=True, help="Try every operator on every backend instead; a minute.")
@as_json
@tracking_uri
@debug
@click.pass_context
def doctor(ctx: click.Context, operators: bool, as_json: bool, tracking_uri: str | None) -> None:
    """Try every part on this machine: packages, processor, int8 engines, backends, the tracking store.

    Of the store: how soon it answers, whether a run and an artifact can be written and read back (both are
    deleted again), and of a server its version and its clock.

    A second table says which backend carries out which feature of a recipe.

    Exits with 1 where something necessary is broken.

    \b
    Examples:
      qtrack doctor
      qtrack doctor --tracking-uri http://localhost:5000
      qtrack doctor --operators
    """
    if operators:
        _show_operators(as_json=as_json)
        return
    from qtrack.cli import render
    from qtrack.report.features import backends, features
    from qtrack.report.health import health, machine

    checks = [*machine(), *backends(), *_store(tracking_uri)]
    engines = [check.what.removeprefix("engine ") for check in checks if check.what.startswith("engine ")]
    if as_json:
        render.print_json([_record(check, engines) for check in checks])
    else:
        render.show(health(checks))
        click.echo()
        render.show(features(engines))
    if any(check.fails for check in checks):
        ctx.exit(BROKEN)


def _show_operators(*, as_json: bool) -> None:
    from rich.console import Console

    from qtrack.cli import progress, render
    from qtrack.report.operators import operators, records, try_operators

    with terminating_as_interrupted(), progress.monitor(Console(stderr=True)) as monitor:
        found = try_operators(monitor)
    if as_json:
        render.print_json(records(found))
    else:
        render.show(operators(found))


def _record(check: Check, engines: list[str]) -> dict[str, Any]:
    from qtrack.report.features import features_of

    backend = check.what.removeprefix("backend ")
    found = {"features": features_of(backend, engines)} if backend != check.what else {}
    return {**check._asdict(), **found}


def _store(uri: str | None) -> Iterator[Check]:
    from qtrack.ledger.checkup import checkup
    from qtrack.report.health import Check

    for what, holds, detail in checkup(uri):
        yield Check(what, "ok" if holds else "broken", detail)
