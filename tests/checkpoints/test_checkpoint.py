"""Checkpoints are whole or absent, changes are noticed, loading runs no code, and weights go where they say they go."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import resource
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fmeco as api
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import transplant, writer
from fmeco.checkpoints.foreign.files import read_foreign
from fmeco.config.check import choose
from fmeco.core import DataSpec, InputSpec, Target
from fmeco.errors import CheckpointError, DiskError, FmecoError
from fmeco.files import write_durably
from tests.conftest import Answer, photos, tiny

META = {
    "stage": "pretrain",
    "name": "test",
    "epoch": 1.0,
    "spec": DataSpec("image", {}).to_json(),
    "config": {
        "stage": "pretrain",
        "objective": {"name": "classification"},
        "train": {"on_bad_sample": "error", "channels_last": "auto", "label_fraction": 1.0},
        "evaluate": {"best": None},
        "seed": 0,
    },
    "parameters": 2007,
    "metrics": {},
    "needs": [],
    "licence": None,
    "precision": "fp32",
    "transplant": None,
    "versions": {},
}
TRAINER = {"state": {}, "optimizer": {}, "metrics_size": 0, "threads": 1, "ranks": 1, "scaler": None}


def save(folder: Path, step: int = 1, value: float = 1.0) -> Path:
    tensors = {"backbone": {"w": torch.full((50, 40), value)}, "objective": {"h": torch.full((7,), value)}}
    return writer.write(folder, step, tensors, META, TRAINER, ["parent-id"], "# card\n")


def spec(channels: int = 3, size: int = 32) -> DataSpec:
    return DataSpec(
        "image", {"image": InputSpec((channels, size, size), "uint8", 1 / 255, (0.5,) * channels, (0.25,) * channels)}
    )


def build(name: str, of: DataSpec | None = None, **options: Any) -> Any:
    choice = choose("backbone", {"name": name, **options})
    return choice.plugin.build({"spec": of or spec(), "arch": choice.arch}, choice.options)


# ---------------------------------------------------------------- writing


def test_round_trip_with_modes_aliases_and_identity() -> None:
    shared = torch.randn(4, 5)
    old = os.umask(0o027)
    try:
        path = writer.write(
            Path("c"), 7, {"backbone": {"a": shared, "tied": shared, "b": torch.randn(3, 2).T}}, META, None, [], ""
        )
    finally:
        os.umask(old)
    got = checkpoint.open_checkpoint(path)
    assert torch.equal(got.tensors("backbone")["tied"], shared)
    assert list(load_file(path / "backbone.safetensors")) == ["a", "b"], "tied tensors are stored once"
    assert {stat.S_IMODE(f.stat().st_mode) for f in path.iterdir()} == {0o640}, "files follow the umask"
    assert not [f for f in path.parent.iterdir() if f.name.startswith(".")]
    (path / "README.md").write_text("edited")
    assert checkpoint.open_checkpoint(path).id == got.id, "the card is free to be edited"
    with pytest.raises(CheckpointError, match="no training state"):
        got.trainer()


def test_every_single_byte_change_is_noticed() -> None:
    path = save(Path("c"))
    for file in sorted(path.iterdir()):
        if file.name == "README.md":
            continue
        body = file.read_bytes()
        places = range(len(body)) if len(body) < 2000 else random.Random(0).sample(range(len(body)), 300)
        original = checkpoint.open_checkpoint(path).id
        for at in places:
            changed = bytearray(body)
            changed[at] ^= 1 << (at % 8)
            file.write_bytes(bytes(changed))
            try:
                got = checkpoint.open_checkpoint(path)
                checkpoint.verify(got)
            except CheckpointError:
                continue
            assert file.name == "manifest.json", f"{file.name} byte {at} changed unnoticed"
            assert got.id != original, "a changed manifest is another checkpoint"
        file.write_bytes(body)
    checkpoint.verify(checkpoint.open_checkpoint(path))


def test_mutants_raise_one_class_of_error() -> None:
    rng = random.Random(1)
    save_file({"a": torch.randn(10, 10), "b": torch.arange(5)}, "m.safetensors")
    torch.save({"a": torch.randn(10, 10), "b": torch.arange(5)}, "m.pt")
    for name in ("m.safetensors", "m.pt"):
        body = Path(name).read_bytes()
        refused = 0
        for _ in range(1500):
            mutant = bytearray(body)
            kind = rng.random()
            at = rng.randrange(len(mutant)) if rng.random() < 0.5 else rng.randrange(min(300, len(mutant)))
            if kind < 0.6:
                mutant[at] ^= 1 << rng.randrange(8)
            elif kind < 0.8:
                del mutant[at:]
            else:
                mutant[at:at] = rng.randbytes(8)
            Path(f"x{Path(name).suffix}").write_bytes(bytes(mutant))
            try:
                read_foreign(Path(f"x{Path(name).suffix}"))
            except CheckpointError as error:
                refused += 1
                assert "\x1b" not in error.message
        assert refused > 300


def test_a_snapshot_stays_as_it_is_while_training_goes_on() -> None:
    weight = torch.arange(6.0)
    taken = writer.snapshot({"w": weight, "tied": weight, "part": weight[:3]})
    weight += 1
    assert taken["w"].tolist() == [0, 1, 2, 3, 4, 5] and taken["part"].tolist() == [0, 1, 2]
    assert taken["w"] is taken["tied"], "what shares memory is stored once"


SAVER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.checkpoints.test_checkpoint import save
print("ready", flush=True)
for step in range(1, 10**6):
    save(Path("c"), step % 3 + 1, float(step))
    from fmeco.checkpoints import writer
    writer.tidy(Path("c"), 2)
"""


