"""What makes training fast must not change what is trained. Times themselves are measured by scripts/bench."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fmeco as api
from fmeco.assembly import precision as tune
from fmeco.checkpoints import format as checkpoint
from fmeco.checkpoints import writer
from fmeco.config.check import choose
from fmeco.core import Batch, DataSpec, InputSpec, Samples, Target, mix, mix_numbers, standardize
from fmeco.data import decoded_cache, reading
from fmeco.data import disk_cache as cache
from fmeco.data.reading import Reading, choose_reading
from fmeco.datasets import _files, _images, image_folder
from fmeco.errors import DiskError, Diverged
from tests.conftest import COLOURS, Answer, photos, picture, tiny, write
from tests.training.test_resume import assert_same, contents

Fmeco = Callable[..., Answer]
CPU = torch.device("cpu")


def files(augment: Any, **train: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "image_folder", "path": "p", "image_size": 16},
        "backbone": "shufflenet_v2_x0_5",
        "augment": augment,
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "tensorboard": False, **train},
    }


@pytest.mark.parametrize("augment", ["light", "standard"])
def test_cold_warm_and_no_cache_and_who_reads_end_in_the_same_bits(
    augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(Path("p"))
    picture(Path("p/red/tall.jpg"), COLOURS["red"], size=(50, 90))
    Image.new("L", (30, 20), 99).save("p/blue/grey.png")
    api.pretrain(files(augment, cache="off", workers=1), out="off")
    api.pretrain(files(augment), out="cold")
    decoded: list[str] = []
    real = _images.decode
    monkeypatch.setattr(_images, "decode", lambda path, how: decoded.append(path) or real(path, how))
    api.pretrain(files(augment), out="warm")
    assert not decoded, "the second run decodes nothing"
    api.pretrain(files(augment, workers=2), out="workers")
    for other in ("cold", "warm", "workers"):
        assert_same(Path("off"), Path(other))
    os.utime("p/red/tall.jpg", (1, 1))
    api.pretrain(files(augment), out="touched")
    assert not decoded, "a file of the same bytes is not decoded again"


def test_a_cache_that_was_damaged_or_is_full_is_not_believed(tmp_path: Path) -> None:
    listed = _files.scan(_images.ImageFiles, image_folder.SUFFIXES, photos(Path("p"), each=4), [], rule=2)
    samples = _images.ImageFiles(listed, {}, {"resize": 16, "color": "rgb", "interpolation": "bilinear"})
    whole = decoded_cache.Decoded(samples, tmp_path / "c", 1e9)
    for index in range(len(samples)):
        assert torch.equal(whole[index]["image"], samples[index]["image"])
        again = whole[index]["image"]
        assert torch.equal(again, samples[index]["image"])
        assert again.stride() == samples[index]["image"].stride(), "another order in memory could round differently"
    index, data = whole.paths
    body = bytearray(data.read_bytes())
    for position in range(8, len(body), 97):
        body[position] ^= 0xFF
    data.write_bytes(body)
    fresh = decoded_cache.Decoded(samples, tmp_path / "c", 1e9)
    assert all(torch.equal(fresh[i]["image"], samples[i]["image"]) for i in range(len(samples)))
    data.write_bytes(b"")
    assert torch.equal(decoded_cache.Decoded(samples, tmp_path / "c", 1e9)[3]["image"], samples[3]["image"])
    index.write_bytes(b"short")
    assert torch.equal(decoded_cache.Decoded(samples, tmp_path / "c", 1e9)[3]["image"], samples[3]["image"])
    small = decoded_cache.Decoded(samples, tmp_path / "small", 3000)
    assert all(torch.equal(small[i]["image"], samples[i]["image"]) for _ in range(2) for i in range(len(samples)))
    assert small.paths[1].stat().st_size <= 3000


def test_the_least_recently_used_cache_goes_first_and_none_in_use(tmp_path: Path) -> None:
    how = {"resize": 16, "color": "rgb", "interpolation": "bilinear"}
    sets = []
    for name, other in (("a", "red"), ("b", "white")):
        root = photos(Path(name), ("blue", "green", other), each=3)
        listed = _files.scan(_images.ImageFiles, image_folder.SUFFIXES, root, [], rule=2)
        samples = _images.ImageFiles(listed, {}, how)
        sets.append(decoded_cache.Decoded(samples, tmp_path, 1e9))
        assert [sets[-1][i] for i in range(9)]
    old, new = (one.paths[1] for one in sets)
    os.utime(old, (1, 1))
    cache.prune(tmp_path, "*.data", new.stat().st_size)
    assert old.exists(), "it is in use"
    del sets[0]
    cache.prune(tmp_path, "*.data", new.stat().st_size)
    assert new.exists()
    assert not old.exists()


def test_a_home_that_cannot_be_written_costs_the_cache_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    photos(Path("p"))
    monkeypatch.setenv("HOME", "/proc/nowhere")
    assert api.pretrain(files("standard", epochs=1), out="run").metrics


def test_precision_is_measured_and_written_down_and_measuring_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = {"name": "mlp", "hidden": [32], "dropout": 0.3}
    api.pretrain(tiny(backbone=backbone, train={"precision": "fp32"}), out="given")
    monkeypatch.setattr(tune, "has_bf16_kernels", lambda: True)
    monkeypatch.setattr(tune, "SHORT_RUN", 0.0)
    monkeypatch.setattr(tune, "GAIN", 1e9)
    api.pretrain(tiny(backbone=backbone, train={"precision": "auto"}), out="slow")
    assert_same(Path("given"), Path("slow"))
    assert "precision: fp32" in Path("slow/config.yaml").read_text()
    monkeypatch.setattr(tune, "GAIN", 0.0)
    run = api.pretrain(tiny(backbone=backbone, train={"precision": "auto"}), out="fast")
    assert "precision: bf16" in Path("fast/config.yaml").read_text()
    assert "times as fast" in Path("fast/run.log").read_text()
    api.pretrain("fast/config.yaml", out="again")
    assert_same(Path("fast"), Path("again"))
    found = api.evaluate("fast", split="val")["metrics"]
    assert found == pytest.approx(run.metrics, abs=1e-6), "a checkpoint is used in the precision of its metrics"


def test_steps_that_nobody_waits_for_are_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: numbers are read at log lines only, and the optimizer itself leaves out what is not finite."""
    from fmeco.objectives.classification import Classification

    settings = {"precision": "fp32", "epochs": 3, "log_every": 3}
    api.pretrain(tiny(train=settings), out="waited")
    monkeypatch.setattr("fmeco.training.step.immediate", lambda device: False)
    api.pretrain(tiny(train=settings), out="not")
    one, two = contents(Path("waited")), contents(Path("not"))
    for stem, tensors in one["tensors"].items():
        assert all(torch.equal(tensor, two["tensors"][stem][name]) for name, tensor in tensors.items())

    real, calls = Classification.loss, iter(range(1000))

    def poisoned(self: Any, batch: Batch) -> Any:
        loss = real(self, batch)
        return type(loss)(loss.sum * float("nan"), loss.count) if next(calls) in (4, 6) else loss

    monkeypatch.setattr(Classification, "loss", poisoned)
    for optimizer in ("adamw", "rmsprop"):
        calls = iter(range(1000))
        api.pretrain(tiny(optimizer=optimizer, train={**settings, "on_nonfinite": "skip"}), out=optimizer)
        log = Path(optimizer, "run.log").read_text()
        assert "skipped step 4" in log
        assert "skipped step 6" in log
        assert all(
            t.isfinite().all()
            for t in checkpoint.open_checkpoint(Path(optimizer, "checkpoints/last").resolve())
            .tensors("trainer")
            .values()
        )
    calls = iter(range(1000))
    with pytest.raises(Diverged, match=r"step 4: the loss is nan.*not taken"):
        api.pretrain(tiny(train=settings), out="stopped")


