"""Options that several commands share."""

from __future__ import annotations

import warnings

import click

DEBUG = "qtrack.debug"


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True
        if ctx.parent:  # the group sees to its own
            warnings.simplefilter("default")


debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Show warnings, and the traceback where something fails.",
)

tracking_uri = click.option(
    "--tracking-uri",
    metavar="URI",
    help="The MLflow store; default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in this folder.",
)

executor = click.option(
    "--executor", help="in-process, processes or ray; default: ray where RAY_ADDRESS is set, else in-process."
)
address = click.option(
    "--address", metavar="HOST:PORT", help="Of a Ray cluster; default: RAY_ADDRESS, or a new one."
)
workers = click.option("--workers", type=click.IntRange(min=1), help="Processes, or cores of a new cluster.")

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
