"""Assemble the command line from the families of commands in this folder.

Neither this file nor a family imports torch, so that help and config errors appear at once.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import sys
from typing import Annotated

import typer

import fmeco.cli
from fmeco._version import __version__
from fmeco.cli.options import signals


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
    try:
        app()
    except SystemExit as end:
        # Arguments that the parser refuses never reach a command; with --json, print an error object for them here.
        if end.code == 2 and "--json" in sys.argv and not signals.answered:
            print(
                json.dumps(
                    {"error": {"code": "config", "message": "wrong usage; the reason is on stderr", "hints": []}}
                )
            )
        raise
