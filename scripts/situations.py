"""Run the tests of tests/reading, and write what they show as a table into docs/reliability.md.

    python scripts/situations.py            rewrite the table
    python scripts/situations.py --check    only say whether it is up to date, without running the tests

Each test is marked `@pytest.mark.situation(KIND, OUTCOME)`: the kind of situation, such as "transparent pictures", and what
fmeco does with it (one of OUTCOMES). Each case of a parametrised test is an instance of its kind. The script fails, and
leaves the table as it is, if one of the tests fails or is skipped.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- situations -->", "<!-- end of situations -->"
OUTCOMES = ("read rightly", "refused by name", "said")
Counts = Counter[tuple[str, str, str]]  # (area, kind, outcome) -> instances


class Collector:
    """Count the collected situations, and the tests that did not pass."""

    def __init__(self) -> None:
        self.counts: Counts = Counter()
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        marked = [item for item in items if item.get_closest_marker("situation") is not None]
        config.hook.pytest_deselected(items=[item for item in items if item not in marked])
        items[:] = marked
        for item in items:
            marker = item.get_closest_marker("situation")
            assert marker is not None
            kind, outcome = marker.args
            if outcome not in OUTCOMES:
                raise pytest.UsageError(f"{item.nodeid}: outcome {outcome!r}; expected one of {OUTCOMES}")
            area = item.path.stem.removeprefix("test_").replace("_", " ")
            self.counts[area, kind, outcome] += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.failed.append(report.nodeid)


def table(counts: Counts) -> str:
    """Write the counts as a Markdown table, with one row per kind."""
    lines = ["| area | kind of situation | " + " | ".join(OUTCOMES) + " |", "|---|---|" + "--:|" * len(OUTCOMES)]
    kinds = list(dict.fromkeys((area, kind) for area, kind, _ in counts))
    for area, kind in kinds:
        numbers = [counts[area, kind, outcome] for outcome in OUTCOMES]
        lines.append(f"| {area} | {kind} | " + " | ".join(str(number or "") for number in numbers) + " |")
    totals = [sum(n for (_, _, of), n in counts.items() if of == outcome) for outcome in OUTCOMES]
    lines.append(f"| | **{len(kinds)} kinds** | " + " | ".join(f"**{total}**" for total in totals) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Return 0 if the table was written or is up to date, else 1."""
    only_check = "--check" in arguments
    collector = Collector()
    code = pytest.main(
        [str(ROOT / "tests" / "reading"), "-q", "-p", "no:cacheprovider", *(["--collect-only"] if only_check else [])],
        plugins=[collector],
    )
    if code or collector.failed:
        print("\n".join(["the table was not written: these situations did not pass", *collector.failed]))
        return 1
    page = PAGE.read_text("utf-8")
    made = f"{BEGIN}\n{table(collector.counts)}\n{END}"
    new = re.sub(f"{BEGIN}.*{END}", lambda _: made, page, count=1, flags=re.DOTALL)
    if only_check:
        print("up to date" if new == page else "out of date: python scripts/situations.py")
        return int(new != page)
    PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
