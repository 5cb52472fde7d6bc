"""``qtrack init``: a task and a pipeline to start from."""

from __future__ import annotations

import keyword
from importlib.util import find_spec
from pathlib import Path

import click

from qtrack.cli.options import debug
from qtrack.cli.templates import PIPELINE, TASK
from qtrack.errors import InputError


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@debug
def init(name: str, force: bool) -> None:
    """Write NAME.py, a task, and NAME.yaml, a pipeline; both run as they are.

    \b
    Example:
      qtrack init digits && qtrack run digits.yaml
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(f"{name!r} cannot name a Python module; use letters, digits and underscores")
    files = {Path(f"{name}.py"): TASK, Path(f"{name}.yaml"): PIPELINE}
    present = [str(path) for path in files if path.exists()]
    if present and not force:
        raise InputError(f"{' and '.join(present)}: there already; --force overwrites")
    for path, text in files.items():
        path.write_text(text.replace("NAME", name).replace("CLASS", _class_name(name)), encoding="utf-8")
        click.echo(str(path))
    if find_spec("sklearn") is None:
        click.echo("the example data needs scikit-learn: pip install 'qtrack[demo]'", err=True)
    click.echo(f"next: qtrack run {name}.yaml", err=True)


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_")) or "Mine"
