"""``qtrack sync``: send what waits in the local spool."""

from __future__ import annotations

import click

from qtrack.cli.options import as_json, debug, tracking_uri

STILL_WAITING = 3


@click.command()
@as_json
@tracking_uri
@debug
@click.pass_context
def sync(ctx: click.Context, as_json: bool, tracking_uri: str | None) -> None:
    """Send to the store what earlier runs could not: in order, and each value once.

    Records wait in the folder .qtrack/spool, beside the store's file or in the folder that the run was
    started in. A run that its process did not end is ended as KILLED. Exits with 3 where some still wait.

    \b
    Example:
      qtrack sync --tracking-uri http://localhost:5000
    """
    from qtrack.cli import render
    from qtrack.ledger import Ledger
    from qtrack.report.hygiene import recovered

    found = Ledger.open(tracking_uri).sync()
    if as_json:
        render.print_json([one._asdict() for one in found])
    elif found:
        render.show(recovered(found))
    else:
        render.remark("nothing waits")
    if any(one.trouble for one in found):
        ctx.exit(STILL_WAITING)
