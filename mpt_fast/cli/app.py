"""The typer application: which commands there are, and how every failure becomes one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mpt_fast import __version__
from mpt_fast.cli import (
    approximate,
    bench,
    demo,
    evaluate,
    finetune,
    pack,
    report,
    rigl,
    run,
    train,
)
from mpt_fast.cli.options import output
from mpt_fast.cli.output import fail, one_line

# Newer typer carries its own click and older ones import it: both name their errors as bases of
# typer.BadParameter, whose parents are UsageError (status 2) and ClickException (status 1).
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class _CommandError(Exception):
    """A command failed; its one line is the message."""


class Commands(TyperGroup):
    """Turns whatever a command raises into one line on standard error and status 1 or 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (_ClickException, typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            # The reader went away (`| head`): nothing is left to say and nobody to say it to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise _CommandError("interrupted") from None
        except Exception as error:
            if output(ctx).debug:
                traceback.print_exc()
            raise _CommandError(_explain(error, output(ctx).debug)) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            status = super().main(
                args, prog_name, complete_var, False, windows_expand_args, **extra
            )
        except _CommandError as error:
            fail(str(error))
            status = 1
        except _ClickException as error:
            if str(error):  # empty for a bare `mpt-fast`, which has shown its help
                fail(_usage_line(error))
            status = getattr(error, "exit_code", 1)
        except typer.Abort:
            fail("interrupted")
            status = 1
        status = status if isinstance(status, int) else 0
        if standalone_mode:
            sys.exit(status)
        return status


def _explain(error: Exception, traced: bool) -> str:
    expected = isinstance(error, (ValueError, RuntimeError, OSError, ImportError))
    hint = "" if expected or traced else " (unexpected: add --debug and report the traceback)"
    return one_line(error) + hint


def _usage_line(error: Any) -> str:
    message = " ".join(error.format_message().split())
    where = getattr(error, "ctx", None)
    if where is None or not isinstance(error, _UsageError):
        return message
    return f"{message.rstrip('.')}; see {where.command_path} --help"


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"mpt-fast {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="mpt-fast",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(
    epilog="First time here? Run [bold]mpt-fast demo[/bold]: about a minute, no data needed.",
)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Find, pack and run multi-prize tickets: parts of random networks, one bit per weight."""
    output(context)  # made here, so that every command shares it with the group's error handling


def _flowing(documentation: str) -> str:
    """A docstring with one line per paragraph: typer keeps line breaks where a terminal folds."""
    return "\n\n".join(" ".join(part.split()) for part in documentation.split("\n\n"))


for _command in (
    demo, train, finetune, evaluate, pack, run, bench, report, rigl, approximate,
):  # fmt: skip
    app.command(
        _command.NAME, help=_flowing(_command.command.__doc__ or ""), epilog=_command.EXAMPLE
    )(_command.command)