def test_a_checkpoint_is_written_while_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real, where = writer.write, []

    def slow(*arguments: Any) -> Path:
        where.append(threading.current_thread().name)
        time.sleep(0.2)
        return real(*arguments)

    monkeypatch.setattr(writer, "write", slow)
    api.pretrain(tiny(train={"save_every": 3, "epochs": 2}), out="run")
    assert set(where) == {"checkpoint"}
    api.pretrain(tiny(train={"epochs": 2}), out="other")
    one, two = (checkpoint.open_checkpoint(Path(run, "checkpoints/last").resolve()) for run in ("run", "other"))
    assert all(torch.equal(x, two.tensors("backbone")[name]) for name, x in one.tensors("backbone").items())
    state = one.trainer()["state"]
    assert state["spent"]["save"] < state["seconds"]

    def full(*arguments: Any) -> Path:
        raise DiskError("cannot write: the disk is full")

    monkeypatch.setattr(writer, "write", full)
    with pytest.raises(DiskError, match="full"):
        api.pretrain(tiny(train={"save_every": 1, "epochs": 50}), out="lost")


def test_every_run_says_where_its_time_went(fmeco: Fmeco) -> None:
    answer = fmeco("pretrain", write("c.yaml", tiny(train={"epochs": 2})), "--out", "run")
    assert "computing" in answer.err
    assert "waiting for data" in answer.err
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    assert last["kind"] == "time"
    assert sum(value for name, value in last.items() if name.endswith("_share")) == pytest.approx(1.0)
    assert last["samples_per_second"] > 0
    assert all("data_share" in line for line in lines if line["kind"] == "train")


