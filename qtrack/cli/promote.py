"""``qtrack promote``: the model of a run as a version in MLflow's registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qtrack.cli.options import as_json, debug, tracking_uri

if TYPE_CHECKING:
    from qtrack.ledger.registry import Promotion


@click.command()
@click.argument("run")
@click.option(
    "--name", required=True, metavar="MODEL", help="The registered model; made where there is none."
)
@click.option("--alias", default="champion", show_default=True, help="What the version is known by.")
@as_json
@tracking_uri
@debug
def promote(run: str, name: str, alias: str, as_json: bool, tracking_uri: str | None) -> None:
    """Make the model of a run the one that an alias in MLflow's registry stands for.

    Others load it as models:/MODEL@ALIAS; commands of qtrack that take a RUN take that as well. A run that is
    a version already gets no second one. RUN is a run id or a unique beginning of one, CAMPAIGN/STAGE, or a
    stage of the latest campaign.

    \b
    Examples:
      qtrack promote qat --name digits
      qtrack promote 3f2a9c --name digits --alias challenger --json
    """
    from qtrack import api
    from qtrack.cli import render

    found = api.promote(run, name, alias, tracking_uri=tracking_uri)
    if as_json:
        render.print_json(found.to_dict())
    else:
        click.echo(_told(found))


def _told(found: Promotion) -> str:
    was = "new"
    if found.previous_version is not None:
        was = f"was version {found.previous_version}, run {(found.previous_run or '')[:8]}"
    return f"{found.uri}  version {found.version}  ({was})"
