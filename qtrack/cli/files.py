"""Files that commands write for the user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qtrack.report.tables import Table

plot_option = click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw them as well; the name ends in .png, .svg or .html, a page with picture and table.",
)


def contents_of(plot: Path) -> Callable[[Figure, str, Table], bytes]:
    """What makes the contents of a file of this name, known before any work."""
    from qtrack.errors import InputError
    from qtrack.report.page import FORMATS

    if plot.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {plot}: the name must end in one of {', '.join(FORMATS)}")
    return FORMATS[plot.suffix.lower()]


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole; raises InputError in one line where that cannot be."""
    from qtrack.errors import InputError

    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