def test_check_profile_writes_a_trace_and_gives_advice(fmeco: Fmeco) -> None:
    photos(Path("p"))
    answer = fmeco("check", write("c.yaml", files("standard")), "--profile", "--json")
    assert answer.code == 0, answer.err
    found = answer.json["profile"]
    assert json.loads(Path(found["trace"]).read_text())["traceEvents"]
    assert sum(found["shares"].values()) == pytest.approx(1.0, abs=0.001)
    assert any("conv" in one["name"] for one in found["operations"])
    assert len(found["advice"].split()) > 5


def test_small_splits_are_held_and_large_ones_are_not() -> None:
    spec = DataSpec("image", {"image": InputSpec((3, 16, 16), "uint8", 1 / 255, (0.5,) * 3, (0.25,) * 3)})
    data = api_data(spec, 100)
    assert choose_reading("auto", data, data.split("train"), CPU).held is not None
    assert choose_reading("auto", data, data.split("train"), CPU, once=True).held is None
    huge = DataSpec("image", {"image": InputSpec((3, 16, 1 << 40), "uint8")})
    assert choose_reading("auto", api_data(huge, 10), api_data(huge, 10).split("train"), CPU).held is None
    assert choose_reading(2, data, data.split("train"), CPU)[0] == 2


def api_data(spec: DataSpec, count: int) -> Any:
    from fmeco.core import Data

    class Blank(Samples):
        def __len__(self) -> int:
            return count

        def name(self, index: int) -> str:
            return str(index)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"image": torch.zeros(3, 16, 16, dtype=torch.uint8)}

    return Data(spec, Blank())


def test_waiting_is_told_from_computing() -> None:
    """Samples that are slow to come get more threads than there are cores."""
    spec = DataSpec("image", {"image": InputSpec((3, 1 << 20, 1 << 20), "uint8")})
    data = api_data(spec, 200)
    slow = type(data.train)

    def late(self: Any, index: int) -> dict[str, torch.Tensor]:
        time.sleep(0.01)
        return {"image": torch.zeros(3, 1, 1, dtype=torch.uint8).expand(3, 1 << 20, 1 << 20)}

    slow.__getitem__ = late  # type: ignore[method-assign]
    assert choose_reading("auto", data, data.split("train"), CPU).threads > 2 * (os.cpu_count() or 1)
    assert Reading(0, 1, None).workers == 0


