"""Check plug-ins from the command line: `python -m fmeco.testing FILE`."""

from __future__ import annotations

import argparse
import sys

from fmeco.config.parser import parse_yaml
from fmeco.errors import ConfigError, FmecoError
from fmeco.testing.check_plugin import full_report


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each check. Returns the exit code: 0, 1 where something fails, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        "python -m fmeco.testing", description="Check whether a plug-in keeps its promises."
    )
    parser.add_argument("path", metavar="FILE", help="a plug-in, or a folder of them")
    parser.add_argument("--set", metavar="K=V", action="append", default=[], help="a key of the plug-in")
    parser.add_argument("--plugin", metavar="PATH", action="append", default=[], help="another plug-in that it needs")
    parser.add_argument("--dataset", metavar="X", help="a folder, table or dataset's name to check with")
    parser.add_argument("--backbone", metavar="NAME", help="a backbone to check with, or {name: NAME, KEY: VALUE}")
    given = parser.parse_args(arguments)
    try:
        options = dict(_option(item) for item in given.set)
        backbone = parse_yaml(given.backbone, "--backbone")[0] if given.backbone else None
        report = full_report(
            given.path, plugins=given.plugin, dataset=given.dataset, backbone=backbone, options=options
        )
    except FmecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for file, held in report.passed.items():
        print(f"ok    {file.name}: {', '.join(held)}")
    for line in report.problems:
        print(f"FAIL  {line}")
    return 1 if report.problems else 0


def _option(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: write it as --set KEY=VALUE")
    return key, parse_yaml(value, f"--set {text}")[0] if value else None


if __name__ == "__main__":
    sys.exit(main())
