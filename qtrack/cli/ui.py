"""``qtrack ui``: MLflow's own UI on this store, with links to the pages that compare."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

from qtrack.cli.example import example_copy
from qtrack.cli.options import debug, tracking_uri
from qtrack.cli.server import serving
from qtrack.cli.signals import terminating_as_interrupted
from qtrack.errors import RunNotFound, StoreError

if TYPE_CHECKING:
    from qtrack.ledger import Ledger

PAGES = {
    "charts": "charts of the last campaign",
    "table": "its strategies as a table",
    "compare": "its strategies side by side",
    "layers": "error over the layers",
    "artifacts": "tables and figures",
}


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Default: any free port.")
@click.option("--example", is_flag=True, help="Show a copy of the example store that comes with a checkout.")
@click.option("--open", "browse", is_flag=True, help="Open the first link in a browser.")
@tracking_uri
@debug
def ui(port: int | None, example: bool, browse: bool, tracking_uri: str | None) -> None:
    """Start the MLflow UI on this store and print links to the pages that compare strategies.

    It answers on this machine only and runs until Ctrl-C. Where the store is a server already, only the links
    are printed.

    \b
    Examples:
      qtrack ui
      qtrack ui --port 5001 --open
      qtrack ui --example
    """
    if example and tracking_uri:
        raise click.UsageError("--example is a store of its own: leave out --tracking-uri")
    with terminating_as_interrupted(), example_copy() if example else nullcontext(tracking_uri) as uri:
        _show(uri, port, browse)


def _show(tracking_uri: str | None, port: int | None, browse: bool) -> None:
    from qtrack.ledger import Ledger

    ledger = Ledger.open(tracking_uri)
    if ledger.uri.startswith(("http://", "https://")):
        _announce(ledger.uri, ledger, browse)
        return
    with serving(ledger.uri, port) as (address, server), _until_interrupted():
        _announce(address, ledger, browse)
        click.echo("Ctrl-C ends it", err=True)
        _wait(server)


def _announce(address: str, ledger: Ledger, browse: bool) -> None:
    from qtrack.ledger import mask_secrets

    address = address.rstrip("/") + "/"
    fragments = _fragments(ledger)
    pages = {PAGES[key]: fragments[key] for key in PAGES if key in fragments}
    for what, fragment in ({"all experiments": ""} | pages).items():
        click.echo(f"{what}: {mask_secrets(address)}{fragment}")
    if browse:
        click.launch(address + next(iter(pages.values()), ""))


def _fragments(ledger: Ledger) -> dict[str, str]:
    """Of the last campaign's pages; none in an empty store."""
    try:
        strategies = ledger.strategies()
    except RunNotFound:
        return {}
    links = ledger.links(strategies)
    try:
        return links | ledger.share_views(strategies)
    except StoreError as error:
        click.echo(f"columns and charts are MLflow's own choice: {error}", err=True)
        return links


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C is the way to end it, and no error."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(err=True)


def _wait(server: subprocess.Popen[bytes]) -> None:
    code = server.wait()
    raise StoreError(f"the MLflow server ended by itself, with {code}")
