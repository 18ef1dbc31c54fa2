"""Weights as other tools write them: harmless objects beside them, shards, fewer bits. What could run code is refused by name."""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import pickle
import tarfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fmeco.checkpoints.foreign import shards
from fmeco.checkpoints.foreign.files import read_foreign
from fmeco.errors import CheckpointError, ConfigError
from fmeco.files import read_json
from fmeco.inference.layers import layers
from tests.conftest import Answer

Fmeco = Callable[..., Answer]


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def trained() -> tuple[nn.Module, dict[str, Any]]:
    """A network, and what a training script saves of it: with an optimizer that has more tensors than the network."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(
        model="resnet18", lr=0.1, output=Path("out/a"), betas=(0.9, 0.99), extra={"drop": 0.2}
    )
    return net, {
        "epoch": 9,
        "arch": "resnet",
        "args": arguments,
        "metric": np.float64(77.5),
        "history": defaultdict(list, loss=[1.0]),
        "when": datetime.datetime(2024, 1, 2),
        "curve": np.arange(3.0),
        "optimizer": optimizer.state_dict(),
        "state_dict": net.state_dict(),
    }


class Thing:
    """An object of a class of the script itself."""


class Reduced:
    def __init__(self, how: Any, *arguments: Any) -> None:
        self.how, self.arguments = how, arguments

    def __reduce__(self) -> Any:
        return self.how, self.arguments


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_save_beside_the_weights_does_no_harm(zipped: bool, fmeco: Fmeco) -> None:
    net, saved = trained()
    torch.save(saved, "model_best.pth.tar", _use_new_zipfile_serialization=zipped)
    assert equal(read_foreign(Path("model_best.pth.tar")), net.state_dict())
    answer = fmeco("info", "model_best.pth.tar", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["tensors"] == 6
    assert answer.json["names"]["0.weight"] == "float32 (5, 6)"
    beside = answer.json["beside them"]
    assert {"epoch": 9, "arch": "resnet", "args.model": "resnet18", "args.output": "out/a"}.items() <= beside.items()
    assert beside["args.extra.drop"] == 0.2


def test_info_shows_layers_that_are_alike_in_a_line(fmeco: Fmeco) -> None:
    state = {"stem.weight": torch.zeros(8, 3, 3, 3), "token": torch.zeros(1, 8)}
    for at in range(12):
        state |= {
            f"blocks.{at}.conv.weight": torch.zeros(8 + at, 8, 1, 1),
            f"blocks.{at}.conv.bias": torch.zeros(8 + at),
        }
        state |= {f"blocks.{at}.norm.weight": torch.zeros(8).half()} if at in (0, 5) else {}
    torch.save(state, "w.pt")
    answer = fmeco("info", "w.pt")
    rows = [line.split(maxsplit=4) for line in answer.out.partition("layer ")[2].splitlines()[1:6]]
    assert rows[:4] == [
        ["stem", "1", "216", "float32", "weight (8, 3, 3, 3)"],
        ["token", "1", "8", "float32", "(1, 8)"],
        ["blocks.0-11.conv", "24", "1,458", "float32", "weight (8-19, 8, 1, 1); bias (8-19)"],
        ["blocks.{0,5}.norm", "2", "16", "float16", "weight (8)"],
    ]
    assert "blocks.3.conv.bias" not in answer.out
    assert "blocks.3.conv.bias: float32 (11,)" in fmeco("info", "w.pt", "--all").out
    assert len(fmeco("info", "w.pt", "--json").json["names"]) == len(state)


def test_info_joins_layers_further_where_they_fill_more_than_a_screen() -> None:
    state = {f"dense{at}.norm{part}.weight": torch.zeros(at) for at in range(1, 60) for part in (1, 2)}
    assert [row["layer"] for row in layers(state)] == ["dense1-59.norm1-2"]
    assert layers({f"{'9' * 5000}.w": torch.zeros(1)})[0]["tensors"] == 1, "a number that Python refuses to read"


def test_other_types_are_refused_by_name_and_none_runs() -> None:
    marker = Path("marker").resolve()
    touch = pickle.dumps(Reduced(os.system, f"touch {marker}"))
    scalar = np.float64(1).__reduce__()[0]
    cases: dict[str, tuple[Any, str]] = {
        "a class of the script": (Thing(), f"{__name__}.Thing"),
        "a function": (functools.partial(print), "functools.partial"),
        "getattr": (Reduced(getattr, argparse.Namespace(a=1), "a"), "builtins.getattr"),
        "two of them": ([Thing(), functools.partial(print)], "functools.partial, "),
    }
    for number, (found, name) in enumerate(cases.values()):
        torch.save({"state_dict": network().state_dict(), "x": found}, f"{number}.pth")
        with pytest.raises(CheckpointError, match="would run code") as caught:
            read_foreign(Path(f"{number}.pth"))
        assert name in caught.value.message
    # numpy unpickles the bytes of an object's scalar, so not even numpy's own code may run
    torch.save({"w": torch.zeros(2), "x": Reduced(scalar, np.dtype("O"), touch)}, "scalar.pth")
    state = read_foreign(Path("scalar.pth"))
    assert list(state) == ["w"]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float8_e4m3fn, "fp8"), (torch.float8_e5m2, "fp8")],
)
def test_fewer_bits_become_fp32_and_are_said(
    dtype: torch.dtype, name: str, fmeco: Fmeco, caplog: pytest.LogCaptureFixture
) -> None:
    state = {key: tensor.to(dtype) for key, tensor in network().state_dict().items()} | {"steps": torch.tensor(3)}
    save_file(state, "w.safetensors")
    torch.save(state, "w.pt")
    for file in (Path("w.safetensors"), Path("w.pt")):
        caplog.clear()
        with caplog.at_level("INFO", "fmeco"):
            read = read_foreign(file)
        assert f"converted to fp32: 6 tensors of {name}" in caplog.text
        assert all(torch.equal(read[key], tensor.float()) for key, tensor in state.items() if key != "steps")
        assert {tensor.dtype for key, tensor in read.items() if key != "steps"} == {torch.float32}
        assert read["steps"].dtype == torch.int64
    assert str(dtype).removeprefix("torch.") in fmeco("info", "w.pt").out


def test_quantised_weights_are_refused() -> None:
    weight = torch.ones(2, 2).to(torch.float8_e4m3fn)
    save_file({"a.weight": weight, "a.weight_scale": torch.tensor(0.5)}, "q.safetensors")
    with pytest.raises(CheckpointError, match=r"quantised weights: a\.weight is fp8, with the scale a\.weight_scale"):
        read_foreign(Path("q.safetensors"))
    torch.save({"w": torch.empty(3, device="meta")}, "meta.pt")
    with pytest.raises(CheckpointError, match="more data than the file holds"):
        read_foreign(Path("meta.pt"))


def split(folder: Path, suffix: str) -> dict[str, Tensor]:
    """Weights in two shards and an index, as transformers writes them."""
    state = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    folder.mkdir(exist_ok=True)
    parts: dict[str, dict[str, Tensor]] = {}
    for number, (name, tensor) in enumerate(state.items()):
        parts.setdefault(f"{stem}-0000{number // 4 + 1}-of-00002.{suffix}", {})[name] = tensor
    for file, part in parts.items():
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return state


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_as_one_and_none_is_missed(suffix: str, fmeco: Fmeco) -> None:
    folder = Path("sharded")
    state = split(folder, suffix)
    index = shards.find_weights(folder)
    assert index is not None
    read = shards.read_weights(index)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    assert fmeco("info", folder, "--json").json["tensors"] == fmeco("info", index, "--json").json["tensors"] == 6
    second = next(folder.glob("*-00002-of*"))
    body = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match=f"{second.name}: no such file"):
        shards.read_weights(index)
    whole = json.loads(index.read_text())
    whole["weight_map"]["2.gone"] = second.name
    second.write_bytes(body)
    index.write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match=rf"{second.name} lacks what .* 2\.gone"):
        shards.read_weights(index)
    for outside in (f"../{second.name}", str(second.resolve()), "..", f"sub/{second.name}", 3, None):
        index.write_text(json.dumps({"weight_map": {"a": outside}}))
        with pytest.raises(CheckpointError, match=r"a: .* is not a file of weights in the same folder"):
            shards.read_weights(index)
    for broken in ("[]", "{", '{"weight_map": {}}', "[" * 100_000):
        index.write_text(broken)
        with pytest.raises(CheckpointError, match="index of shards"):
            shards.read_weights(index)
    index.unlink()
    (folder / "model.safetensors").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="several files of weights"):
        shards.find_weights(folder)


def test_a_folder_of_runs_or_an_archive_is_not_taken_for_weights(fmeco: Fmeco) -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/config.yaml").write_text("")
    torch.save(network().state_dict(), "runs/stray.pth")
    answer = fmeco("info", "runs")
    assert answer.code == 4
    assert "it holds the runs runs/a" in answer.err
    with tarfile.open("weights.tar", "w") as archive:
        archive.add("runs/stray.pth")
    answer = fmeco("info", "weights.tar")
    assert answer.code == 4
    assert "it is an archive of several files; unpack it" in answer.err


def test_a_file_that_nests_itself_is_read_in_no_time(fmeco: Fmeco) -> None:
    nested: dict[str, Any] = {"w": torch.zeros(2)}
    for _ in range(4):
        nested = {f"k{number}": nested for number in range(2000)}
    nested["itself"] = nested
    torch.save({"state_dict": network().state_dict(), "args": nested}, "laughs.pth")
    assert len(read_foreign(Path("laughs.pth"))) == 6
    assert fmeco("info", "laughs.pth", "--json").json["tensors"] == 6


def test_json_of_strangers_is_bounded() -> None:
    for body, why in (
        ("[" * 100_000, "nested too deeply"),
        ('"' + "a" * (1 << 20) + '"', "larger than 1 MB"),
        ("{", "Expecting"),
    ):
        Path("x.json").write_text(body)
        with pytest.raises(ValueError, match=why):
            read_json(Path("x.json"), 1 << 20)
    os.mkfifo("pipe.json")
    with pytest.raises(OSError, match="a named pipe"):
        read_json(Path("pipe.json"), 1 << 20)
