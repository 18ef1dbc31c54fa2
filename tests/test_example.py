"""The package in examples/ adds plug-ins by entry points alone, trains from its YAML, and is missed where it is absent."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fmeco as api
from fmeco.plugins import registry
from fmeco.testing.check_plugin import check_plugin

from .conftest import INSTALLED, Answer, write

Fmeco = Callable[..., Answer]
EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = sorted((EXAMPLES / "fmeco_example").glob("[!_]*.py"))
FRACAST = EXAMPLES / "fmeco_example/fracast.py"  # needs a package of others, so it is no entry point
YAML = EXAMPLES / "motions.yaml"
PROJECT: dict[str, Any] = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
KINDS: dict[str, dict[str, str]] = PROJECT["entry-points"]


def forget() -> None:
    for cached in (INSTALLED, registry._entry_point):
        cached.cache_clear()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the package of this checkout, as pip does: its folder on the path, its entry points in a metadata folder."""
    entries = "".join(
        f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in names.items())
        for group, names in KINDS.items()
    )
    write("site/fmeco_example-0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {PROJECT['name']}\nVersion: 0\n")
    write("site/fmeco_example-0.dist-info/entry_points.txt", entries)
    for path in (Path("site").resolve(), EXAMPLES):
        monkeypatch.syspath_prepend(str(path))
    monkeypatch.setattr(registry, "_entry_points", INSTALLED)
    forget()
    yield
    forget()
    for name in [name for name in sys.modules if name.partition(".")[0] == "fmeco_example"]:
        del sys.modules[name]


def test_its_entry_points_are_found(fmeco: Fmeco, example: None) -> None:
    kinds = {"datasets": "motions", "backbones": "dilated", "objectives": "prototypes"}
    assert {f"fmeco.{kind}": {name: f"fmeco_example.{name}"} for kind, name in kinds.items()} == KINDS
    for kind, name in kinds.items():
        assert fmeco("list", kind, "--json").json[name]["from"] == "fmeco_example"
        assert registry.plugins(kind)[name].file == EXAMPLES / f"fmeco_example/{name}.py"
    assert "who is recorded" in fmeco("describe", "dataset", "motions").out


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_keeps_its_promises(example: None, file: Path) -> None:
    if file == FRACAST:
        pytest.importorskip("fracast")
    assert check_plugin(file, plugins=[EXAMPLES / "fmeco_example/motions.py"]) == []


STRIDE = ("--set", "dataset.stride=5")  # a key that datasets of other tables do not have


def series() -> Path:
    rows = [f"{i},{20 + (i % 24 - 12) ** 2 / 9 + i % 7}" for i in range(400)]
    return write("series.csv", "\n".join(["time,load", *rows]))


def test_published_weights_of_a_package_forecast_as_the_package_does(fmeco: Fmeco) -> None:
    published = pytest.importorskip("fracast")
    keys = ("--set", "dataset.context=96", "--set", "dataset.horizon=6", *STRIDE)
    tuned = fmeco(
        *("finetune", "--from", "fracast/fracast0@fp32", "--dataset", series(), "--plugin", FRACAST, *keys),
        *("--set", "transfer=probe", "--set", "train.tensorboard=false", "--out", "run"),
    )
    assert tuned.code == 0, tuned.err
    assert "weights from fracast/fracast0@fp32: 100.0% of the backbone's parameters" in tuned.err

    with registry.added([FRACAST]):
        model = api.load("run")
        values = torch.tensor([float(line.split(",")[1]) for line in series().read_text().splitlines()[-96:]])
        ours = model.objective.backbone({"series": values[None]}).tokens[0]
    theirs = published.FracastModel.from_pretrained(weights="fp32").forecast(values.numpy())
    assert torch.allclose(ours, torch.from_numpy(theirs).float(), rtol=1e-4)


def test_a_package_that_is_missing_is_one_line(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fracast", None)
    answer = fmeco("check", "--from", "fracast/fracast0@fp32", "--dataset", series(), "--plugin", FRACAST, *STRIDE)
    assert answer.code == 2
    assert "error: the backbone fracast needs a package" in answer.err
    assert "pip install fracast" in answer.err
    assert "Traceback" not in answer.err


def test_its_config_trains_and_the_checkpoint_predicts(
    fmeco: Fmeco, example: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = fmeco("pretrain", YAML, "--out", "run", "--set", "train.tensorboard=false", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_accuracy"] > 0.9
    by = fmeco("evaluate", "run", "--by", "person", "--json")
    assert by.code == 0, by.err
    assert {row["group"] for row in by.json["groups"]} == {"person-4", "person-9"}, "people that were not trained on"

    from fmeco_example._signals import recording  # type: ignore[import-not-found]

    for motion in ("resting", "running"):
        moments = recording(motion, 20, 0, 150).T.tolist()
        write(f"{motion}.csv", "\n".join(",".join(f"{value:.4f}" for value in moment) for moment in moments))
    write("short.csv", "0,0,1\n0,0,1\n")
    rows = fmeco("predict", "run", "resting.csv", "running.csv", "--json").json["predictions"]
    assert [row["prediction"] for row in rows] == ["resting", "running"]
    assert all(row["distance"] >= 0 for row in rows)
    bad = fmeco("predict", "run", "short.csv")
    assert bad.code == 3
    assert "short.csv: not a file of 128 lines `x,y,z` or more" in bad.err
    tuned = fmeco("finetune", "--from", "run", "--dataset", "motions", "--set", "train.epochs=1", "--json")
    assert tuned.code == 0, tuned.err
    assert tuned.json["metrics"]["val_accuracy"] > 0.9

    monkeypatch.setattr(registry, "_entry_points", lambda kind: ())
    absent = fmeco("predict", "run", "resting.csv")
    assert absent.code == 2
    assert "run needs backbones/dilated, objectives/prototypes: --plugin FILE.py" in absent.err
    assert "plug-ins of installed packages need no --plugin" in absent.err
    again = fmeco("predict", "run", "resting.csv", "--plugin", EXAMPLES / "fmeco_example", "--json")
    assert again.json["predictions"][0]["prediction"] == "resting", "a package's folder serves as well"


def test_what_setup_installs_is_what_the_project_says() -> None:
    try:
        installed = importlib.metadata.distribution(PROJECT["name"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("bash scripts/setup.sh dev installs it")
    found: dict[str, dict[str, str]] = {}
    for entry in installed.entry_points:
        found.setdefault(entry.group, {})[entry.name] = entry.value
    assert found == KINDS