def test_kill_at_any_moment_leaves_only_whole_checkpoints() -> None:
    code = SAVER.format(root=str(Path(__file__).parents[2]))
    rng = random.Random(0)
    seen = 0
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.25))
        child.send_signal(signal.SIGKILL)
        child.wait()
        for path in checkpoint.steps(Path("c")):
            got = checkpoint.open_checkpoint(path)
            checkpoint.verify(got)
            value = got.tensors("objective")["h"][0]
            assert bool((got.tensors("backbone")["w"] == value).all()), "never a mix of two saves"
            seen += 1
    assert seen >= 8
    writer.tidy(Path("c"), 2)
    assert not list(Path("c").glob(".writing-*")), "what was half-written is cleared away"


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_save_leaves_the_last_one(call: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(Path("c"), 1)
    count = 0
    while True:  # fail at the first call, then at the second, ... until a save gets through
        calls = {"n": 0}

        def failing(*arguments: Any, _real: Any, _at: int = count, _calls: dict[str, int] = calls, **how: Any) -> Any:
            _calls["n"] += 1
            if _calls["n"] > _at:
                raise OSError(code, os.strerror(code))
            return _real(*arguments, **how)

        with monkeypatch.context() as patch:
            if call == "write":
                real_write = write_durably
                patch.setattr(writer, "write_durably", lambda *a, _r=real_write: failing(*a, _real=_r))
            elif call == "mkdir":
                real_mkdir = Path.mkdir
                patch.setattr(Path, "mkdir", lambda *a, _r=real_mkdir, **k: failing(*a, _real=_r, **k))
            else:
                real = getattr(os, call)
                patch.setattr(os, call, lambda *a, _r=real, **k: failing(*a, _real=_r, **k))
            try:
                save(Path("c"), 2)
            except DiskError as error:
                assert error.exit_code == 7
                assert "c/step-00000002" in error.message
            else:
                break
        assert not list(Path("c").glob(".writing-*"))
        checkpoint.verify(checkpoint.open_checkpoint(first))
        count += 1
    assert count >= 1


def test_everything_is_on_the_disk_before_it_gets_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _r=real, _n=name: (calls.append(_n), _r(*a))[1])
    path = save(Path("c"))
    at = calls.index("rename")
    assert calls[:at].count("fsync") == len(list(path.iterdir())) + 1, "each file, and the folder"
    assert "fsync" in calls[at:], "and the new name"


def test_full_disk_in_a_real_run(fmeco: Callable[..., Answer]) -> None:
    """A file-size limit stands in for a full disk: the kernel refuses the write half-way."""
    from tests.conftest import process, write

    child = process(
        "pretrain",
        write("c.yaml", tiny(backbone={"name": "mlp", "hidden": [400, 400]})),
        "--out",
        "run",
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
        )[0],
    )
    _, err = child.communicate(timeout=120)
    assert child.returncode == 7, err
    assert "cannot write" in err
    assert "Traceback" not in err
    assert not list(Path("run/checkpoints").glob(".writing-*"))