# ---------------------------------------------------------------- arithmetic that was made fast


def test_keys_are_the_same_by_numbers_and_by_tensors_and_flips_alternate() -> None:
    rng = np.random.default_rng(0)
    for words in rng.integers(0, 2**40, (20, 3)).tolist():
        wanted = [mix_numbers(*words, i) for i in range(5)]
        assert [int(key) % (1 << 64) for key in mix(*words, torch.arange(5))] == wanted
        assert [int(mix(*words, torch.tensor(i))) % (1 << 64) for i in range(5)] == wanted

    import dataclasses

    from fmeco.augment import image as module
    from fmeco.core import View
    from fmeco.data.loader import Loader

    spec = DataSpec("image", {"image": InputSpec((1, 4, 4), "uint8")}, preprocessing={"size": 4})
    data = api_data(spec, 64)
    pixels = torch.arange(4, dtype=torch.uint8).expand(64, 1, 4, 4).contiguous()
    data = dataclasses.replace(data, train=_images.ImageArrays(pixels, [str(i) for i in range(64)], {}))
    varied = module.build(spec, "light", shift=0.0)
    loader = Loader(data, data.train, (View(),), varied, 16, 16, 0, choose_reading("auto", data, data.train, CPU), CPU)
    flipped = torch.zeros(6, 64, dtype=torch.bool)
    for number, batch in enumerate(loader.batches(0, 6 * loader.steps_per_epoch)):
        flipped[number // 4, batch.index] = batch.views[0]["image"][:, 0, 0, 0] == 3
    assert (flipped[1:] ^ flipped[:-1]).all(), "every image the other way round in the next epoch"
    assert 10 < int(flipped[0].sum()) < 54


def test_shift_and_colour_equal_the_slow_way() -> None:
    from fmeco.augment import image as module
    from fmeco.core import uniform

    x = torch.randint(0, 256, (6, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    keys = mix(3, torch.arange(6))
    mirrored = torch.tensor([True, False] * 3)
    got = module._shifted({"image": x}, {}, keys, 2, mirrored)["image"]
    padded = torch.nn.functional.pad(x.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    for i in range(6):
        down, right = (int(uniform(keys, stream)[i] * 5) for stream in (10, 11))
        slow = (padded[i].flip(-1) if mirrored[i] else padded[i])[:, down : down + 9, right : right + 9]
        assert torch.equal(got[i], slow)

    spec = DataSpec("image", {"image": InputSpec((3, 9, 9), "uint8")}, preprocessing={"size": 9})
    made = module.build(spec, "light", color=0.5)
    fast = made._jitter(x, keys).int()  # type: ignore[attr-defined]
    for i in range(6):
        b, c, s = (1 + 0.5 * (2 * float(uniform(keys, stream)[i]) - 1) for stream in (2, 3, 4))
        y = x[i].double() * b
        y = y.mean() + c * (y - y.mean())
        luma = (y * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
        y = luma + s * (y - luma)
        assert (fast[i] - y.round().clamp(0, 255).int()).abs().max() <= 1


def test_standardized_values_do_not_depend_on_the_order_in_memory() -> None:
    spec = DataSpec("image", {"image": InputSpec((3, 5, 7), "uint8", 1 / 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))})
    x = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    slow = (x.double() / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        3, 1, 1
    )
    for laid in (x, x.contiguous(memory_format=torch.channels_last)):
        got = standardize({"image": laid}, spec)["image"]
        assert got.is_contiguous(memory_format=torch.channels_last) == laid.is_contiguous(
            memory_format=torch.channels_last
        )
        assert torch.allclose(got.double(), slow, atol=1e-5)


def test_resizing_is_pillows_to_one_level() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 17, 3), dtype=np.uint8)).resize((170, 120))
    for name, how in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        ours = _images.canonical(smooth, {"resize": 48, "color": "rgb", "interpolation": name})
        theirs = np.asarray(smooth.resize((68, 48), how)).astype(int)
        assert ours.shape == (3, 48, 68)
        assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


def test_a_benchmarks_table_says_which_precision_it_was() -> None:
    """The limit is in the precision that is faster on the CPU at hand, so a table of another machine is read rightly."""
    script = Path(__file__).parents[2] / "scripts/bench/images.py"
    run = {"start": 0.0, "wall": [float(i) for i in range(1, 9)], "cpu": [0.5 * i for i in range(8)], "peak_mb": 9}
    for session, words in (({"precision": {"precision": "fp32"}}, "fp32"), ({}, "bf16")):
        results = {
            "job": {"images": 128, "size": 8, "batch": 32, "steps": 8},
            "sessions": [session],
            "runs": [{**run, "round": 0, "name": name} for name in ("bare", "timm", "timm best")],
        }
        write("r.json", json.dumps(results))
        table = subprocess.run([sys.executable, script, "table", "r.json"], capture_output=True, text=True, check=True)
        for name, precision in (("bare", words), ("timm best", words), ("timm", "its default")):
            assert f"| {name} | {precision} | 32.0 |" in table.stdout


def test_the_mean_of_an_image_and_its_mirror_image_is_what_test_flip_answers() -> None:
    spec = DataSpec(
        "image",
        {"image": InputSpec((3, 16, 16), "uint8", 1 / 255, (0.5,) * 3, (0.25,) * 3)},
        targets={"label": Target("class", ("a", "b"), (1, 1))},
    )
    body = choose("backbone", {"name": "cnn", "widths": [8, 8]})
    chosen = choose("objective", {"name": "classification", "test_flip": True})
    made = chosen.plugin.build(
        {"backbone": body.plugin.build({"spec": spec}, body.options), "spec": spec}, chosen.options
    )
    torch.nn.init.normal_(made.head.weight)
    made.eval()
    x = torch.randn(3, 3, 16, 16)
    one = Batch([{"image": x}], {"label": torch.zeros(3, dtype=torch.int64)}, torch.arange(3), torch.zeros(1, 3))
    wanted = (made.logits({"image": x}) + made.logits({"image": x.flip(-1)})) / 2
    assert torch.allclose(made(one, "rows")["logits"], wanted)
    assert not torch.allclose(made.logits({"image": x}), wanted)


# ---------------------------------------------------------------- worker processes


def test_slow_first_steps_do_not_count_as_the_speed_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first calls on a GPU choose kernels, and would make a run take too few worker processes."""
    took = iter([4.0, 2.0, 1.0, 0.01, 0.01, 0.3, 0.01, 0.01])
    monkeypatch.setattr(tune, "step_seconds", lambda *_: next(took))
    assert tune.steady_step_seconds(None, None, CPU, "fp32") == 0.01  # type: ignore[arg-type]


def test_faster_steps_get_more_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DataSpec("image", {"image": InputSpec((3, 16, 16), "uint8")})
    data, cuda = api_data(spec, 100), torch.device("cuda")
    monkeypatch.setattr(reading, "_room", lambda _: 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def workers(seconds: float, wanted: Any = "auto") -> int:
        return choose_reading(wanted, data, data.split("train"), cuda, step_seconds=lambda: seconds).workers

    assert workers(10.0) == 1
    assert workers(1e-9) == 8
    assert workers(1e-9, 3) == 3


def test_the_log_says_how_many_worker_processes_read(tmp_path: Path) -> None:
    run = api.pretrain(tiny(train={"workers": 2, "epochs": 1}), out=tmp_path / "run").run
    assert ", 2 worker processes\n" in (run / "run.log").read_text()
