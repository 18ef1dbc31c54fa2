"""Collect what holds and what does not, in a line each."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

from fmeco.errors import FmecoError, clean

Work = Callable[[], str | None]  # raises for what does not hold; returns a remark for the line that says that it does
Checks = Generator[tuple[str, Work], bool]  # gives what is checked, and how; is sent whether it holds


class Broken(Exception):
    """A promise that a plug-in does not keep. The message says which, and what to do."""


@dataclass
class Report:
    """Collect the lines of all checks.

    passed: of each file, what holds, with a remark. problems: "FILE: what: what is wrong with it".
    """

    passed: dict[Path, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def run(self, file: Path, checks: Checks) -> None:
        """Run the checks of one plug-in. What `checks` itself raises counts as a failure to build the plug-in."""
        holds: bool | None = None  # of the check before
        while True:
            try:
                what, work = next(checks) if holds is None else checks.send(holds)
            except StopIteration:
                return
            except Exception as error:
                self.failed(file, "build", error)
                return
            try:
                remark = work()
            except Exception as error:
                self.failed(file, what, error)
                holds = False
            else:
                holds = True
                self.passed.setdefault(file, []).append(what + (f" ({remark})" if remark else ""))

    def failed(self, file: Path, what: str, error: Exception) -> None:
        """Add the line of a check that failed. An error that an earlier check had is not repeated."""
        reason = _reason(file, error)
        if not any(line.startswith(f"{file.name}: ") and line.endswith(f": {reason}") for line in self.problems):
            self.problems.append(f"{file.name}: {what}: {reason}")


def _reason(file: Path, error: Exception) -> str:
    """Say in one line why a check failed; for an error that nobody planned, also where in the plug-in it was raised."""
    if isinstance(error, Broken):
        return clean(error)
    if isinstance(error, FmecoError):
        return clean("; ".join([*error.message.splitlines(), *error.hints]))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent == file.resolve().parent]
    at = (own or frames)[-1]
    said = " ".join(str(error).split())
    return clean(f"{type(error).__name__}: {said} ({Path(at.filename).name}:{at.lineno})")