# ---------------------------------------------------------------- other people's files


class Payload:
    def __init__(self, how: Any, *arguments: Any) -> None:
        self.how, self.arguments = how, arguments

    def __reduce__(self) -> Any:
        return self.how, self.arguments


def test_opening_a_file_runs_no_code() -> None:
    marker = Path("marker").resolve()
    command = f"touch {marker}"
    from torch.storage import _load_from_bytes

    nested = io.BytesIO()
    torch.save(Payload(os.system, command), nested)
    payloads = [
        Payload(os.system, command),
        Payload(subprocess.call, ["touch", str(marker)]),
        Payload(eval, f"open({str(marker)!r}, 'w')"),
        Payload(exec, f"open({str(marker)!r}, 'w')"),
        Payload(_load_from_bytes, nested.getvalue()),
        Payload(open, str(marker), "w"),
        {"state_dict": {"w": torch.zeros(2), "x": Payload(os.system, command)}},
    ]
    for number, payload in enumerate(payloads):
        for suffix in (".pt", ".bin"):
            path = Path(f"p{number}{suffix}")
            if suffix == ".pt":
                torch.save(payload, path)
            else:
                path.write_bytes(pickle.dumps(payload))
            with pytest.raises(CheckpointError) as caught:
                read_foreign(path)
            assert "weights_only" not in str(caught.value), "never tell how to switch safety off"
            assert not marker.exists()


def test_bombs_are_refused_before_they_go_off() -> None:
    torch.save({"w": torch.zeros(2_000_000)}, "big.pt")
    with zipfile.ZipFile("big.pt") as source, zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, "stride.pt")
    for name in ("bomb.pt", "stride.pt"):
        with pytest.raises(CheckpointError):
            read_foreign(Path(name))
    torch.save({"w": torch.tensor([1.0, float("nan")])}, "nan.pt")
    with pytest.raises(CheckpointError, match="not finite"):
        read_foreign(Path("nan.pt"))
    header = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    Path("twin.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="twice"):
        read_foreign(Path("twin.safetensors"))


# ---------------------------------------------------------------- the transplant


def state(name: str = "resnet18") -> dict[str, Tensor]:
    import torchvision

    torch.manual_seed(5)
    found: dict[str, Tensor] = torchvision.models.get_model(name, weights=None).state_dict()
    return found


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "backbone.", "model.", "encoder.", "module.backbone.", "_orig_mod.module.encoder."],
)
def test_prefixes_are_stripped_when_that_makes_keys_fit(prefix: str) -> None:
    theirs = {prefix + key: value for key, value in state().items()}
    made = build("resnet18")
    report = transplant.transplant(made, theirs, source="x")
    assert report.share == 1.0
    assert report.prefix == prefix
    assert sorted(report.left_out) == ["fc.bias", "fc.weight"]
    assert torch.equal(made.library.state_dict()["layer4.1.conv2.weight"], theirs[f"{prefix}layer4.1.conv2.weight"])


def test_one_of_several_networks_is_taken_by_its_papers_choice_or_by_name() -> None:
    other = {key: value + 1 if value.is_floating_point() else value for key, value in state().items()}
    for good, bad in (("teacher.backbone.", "student.backbone."), ("module.encoder_q.", "module.encoder_k.")):
        theirs = {**{bad + k: v for k, v in other.items()}, **{good + k: v for k, v in state().items()}}
        made = build("resnet18")
        assert transplant.transplant(made, theirs, source="x").prefix == good
        assert torch.equal(made.library.state_dict()["conv1.weight"], state()["conv1.weight"])
        transplant.transplant(made, theirs, source="x", naming=transplant.Naming(prefix=bad))
        assert torch.equal(made.library.state_dict()["conv1.weight"], other["conv1.weight"])
    twins = {**{f"a.{k}": v for k, v in other.items()}, **{f"b.{k}": v for k, v in state().items()}}
    with pytest.raises(CheckpointError, match="several networks"):
        transplant.transplant(build("resnet18"), twins, source="x")
    with pytest.raises(CheckpointError, match=r"begins with 'c\.'"):
        transplant.transplant(build("resnet18"), twins, source="x", naming=transplant.Naming(prefix="c."))


