"""The command line: parse, call, print. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gradsift.cli.capturing import capture, check, demo, losses, run
from gradsift.cli.comparing import compare, train
from gradsift.cli.planning import plan
from gradsift.cli.selecting import agreement, explain, select, stability, strategies

# In the order of --help.
COMMANDS = (
    run,
    capture,
    select,
    explain,
    strategies,
    stability,
    train,
    compare,
    losses,
    agreement,
    check,
    plan,
    demo,
)

app = typer.Typer(
    name="gradsift",
    help="Pick the part of a supervised fine-tuning set that is worth training on, by each row's "
    "gradient.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from gradsift.version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except ValueError as error:
        typer.echo(f"gradsift: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except OSError as error:
        where = error.filename or "the file system"
        typer.echo(f"gradsift: {where}: {error.strerror or error}", err=True)
        sys.exit(2)
    except ImportError as error:
        typer.echo(
            f"gradsift: {error}. Capturing needs more packages than selecting: "
            "pip install 'gradsift[train]'",
            err=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("gradsift: stopped; run the same command again to resume", err=True)
        sys.exit(130)
