"""The documentation is true where a machine can check it: its links lead somewhere, and its commands exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fmeco.cli.app import app
from fmeco.config.load import load_config

from .conftest import write

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(text: str) -> str:
    """Remove blocks and spans of code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def headings(path: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    outside = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", outside, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def command_lines(text: str) -> Iterator[str]:
    """Command lines of fmeco in blocks and spans of code. A comment after a command is left out; one before it is not."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in [*"\n".join(blocks).splitlines(), *spans]:
        # In a table of the docs | is written \|. Two commands side by side are two lines.
        for found in re.findall(r"(?:^|[\s#])(fmeco (?:(?!\bfmeco ).)*)", line.replace("\\|", "|")):
            yield re.split(r"\s#|\s{3,}", found)[0]


def problems(line: str) -> list[str]:
    """Say what is wrong with a command line: its command, or the names of its options."""
    words = shlex.split(re.sub(r"[\[\]]", " ", line).replace("|", " "))[1:]
    if not words or words[0] == "COMMAND":
        return []
    if words[0].startswith("--"):
        return [] if words[0] in ("--version", "--help") else [f"fmeco has no option {words[0]}"]
    if words[0] not in COMMANDS:
        return [f"no command is called {words[0]}"]
    options = {name for option in COMMANDS[words[0]].params for name in option.opts} | {"--help"}
    named = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    return [f"{words[0]} has no option {name}" for name in named if name not in options]


@page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in headings(path)):
            broken.append(target)
    assert not broken


@page
def test_commands_exist(page: Path) -> None:
    assert not [f"{line}: {problem}" for line in command_lines(page.read_text()) for problem in problems(line)]


@page
def test_options_in_sentences_exist(page: Path) -> None:
    known = {name for command in COMMANDS.values() for option in command.params for name in option.opts} | {"--version"}
    assert not set(re.findall(r"`(--[\w-]+)[^`\n]*`", page.read_text())) - known


@page
def test_configs_are_valid(page: Path) -> None:
    if page.name == "plugins.md":  # its config names the plug-ins of the page, which tests/plugins trains with it
        return
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        file = write("config.yaml", block)
        load_config(file, stage="pretrain" if "\nbackbone:" in block else "finetune")


def test_a_wrong_command_or_option_is_found() -> None:
    text = "```\nfmeco pretrian c.yaml\n```\n`fmeco info REF --force`, `fmeco compare a b [--split val\\|test]`\n"
    assert [problem for line in command_lines(text) for problem in problems(line)] == [
        "no command is called pretrian",
        "info has no option --force",
    ]


def test_every_command_is_documented() -> None:
    shown = {shlex.split(line.replace("[", " "))[1] for line in command_lines((ROOT / "docs/commands.md").read_text())}
    assert COMMANDS.keys() <= shown


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    names = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not [name for name in names if f"({name}" not in index]
