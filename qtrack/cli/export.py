"""``qtrack export``: the recipe of a run, in a pipeline file that runs; or its model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from qtrack.cli.files import write_file
from qtrack.cli.options import debug, tracking_uri
from qtrack.task import located

if TYPE_CHECKING:
    from qtrack.engine.exporting import Exported
    from qtrack.ledger import Ledger
    from qtrack.recipe import Recipe

STDOUT = "-"


@click.command()
@click.argument("run")
@click.option(
    "-o", "--output", metavar="FILE", help="Where to write; - is stdout, the default without --model."
)
@click.option("--model", type=click.Path(path_type=Path), metavar="FILE.pt2", help="Write the model itself.")
@click.option("--task", metavar="TASK", help="The task to name, instead of the one recorded.")
@click.option("--recipe-only", is_flag=True, help="Write the recipe alone.")
@tracking_uri
@debug
def export(
    run: str,
    output: str | None,
    model: Path | None,
    task: str | None,
    recipe_only: bool,
    tracking_uri: str | None,
) -> None:
    """Write the recipe of a run as a pipeline file; to run that gives the same model again.

    With --model, write the model as torch exports it, for any batch size. One whose layers are static is
    written in its reference form: the recorded integers and scales, the arithmetic between them in float.

    RUN is a run id or a unique beginning of one, CAMPAIGN/STAGE, or a stage of the latest campaign. A task
    that is named by its file is looked for beside the output, in this folder, and one level below it.

    \b
    Examples:
      qtrack export fallback -o best.yaml && qtrack run best.yaml
      qtrack export fallback --recipe-only
      qtrack export fallback --model best.pt2
    """
    if model is not None:
        _export_model(run, model, task, tracking_uri)
    if output is not None or model is None:
        _export_recipe(run, output or STDOUT, task, recipe_only, tracking_uri)


def _export_model(run: str, path: Path, task: str | None, tracking_uri: str | None) -> None:
    from qtrack import api
    from qtrack.cli.render import remark

    remark(_told(path, api.export_model(run, path, task, tracking_uri=tracking_uri)))


def _told(path: Path, exported: Exported) -> Iterator[str]:
    """What the file holds, and what its outputs are worth."""
    if exported.form == "reference":
        yield f"wrote {path}: recorded integers and scales, the arithmetic in float; no integer kernels"
        yield f"to load it: import torch.ao.quantization.fx._decomposed; torch.export.load({path.name!r})"
    else:
        yield f"wrote {path}: the recorded model; to load it: torch.export.load({path.name!r})"
    outputs = f"its outputs on {exported.samples} samples"
    if exported.bit_identical:
        yield f"{outputs} are the recorded model's, bit for bit"
        return
    yield f"{outputs} differ from the recorded model's by at most {exported.max_abs_difference:.3g}"
    if exported.equal_predictions is not None:
        yield f"{exported.equal_predictions:.1%} of their predictions are equal"


def _export_recipe(
    run: str, output: str, task: str | None, recipe_only: bool, tracking_uri: str | None
) -> None:
    from qtrack.ledger import Ledger
    from qtrack.recipe import recipe_to_yaml

    ledger = Ledger.open(tracking_uri)
    recipe = ledger.recipe(run)
    folder = Path() if output == STDOUT else Path(output).parent
    text = recipe_to_yaml(recipe) if recipe_only else _pipeline(run, ledger, recipe, task, folder)
    if output == STDOUT:
        click.echo(text, nl=False)
        return
    write_file(Path(output), text.encode())
    click.echo(f"wrote {output}" + ("" if recipe_only else f"; next: qtrack run {output}"), err=True)


def _pipeline(run: str, ledger: Ledger, recipe: Recipe, task: str | None, folder: Path) -> str:
    """The recorded pipeline with this recipe and the one stage that executes it unchanged."""
    from qtrack.report.cells import visible

    (strategy,) = ledger.strategies([run])
    recorded = ledger.pipeline(run).model_dump(mode="json", exclude_none=True)
    changes = {
        "task": task or relocated(recorded["task"], folder),
        "recipe": recipe.model_dump(mode="json"),
        "stages": [{"recipe": {"name": strategy.stage}}],
    }
    heading = visible(f"# {strategy.stage} of {strategy.campaign}, recipe {recipe.digest[:12]}")
    return f"{heading}\n" + yaml.safe_dump(recorded | changes, sort_keys=False)


def relocated(reference: str, folder: Path) -> str:
    """A task's file as it is reached from the output's folder; a module stays as it is."""
    from qtrack.cli.render import remark

    source, _, name = reference.rpartition(":")
    if not source.endswith(".py") or (folder / source).is_file():
        return reference
    found = located(source)
    if found is None:
        remark(f"{source} is not beside the output; say where the task is with --task")
        return reference
    return f"{Path(os.path.relpath(found, folder)).as_posix()}:{name}"