def test_networks_side_by_side_in_a_file_keep_their_names(tmp_path: Path) -> None:
    other = {key: value + 1 if value.is_floating_point() else value for key, value in state().items()}
    torch.save({"student": other, "teacher": state(), "epoch": 3}, tmp_path / "dino.pth")
    torch.save({"model": state(), "model_ema": other}, tmp_path / "averaged.pth")
    made = build("resnet18")
    theirs = read_foreign(tmp_path / "dino.pth")
    assert transplant.transplant(made, theirs, source="x").prefix == "teacher."
    assert torch.equal(made.library.state_dict()["conv1.weight"], state()["conv1.weight"])
    with pytest.raises(CheckpointError, match="several networks"):
        transplant.transplant(made, read_foreign(tmp_path / "averaged.pth"), source="x")


def test_positions_of_a_vit_are_interpolated_for_another_image_size() -> None:
    small, large = (torch.arange(n * n).float().view(1, n * n, 1).repeat(1, 1, 3) for n in (4, 8))
    from fmeco.backbones.torchvision import _positions

    made = _positions(torch.cat([torch.full((1, 1, 3), -7.0), small], 1), 1 + 64)
    assert made.shape == (1, 65, 3)
    assert made[0, 0, 0] == -7
    assert torch.equal(made[0, 1:, 0].argsort()[[0, -1]], large[0, :, 0].argsort()[[0, -1]]), "corners stay corners"


def renamed(count: int) -> dict[str, Tensor]:
    return {(f"x.{key}" if i < count else key): value for i, (key, value) in enumerate(state().items())}


