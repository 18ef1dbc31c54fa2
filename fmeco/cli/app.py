"""Assemble the command line from the families of commands in this folder.

Neither this file nor a family imports torch, so that help and config errors appear at once.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import sys
from pathlib import Path
from typing import Annotated

import typer

import fmeco.cli
from fmeco._version import __version__
from fmeco.cli.options import print_all, signals
from fmeco.errors import DiskError
from fmeco.files import disk_error


def build() -> typer.Typer:
    """Build the command line from every module in this folder that has a function `register(app)`.

    `ORDER` in a module is its place in `fmeco --help`; modules without it come last.
    """
    app = typer.Typer(
        help="Transfer learning you can trust: pretrain once, finetune on many tasks.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        epilog="Start with `fmeco demo`, or `fmeco init` in an empty folder.",
    )
    app.callback()(_options)
    names = [module.name for module in pkgutil.iter_modules(fmeco.cli.__path__)]
    modules = [importlib.import_module(f"fmeco.cli.{name}") for name in names]
    families = [module for module in modules if hasattr(module, "register")]
    for family in sorted(families, key=lambda module: getattr(module, "ORDER", math.inf)):
        family.register(app)
    return app


def _print_version(asked: bool) -> None:
    """Print the version and exit."""
    if asked:
        print(f"fmeco {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Declare the options of `fmeco` itself, without a command."""


app = build()


def main() -> None:
    """Run the console script. Exit code 2 means wrong usage, such as an unknown option."""
    signals.install()
    code: int | str | None = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except OSError as error:  # the parser printed a text, such as that of --help
        sys.exit(_unwritten(error))
    answer = ""
    if code == 2 and "--json" in sys.argv and not signals.answered:
        # Arguments that the parser refuses never reach a command; with --json, print an error object for them here.
        answer = json.dumps(
            {"error": {"code": "config", "message": "wrong usage; the reason is on stderr", "hints": []}}
        )
    failure = print_all(answer, sys.stdout)
    sys.exit(code if failure is None or code else _unwritten(failure))


def _unwritten(error: OSError) -> int:
    """Report that stdout could not be written. Returns the exit code."""
    print_all("", sys.stdout)  # drops the rest
    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
        return 1
    print_all(f"error: {disk_error(error, Path('the output')).message}", sys.stderr)
    return DiskError.exit_code
