"""``qtrack report``: all that a campaign came to, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtrack.cli.files import write_file
from qtrack.cli.options import debug, tracking_uri

if TYPE_CHECKING:
    from qtrack.ledger import Ledger, Strategy


@click.command()
@click.argument("what", required=False, metavar="[EXPERIMENT|CAMPAIGN]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="The page to write.",
)
@tracking_uri
@debug
def report(what: str | None, output: Path, tracking_uri: str | None) -> None:
    """Write a campaign as one page: strategies, layers, classes, recipes, environment, how to reproduce.

    The page loads nothing, neither scripts nor fonts nor pictures, and can be read on a phone. Of an
    experiment it shows the latest campaign; without an argument the latest of all. A campaign is named by its
    id or a unique beginning of it. Each campaign's run holds such a page as well.

    \b
    Examples:
      qtrack report
      qtrack report digits -o digits.html
      qtrack report digits-20260105-093000-ab12 -o january.html
    """
    from qtrack.cli import render
    from qtrack.ledger import Ledger
    from qtrack.report.document import document
    from qtrack.report.material import recorded_material

    ledger = Ledger.open(tracking_uri)
    material = recorded_material(ledger, _strategies(ledger, what))
    write_file(output, document(material).encode())
    render.remark([*material.remarks, f"wrote {output}"])


def _strategies(ledger: Ledger, what: str | None) -> list[Strategy]:
    from qtrack.errors import RunNotFound

    experiments = ledger.experiment_names()
    named = what in experiments
    try:
        found = ledger.strategies(experiment=what if named else None, campaign=None if named else what)
    except RunNotFound as error:
        if what is None or named:
            raise
        known = ", ".join(experiments)
        raise RunNotFound(f"no experiment {what!r} (there are {known}), and {error}") from error
    if not found:
        raise RunNotFound(f"the campaign {what or ''!r} has no stages on record")
    return found
