"""``qtrack doctor``: what works here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrack.cli.options import as_json, debug, tracking_uri

if TYPE_CHECKING:
    from qtrack.report.health import Check

BROKEN = 1


@click.command()
@as_json
@tracking_uri
@debug
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, tracking_uri: str | None) -> None:
    """Try every part on this machine: packages, processor, int8 engines, the tracking store.

    Exits with 1 where something necessary is broken.

    \b
    Examples:
      qtrack doctor
      qtrack doctor --tracking-uri http://localhost:5000
    """
    from qtrack.cli import render
    from qtrack.report.health import health, machine

    checks = [*machine(), *_store(tracking_uri)]
    if as_json:
        render.print_json([check._asdict() for check in checks])
    else:
        render.show(health(checks))
    if any(check.fails for check in checks):
        ctx.exit(BROKEN)


def _store(uri: str | None) -> Iterator[Check]:
    from qtrack.errors import QtrackError
    from qtrack.ledger import Ledger, mask_secrets
    from qtrack.report.health import Check

    if not (uri or os.environ.get("MLFLOW_TRACKING_URI") or Path("mlflow.db").exists()):
        writable = os.access(".", os.W_OK)
        said = (
            "sqlite:///mlflow.db, which the first run creates"
            if writable
            else "this folder cannot be written"
        )
        yield Check("store", "ok" if writable else "broken", said)
        return
    try:
        yield Check("store", "ok", mask_secrets(Ledger.open(uri).uri))
    except QtrackError as error:
        yield Check("store", "broken", str(error))
