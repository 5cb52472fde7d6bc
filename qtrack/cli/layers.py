"""``qtrack layers``: the layer table of a run, or what moved between two."""

from __future__ import annotations

import click

from qtrack.cli.options import as_json, debug, tracking_uri

LONGEST_REFERENCE = 14


@click.command()
@click.argument("run")
@click.argument("other", required=False, metavar="[RUN]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show only the first N layers.")
@as_json
@tracking_uri
@debug
def layers(run: str, other: str | None, limit: int | None, as_json: bool, tracking_uri: str | None) -> None:
    """Show the layers of a run, the largest error first; of two runs, what moved.

    A layer's own SQNR has everything before it in float; the accumulated one has the errors of all layers
    before it. RUN is a run id or a unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest
    campaign.

    \b
    Examples:
      qtrack layers ptq --limit 10
      qtrack layers ptq per_channel
      qtrack layers ptq --json
    """
    from qtrack.cli import render
    from qtrack.ledger import Ledger
    from qtrack.report import tables

    ledger = Ledger.open(tracking_uri)
    rows = ledger.layers(run)
    if other is None:
        if as_json:
            render.print_json(tables.worst_first(rows)[:limit])
        else:
            render.show(tables.layers(rows, limit))
        return
    pairs = tables.paired_layers(rows, ledger.layers(other))
    if as_json:
        render.print_json(pairs[:limit])
    else:
        render.show(tables.moved(pairs, (_short(run), _short(other)), limit))


def _short(reference: str) -> str:
    return reference if len(reference) <= LONGEST_REFERENCE else f"{reference[:8]}…"
