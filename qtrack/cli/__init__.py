"""The command line: ``qtrack COMMAND``.

A command lives in the file of its name and is imported when it is called, so that ``qtrack --help`` loads
neither torch nor mlflow. Data goes to stdout, remarks and progress to stderr; the exit codes are those of
``qtrack.errors``.
"""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from qtrack import __version__
from qtrack.cli.options import DEBUG, debug
from qtrack.errors import QtrackError

COMMANDS = {
    "run": "Run all stages of a pipeline file and record each.",
    "sweep": "Run many pipelines, tasks, seeds and engines; also on a cluster.",
    "compare": "Put strategies side by side.",
    "history": "Show a strategy's metric over time, and what changed where it moved.",
    "report": "Write all that a campaign came to as one page.",
    "layers": "Show the layers of a run, worst first; of two runs, what moved.",
    "sensitivity": "Rank the layers of a quantized model by what they do to its output.",
    "prices": "Show what each layer of a run costs at each precision.",
    "diff": "Say what differs between two runs, and which of it moved the metric.",
    "diagnose": "Say which kind of error a quantized model has, and what to try next.",
    "audit": "Look at the calibration data of a task, before anything is quantized.",
    "reproduce": "Execute a run's recipe again: the same model, or what drifted.",
    "export": "Write the recipe of a run, ready to run again.",
    "gate": "Fail where a strategy is worse than the promoted one.",
    "promote": "Make the model of a run a version in MLflow's registry.",
    "sync": "Send to the store what earlier runs could not.",
    "repair": "End runs whose process is gone.",
    "ui": "Start the MLflow UI, with links to the pages that compare.",
    "doctor": "Say what works on this machine.",
    "init": "Write a task and a pipeline to fill in.",
}

INTERRUPTED = 130
UNFORESEEN = 3
LONGEST_LINE = 2000


class Failure(click.ClickException):
    """What went wrong, as the user sees it: one line for each fault."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads each instance's own

    def show(self, file: Any = None) -> None:
        from qtrack.report.cells import visible

        for line in self.message.split("\n"):
            click.echo(visible(f"qtrack: {line}")[:LONGEST_LINE], file=file or sys.stderr)


class Commands(click.Group):
    """Lists commands from the table above; turns what they raise into lines and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        return name, getattr(import_module(f"qtrack.cli.{name}"), str(name)) if known else None, rest

    def invoke(self, ctx: click.Context) -> Any:
        with _failures(ctx):
            return super().invoke(ctx)


@contextmanager
def _failures(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except (QtrackError, KeyboardInterrupt, Exception) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # whoever reads has seen enough, and click ends quietly
        if ctx.meta.get(DEBUG):
            from qtrack.report.cells import visible

            click.echo(visible(_masked(traceback.format_exc()), keep="\n"), err=True, nl=False)
        failure = _failure(error)
        raise Failure(_masked(failure.message), failure.exit_code) from None


def _masked(text: str) -> str:
    from qtrack.ledger import mask_secrets

    return mask_secrets(text)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, QtrackError):
        return Failure(str(error) or type(error).__name__, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", INTERRUPTED)
    said = " ".join(str(error).split())
    said = said if len(said) <= 400 else said[:397] + "..."
    remark = "this is a fault in qtrack or in the task; --debug shows the traceback"
    return Failure(f"{type(error).__name__}: {said} ({remark})", UNFORESEEN)


@click.group(
    cls=Commands,
    commands={name: click.Command(name, help=line, short_help=line) for name, line in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@debug
@click.version_option(__version__, prog_name="qtrack")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Try quantization remedies as stages of a pipeline, each recorded as an MLflow run.

    \b
    Examples:
      qtrack init digits         write a task and a pipeline to start from
      qtrack run digits.yaml     run all stages; a table at the end
      qtrack compare             the strategies side by side
      qtrack layers ptq          where the error sits
      qtrack reproduce ptq       the same model again, or what drifted
    """
    ctx.with_resource(warnings.catch_warnings())
    warnings.simplefilter("default" if ctx.meta.get(DEBUG) else "ignore")