@pytest.mark.parametrize(
    ("theirs", "into"),
    [
        (lambda: state("resnet18"), "resnet50"),
        (lambda: state("resnet50"), "resnet18"),
        (lambda: state("resnet34"), "resnet18"),  # every tensor of resnet18 would fit: the rest betrays it
        (lambda: renamed(20), "resnet18"),
        (lambda: {"layers.0.weight": torch.zeros(4, 4)}, "resnet18"),
        (lambda: {}, "resnet18"),
        (lambda: {name: t for name, t in state().items() if "running" not in name}, "resnet18"),
        (lambda: {name: t for name, t in state().items() if name != "layer4.1.conv2.weight"}, "resnet18"),
    ],
    ids=[
        "resnet18 into resnet50",
        "resnet50 into resnet18",
        "resnet34 into resnet18",
        "20 renamed",
        "an mlp",
        "nothing",
        "no statistics",
        "four fifths of it",
    ],
)
def test_what_does_not_fit_is_refused(theirs: Callable[[], dict[str, Tensor]], into: str) -> None:
    made = build(into)
    before = {name: t.clone() for name, t in made.library.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        transplant.transplant(made, theirs(), source="theirs.pth")
    assert "theirs.pth" in caught.value.message
    nothing = "no parameter" in caught.value.message
    assert any("--allow-partial" in hint for hint in caught.value.hints) is not nothing
    assert all(torch.equal(t, before[name]) for name, t in made.library.state_dict().items()), "nothing was changed"
    if nothing:
        with pytest.raises(CheckpointError, match="no parameter would be loaded") as caught:
            transplant.transplant(made, theirs(), source="theirs.pth", allow_partial=True)
        assert not any("--allow-partial" in hint for hint in caught.value.hints)
        return
    report = transplant.transplant(made, theirs(), source="theirs.pth", allow_partial=True)
    assert report.unexpected or report.missing or report.mismatched


def test_one_channel_sums_the_first_kernel() -> None:
    made, three = build("resnet18", spec(1)), build("resnet18")
    report = transplant.transplant(made, state(), source="x")
    transplant.transplant(three, state(), source="x")
    assert report.reshaped == ["conv1.weight"]
    x = torch.randn(2, 1, 32, 32)
    made.eval(), three.eval()
    with torch.inference_mode():
        a, b = made({"image": x}).vector, three({"image": x.expand(-1, 3, -1, -1)}).vector
    torch.testing.assert_close(a, b)


def objective(classes: tuple[str, ...]) -> Any:
    described = DataSpec("image", spec().inputs, targets={"label": Target("class", classes)})
    choice = choose("objective", "classification")
    return choice.plugin.build({"backbone": build("mlp", hidden=[8]), "spec": described}, choice.options)


def test_head_rows_follow_class_names_not_positions() -> None:
    old, new = objective(("ant", "bee", "cat")), objective(("cat", "dog", "ant"))
    nn.init.normal_(old.head.weight)
    nn.init.normal_(old.head.bias)
    rows = {name: list(classes) for name, classes in old.class_rows().items()}
    carried = transplant.carry_rows(new, old.state_dict(), rows)
    assert sorted(carried) == ["ant", "cat"]
    assert torch.equal(new.head.weight[0], old.head.weight[2])
    assert torch.equal(new.head.weight[2], old.head.weight[0])
    assert not bool(new.head.weight[1].any()), "a new class starts afresh"


def test_the_saved_backbone_is_the_librarys(fmeco: Callable[..., Answer]) -> None:
    import torchvision

    config_ = tiny(
        backbone="resnet18", dataset={"name": "image_folder", "path": str(photos(Path("p"), each=6)), "image_size": 32}
    )
    for key in ("classes", "limit_per_class"):
        config_["dataset"].pop(key)
    run = api.pretrain({**config_, "train": {"epochs": 1, "batch_size": 8, "tensorboard": False}}, out="run")
    plain = torchvision.models.resnet18()
    left = plain.load_state_dict(load_file(run.checkpoint / "backbone.safetensors"), strict=False)
    assert sorted(left.missing_keys) == ["fc.bias", "fc.weight"]
    assert left.unexpected_keys == []

    # And back: a plain state dict of the library is a REF.
    torch.save(plain.state_dict(), "plain.pth")
    answer = fmeco(
        "finetune",
        "--from",
        "plain.pth",
        "--dataset",
        "p",
        "--set",
        "backbone=resnet18",
        "--set",
        "dataset.image_size=32",
        "--set",
        "train.epochs=1",
        "--out",
        "tuned",
        "--json",
    )
    assert answer.code == 0, answer.err
    assert "100.0% of the backbone" in answer.err
    assert "assuming that of torchvision/resnet18" in answer.err
    report = json.loads(Path("tuned/transplant.json").read_text())
    assert report["share"] == 1.0
    assert sorted(report["left_out"]) == ["fc.bias", "fc.weight"]
    wrong = fmeco("finetune", "--from", "run", "--dataset", "p", "--set", "backbone=resnet50")
    assert wrong.code == 2
    assert "contradicts" in wrong.err


def test_published_weights_are_verified_on_every_load(
    monkeypatch: pytest.MonkeyPatch, fmeco: Callable[..., Answer]
) -> None:
    """A local file stands in for the library's server."""
    import hashlib

    import torchvision

    torch.save(state(), "weights.pth")
    digits = hashlib.sha256(Path("weights.pth").read_bytes()).hexdigest()[:8]
    served = Path(f"resnet18-{digits}.pth").resolve()
    Path("weights.pth").rename(served)
    weight = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(weight.value), "url", property(lambda self: served.as_uri()), raising=False)
    photos(Path("p"), each=5)
    command = [
        "finetune",
        "--from",
        "torchvision/resnet18@DEFAULT",
        "--dataset",
        "p",
        "--set",
        "dataset.image_size=32",
        "--set",
        "train.epochs=1",
    ]
    answer = fmeco(*command)
    assert answer.code == 0, answer.err
    assert "preprocessing of these weights: 224 pixels from 256" in answer.err
    cached = next(Path("torch-home").rglob("*.pth"))
    body = bytearray(cached.read_bytes())
    body[-100] ^= 1
    cached.write_bytes(bytes(body))
    answer = fmeco(*command)
    assert answer.code == 4
    assert "is not the published file" in answer.err
    served.unlink()
    cached.unlink()
    answer = fmeco(*command)
    assert answer.code == 6
    assert "could not download" in answer.err


def test_errors_keep_their_hints_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DiskError("m", "h1", "h2")))
    assert isinstance(error, FmecoError)
    assert error.hints == ("h1", "h2")
