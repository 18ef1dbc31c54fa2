"""No test touches the network or the user's home; each runs in a folder of its own."""

from __future__ import annotations

import functools
import http.server
import importlib.metadata
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fmeco.cli import app as cli
from fmeco.plugins import registry

torch.set_num_threads(1)  # tests run side by side, and "same bits" is promised per thread count

INSTALLED = registry._entry_points  # what installed packages add


@functools.cache
def _entry_points(kind: str) -> tuple[tuple[str, str], ...]:
    """What packages add, apart from the one of examples/: a test of fmeco's own plug-ins is not about it."""
    found = importlib.metadata.entry_points(group=f"fmeco.{kind}")
    return tuple((one.name, one.module) for one in found if not one.module.startswith("fmeco_example."))


registry._entry_points = _entry_points


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setattr(registry, "_EXTRA", {})  # what an earlier test added with --plugin
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reached for the network: {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def fmeco() -> Callable[..., Answer]:
    """Run a command line in this process."""

    def call(*arguments: Any) -> Answer:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def server() -> Iterator[str]:
    """An HTTP server over the current folder, on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/"
    httpd.shutdown()


def script(name: str) -> Any:
    """A module of scripts/, which is no package: what a script looks at, tests look at, too."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def process(*arguments: Any, **how: Any) -> subprocess.Popen[str]:
    """Start a command line in a real second process, single-threaded like this one."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fmeco", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        **how,
    )


def picture(path: Path, colour: tuple[int, int, int], seed: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    """A noisy image of mostly one colour."""
    noise = np.random.default_rng(seed).integers(-60, 60, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype("uint8")).save(path)
    return path


COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40), "white": (220, 220, 220)}


def photos(root: Path, classes: tuple[str, ...] = ("blue", "green", "red"), each: int = 12) -> Path:
    """A folder of class folders."""
    for c, name in enumerate(classes):
        for i in range(each):
            picture(root / name / f"{i:02}.png", COLOURS[name], seed=100 * c + i)
    return root


def texts(path: Path, each: int = 20) -> Path:
    """Generated sentences of 2 to 21 words, as JSONL, or as lines of a .txt: of animals, or of tools."""
    words = {"animal": ["cat", "dog", "cow", "hen", "owl"], "tool": ["saw", "axe", "drill", "file", "rasp"]}
    rows = [
        {"text": " ".join(words[label][(i * i + j * (i + 1)) % 5] for j in range(2 + i % 20)) + f" {i}", "label": label}
        for i in range(each)
        for label in words
    ]
    lines = [json.dumps(row) if path.suffix == ".jsonl" else row["text"] for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def tones(
    root: Path, classes: Mapping[str, float] = {"high": 1800.0, "low": 300.0}, each: int = 10, rate: int = 8000
) -> Path:
    """A folder of class folders of generated tones, CLASS/SPEAKER_N.wav, of four made-up speakers: 0.15 to 0.5 s long."""
    import soundfile

    for c, (name, pitch) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            rng = np.random.default_rng(100 * c + i)
            t = np.arange(int(rate * rng.uniform(0.15, 0.5))) / rate
            wave = 0.3 * np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * t) + 0.01 * rng.standard_normal(len(t))
            soundfile.write(root / name / f"{('ann', 'bob', 'cid', 'dot')[i % 4]}_{i:02}.wav", wave, rate)
    return root


def tiny(**changes: Any) -> dict[str, Any]:
    """A config that trains in well under a second."""
    base: dict[str, Any] = {
        "dataset": {"name": "digits", "classes": [0, 1, 2], "image_size": 8, "limit_per_class": 20},
        "backbone": {"name": "mlp", "hidden": [32]},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 3, "batch_size": 16, "tensorboard": False},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def write(path: str | Path, config: Any) -> Path:
    """A config as a YAML file."""
    import yaml

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False), "utf-8")
    return Path(path)
