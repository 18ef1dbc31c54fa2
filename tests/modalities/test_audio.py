"""Recordings: one decode, every speaker in one split, and the whole way from a folder to predictions. All recordings
here are generated tones."""

from __future__ import annotations

import importlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fmeco as api
from fmeco.checkpoints.format import open_checkpoint
from fmeco.config.check import choose
from fmeco.config.load import load_config
from fmeco.config.parser import parse_yaml
from fmeco.core import ConfigError, Data, DataError, DataSpec, InputSpec, mix
from tests.conftest import Answer, photos, tones, write
from tests.data.test_data import build
from tests.training.test_resume import assert_same

soundfile = pytest.importorskip("soundfile")
_audio: Any = importlib.import_module("fmeco.datasets._audio")
Fmeco = Callable[..., Answer]
SMALL = {"name": "audio", "path": "t", "sample_rate": 8000, "seconds": 0.3, "mels": 16}
SPEAKER = "([a-z]+)_[0-9]+[.]wav"
SHORT = ("--set", "train.epochs=1", "--set", "train.tensorboard=false")


def how(**changes: Any) -> dict[str, Any]:
    keys = dict.fromkeys(("sample_rate", "seconds", "mels", "window", "hop", "fmin", "fmax"))
    return dict(_audio.audio_spec(None, **{**keys, "sample_rate": 8000, **changes}).preprocessing)


def sine(pitch: float, seconds: float, rate: int) -> Any:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def speakers(data: Data, part: str) -> set[str]:
    samples = data.split(part)
    return {samples.name(i).split("/")[1].split("_")[0] for i in range(len(samples))}


def data_of(run: str) -> Data:
    settings = load_config(Path(run, "config.yaml"), stage="pretrain")
    data: Data = settings.dataset.plugin.build({"known": None, "whole": False, "arch": None}, settings.dataset.options)
    return data


def test_log_mel_is_its_formula() -> None:
    """Frame by frame and band by band, with a Fourier sum written out, in float64."""
    spec = how(mels=10, fmin=50.0, fmax=3500.0, hop=15.0)
    x = np.random.default_rng(0).standard_normal(1000).astype("float32")
    window, hop, fft = 200, 120, spec["fft"]
    padded = np.concatenate([np.zeros(fft // 2), x, np.zeros(fft // 2)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    edges = np.linspace(*(2595 * math.log10(1 + f / 700) for f in (50, 3500)), 12)
    wanted = np.zeros((10, 1000 // hop))
    for t in range(1000 // hop):
        piece = padded[t * hop + (fft - window) // 2 :][:window] * hann  # the window lies in the middle
        for k in range(fft // 2 + 1):
            power = abs(np.sum(piece * np.exp(-2j * np.pi * k * np.arange(window) / fft))) ** 2
            for band in range(10):
                left, centre, right = (700 * (10 ** (edges[band + i] / 2595) - 1) for i in range(3))
                f = k * 8000 / fft
                wanted[band, t] += power * max(0.0, min((f - left) / (centre - left), (right - f) / (right - centre)))
    found = _audio.log_mel(torch.from_numpy(x), spec)
    assert found.shape == (1, 10, 8)
    np.testing.assert_allclose(found[0].numpy(), np.log(wanted + 1e-6), rtol=1e-4, atol=1e-4)
    assert (_audio._filters(8000, how(mels=100)["fft"], 100, 20.0, 4000.0).sum(1) > 0).all(), "no band is empty"


def test_a_tone_keeps_its_pitch_whatever_the_rate_and_number_of_channels() -> None:
    spec = {**how(seconds=0.5, mels=40), "loudness": False}
    for rate, name in ((8000, "same.wav"), (44100, "down.flac"), (6000, "up.wav")):
        wave = sine(1000, 0.5, rate)
        soundfile.write(name, np.stack([wave * 1.5, wave * 0.5], 1), rate)
    same, down, up = (_audio.decode(name, spec)[0, :, 5:-5] for name in ("same.wav", "down.flac", "up.wav"))
    for other in (down, up):
        assert (other.argmax(0) == same.argmax(0)).all()
        assert float((other.amax(0) - same.amax(0)).abs().max()) < 0.02, "as loud as it was"
    soundfile.write("high.wav", sine(5500, 0.5, 44100), 44100)
    alias = float(_audio.decode("high.wav", spec)[0, :, 10:-10].max())
    assert alias < float(same.max()) - math.log(1e6), "what the rate cannot hold is 60 dB down, not another tone"


def test_speaking_up_changes_nothing_unless_loudness_is_to_count() -> None:
    spec = how(seconds=0.5, mels=20)
    for name, size in (("loud.wav", 0.9), ("quiet.wav", 0.1)):
        soundfile.write(name, size * sine(700, 0.5, 8000), 8000, subtype="FLOAT")
    loud, quiet = (_audio.decode(name, spec) for name in ("loud.wav", "quiet.wav"))
    torch.testing.assert_close(loud, quiet, rtol=0, atol=1e-3)
    loud, quiet = (_audio.decode(name, {**spec, "loudness": False}) for name in ("loud.wav", "quiet.wav"))
    assert float((loud - quiet).max()) == pytest.approx(2 * math.log(9), abs=0.01)
    soundfile.write("still.wav", np.zeros(4000), 8000)
    assert _audio.decode("still.wav", {**spec, "decode": 1}).isfinite().all()


def test_short_recordings_lie_in_silence_and_long_ones_are_cropped_in_the_middle() -> None:
    spec, silence = how(seconds=0.4, mels=16), math.log(_audio.FLOOR)
    soundfile.write("short.wav", sine(1000, 0.2, 8000), 8000)
    short = _audio.decode("short.wav", spec)
    assert short.shape == (1, 16, 40)
    heard = short[0].amax(0) > silence + 1
    assert heard[11:29].all() and not heard[:8].any() and not heard[32:].any()
    # A click in the middle of ten seconds: at most 4 * 0.4 seconds are decoded, and the click is in the middle of them.
    wave = np.zeros(80_000)
    wave[40_000] = 1.0
    soundfile.write("long.wav", wave, 8000)
    long = _audio.decode("long.wav", spec)
    assert long.shape == (1, 16, 160)
    assert int(long[0].amax(0).argmax()) == 80


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"RIFF1234WAVEfmt ", ""),
        (np.random.default_rng(0).bytes(300), "ormat"),
    ],
)
def test_unreadable_recordings_are_named_with_the_reason(content: bytes, reason: str) -> None:
    Path("x.wav").write_bytes(content)
    with pytest.raises(DataError) as caught:
        _audio.decode("x.wav", how())
    assert "x.wav" in caught.value.message
    assert reason in caught.value.message


def test_recordings_without_a_meaning_are_refused() -> None:
    for wave, rate, reason in (
        (np.zeros(0), 8000, "too short"),
        (np.zeros(100), 8000, "too short: 12 ms"),
        (np.array([0.0, np.nan] * 4000), 8000, "not finite"),
        (np.zeros(8000), 100, "sample rate is 100 Hz"),
    ):
        soundfile.write("x.wav", wave, rate, subtype="FLOAT")
        with pytest.raises(DataError, match=reason):
            _audio.decode("x.wav", how())
    with pytest.raises(DataError, match="no such file"):
        _audio.decode("absent.wav", how())
    with pytest.raises(ConfigError, match="fmax at most 4000"):
        how(fmax=5000.0)
    with pytest.raises(ConfigError, match="too narrow for windows"):
        how(mels=2000)


def test_a_speaker_is_in_one_split_and_stays_there() -> None:
    tones(Path("t"))
    data = build(**SMALL, speaker=SPEAKER, test_fraction=0.25)
    parts = {part: speakers(data, part) for part in ("train", "val", "test")}
    assert sorted(map(len, parts.values())) == [1, 1, 2]
    assert set.union(*parts.values()) == {"ann", "bob", "cid", "dot"}
    tones(Path("t"), each=30)  # more of the same speakers
    shutil.move("t", "u")
    more = build(**{**SMALL, "path": "u"}, speaker=SPEAKER, test_fraction=0.25)
    assert {part: speakers(more, part) for part in parts} == parts
    folds = [
        speakers(build(**{**SMALL, "path": "u"}, speaker=SPEAKER, split={"fold": k, "of": 4}), "val")
        for k in (1, 2, 3, 4)
    ]
    assert sorted(one for fold in folds for one in fold) == ["ann", "bob", "cid", "dot"]

    # A table: a column, or the same expression; number labels.
    rows = [f"{file},{file.name.split('_')[0]},0.{i}" for i, file in enumerate(sorted(Path("u").rglob("*.wav")))]
    table = {**SMALL, "path": str(write("t.csv", "path,who,label\n" + "\n".join(rows)))}
    by_column, by_name = build(**table, speaker="who"), build(**table, speaker=SPEAKER)
    assert by_column.spec == by_name.spec
    assert by_column.spec.targets["label"].kind == "number"
    names = [by_column.split("val").name(i) for i in range(by_column.spec.sizes["val"])]
    assert names == [by_name.split("val").name(i) for i in range(by_name.spec.sizes["val"])]


def test_what_would_leak_a_speaker_is_refused_by_name() -> None:
    tones(Path("p/train"))
    tones(Path("p/val"), each=2)
    with pytest.raises(DataError, match="'ann', 'bob' in both the train and the val split"):
        build(**{**SMALL, "path": "p"}, speaker=SPEAKER)
    for speaker, error, message in (
        ("(", ConfigError, "not a regular expression"),
        ("[a-z]+_", ConfigError, "0 groups"),
        ("(x)", DataError, "finds no group in the path of high/ann_00.wav"),
        (r"(\.)wav", DataError, "1 groups \\(\\.\\) are too few"),
    ):
        with pytest.raises(error, match=message):
            build(**{**SMALL, "path": "p/train"}, speaker=speaker)


def test_specaugment_hides_as_much_as_its_keys_say() -> None:
    spec = DataSpec("audio", {"spectrogram": InputSpec((1, 20, 50), "float32", 1.0, (3.0,), (2.0,))})
    choice = choose("augment", {"name": "specaugment", "masks": 1, "frequency": 0.5, "time": 0.2})
    augment = choice.plugin.build({"spec": spec, "arch": choice.arch}, choice.options)
    keys = mix(0, torch.arange(2000))
    hidden = augment.batch({"spectrogram": torch.zeros(2000, 1, 20, 50)}, keys)["spectrogram"][:, 0] == 3.0
    bands, frames = hidden.all(2).sum(1), hidden.all(1).sum(1)
    assert bands.unique().tolist() == list(range(11)), "0 to half of the bands"
    assert frames.unique().tolist() == list(range(11)), "0 to a fifth of the frames"
    assert abs(float(bands.float().mean()) - 5) < 0.3
    each = hidden.float().mean((0, 2))
    assert float(each.min()) > 0.05, "every band is hidden in some"
    one = {"spectrogram": torch.arange(80.0).expand(1, 20, 80)}
    starts = {int(augment.sample(one, key)["spectrogram"][0, 0, 0]) for key in keys[:500].tolist()}
    assert starts == set(range(31)), "crops begin anywhere"


def test_cold_warm_and_no_cache_and_who_reads_end_in_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    tones(Path("t"))
    base = {
        "dataset": SMALL,
        "backbone": {"name": "cnn", "widths": [8, 8]},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "tensorboard": False},
    }

    def run(out: str, **train: Any) -> None:
        api.pretrain({**base, "train": {**base["train"], **train}}, out=out)

    run("off", cache="off")
    run("cold")
    decoded: list[str] = []
    real = _audio.decode
    monkeypatch.setattr(_audio, "decode", lambda path, how: decoded.append(path) or real(path, how))
    run("warm")
    assert len(decoded) == len(set(decoded)), "only what is measured is decoded again"
    run("workers", workers=2)
    for other in ("cold", "warm", "workers"):
        assert_same(Path("off"), Path(other))


def test_the_whole_way_on_the_command_line(fmeco: Fmeco) -> None:
    tones(Path("t"), each=16)
    tones(Path("new"), {"higher": 2500.0, "lower": 150.0, "middle": 800.0}, each=8, rate=22050)
    settings = {
        "dataset": {**SMALL, "speaker": SPEAKER},
        "backbone": {"name": "cnn", "widths": [8, 16]},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 8, "batch_size": 8, "tensorboard": False},
    }
    answer = fmeco("pretrain", write("c.yaml", settings), "--out", "run", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["metrics"]["val_accuracy"] == 1.0
    assert load_config(Path("run/config.yaml"), stage="pretrain").augment.spelled == "spectrogram/specaugment"  # type: ignore[union-attr]

    found = fmeco("evaluate", "run", "--split", "val", "--by", "speaker", "--json").json
    held = speakers(data_of("run"), "val")
    assert {row["group"] for row in found["groups"]} == held and held

    # A folder is known by what it holds; files at another rate are read the checkpoint's way.
    answer = fmeco("finetune", "--from", "run", "--dataset", "new", "--out", "tuned", *SHORT)
    assert answer.code == 0, answer.err
    assert api.load("tuned").spec.preprocessing == api.load("run").spec.preprocessing
    assert api.load("tuned").spec.inputs == api.load("run").spec.inputs
    assert fmeco("evaluate", "run", "--dataset", "t", "--json").json["metrics"]["test_accuracy"] == 1.0
    rows = [f"t/{c}/ann_00.wav,{c}" for c in ("high", "low")]
    table = write("t.csv", "path,label,room\n" + "\n".join(f"{row},{i}" for i, row in enumerate(rows)))
    assert len(fmeco("evaluate", "run", "--dataset", table, "--by", "room", "--json").json["groups"]) == 2
    assert fmeco("evaluate", "run", "--dataset", table, "--json").json["samples"] == 2
    Path("t/broken.wav").write_bytes(b"RIFF")
    answer = fmeco("predict", "run", "t/high/ann_00.wav", "t/low", "t/broken.wav", "--json")
    assert answer.code == 0, answer.err
    told = [(row["prediction"], row["error"] is None) for row in answer.json["predictions"]]
    assert told == [("high", True), *[("low", True)] * 16, (None, False)]
    assert fmeco("embed", "run", "--dataset", "new", "--output", "e.npz", "--json").json["samples"] == 24
    answer = fmeco("rank", "run", "tuned", "--dataset", "new", "--json")
    assert answer.code == 0, answer.err
    answer = fmeco("finetune", "--from", "run", "--dataset", "new", "--set", "transfer=probe", "--out", "probe", *SHORT)
    assert answer.code == 0, answer.err
    assert "its features of" in answer.err

    for key, value in (("sample_rate", 16000), ("mels", 32)):
        answer = fmeco("finetune", "--from", "run", "--dataset", "new", "--set", f"dataset.{key}={value}")
        assert answer.code == 2
        assert f"dataset.{key}: {value}: the checkpoint was trained with {SMALL[key]}" in answer.err
    answer = fmeco("evaluate", "run", "--dataset", photos(Path("p"), each=4))
    assert answer.code == 4
    assert "but the dataset holds image data" in answer.err
    answer = fmeco("pretrain", "c.yaml", "--set", "backbone=vit_b_32")
    assert answer.code == 2
    assert "square inputs" in answer.err


def test_weights_cross_modalities_only_when_told_to(fmeco: Fmeco) -> None:
    tones(Path("t"))
    photos(Path("p"), each=6)
    images = {
        "dataset": {"name": "image_folder", "path": "p", "image_size": 32},
        "backbone": "shufflenet_v2_x0_5",
        "train": {"epochs": 1, "batch_size": 8, "tensorboard": False},
    }
    api.pretrain(images, out="images")
    command = ("finetune", "--from", "images", "--dataset", "t", "--out", "run", *SHORT)
    answer = fmeco(*command)
    assert answer.code == 4
    assert "but the dataset holds audio data" in answer.err
    assert "transfer.cross_modality=true" in answer.err
    answer = fmeco(*command, "--set", "transfer.cross_modality=true")
    assert answer.code == 0, answer.err
    assert "across modalities, image -> audio" in answer.err
    assert "100.0% of the backbone" in answer.err
    assert "reshaped: conv1.0.weight" in answer.err, "the first convolution is summed to one channel"
    spec = api.load("run").spec
    assert spec.modality == "audio"
    assert spec.inputs["spectrogram"].shape == (1, 64, 100)
    assert fmeco("resume", "run", "--epochs", "+1").code == 0
    # From there on it is a checkpoint of audio, and the key changes nothing where both are.
    assert fmeco("predict", "run", "t").code == 0
    again = ("finetune", "--from", "run", "--dataset", "t", "--out", "again", *SHORT)
    answer = fmeco(*again, "--set", "transfer.cross_modality=true")
    assert answer.code == 0, answer.err
    assert "across modalities" not in answer.err


def test_without_soundfile_one_line_says_what_to_install(fmeco: Fmeco, monkeypatch: pytest.MonkeyPatch) -> None:
    tones(Path("t"), each=2)
    real = importlib.import_module

    def without(name: str) -> Any:
        if name == "soundfile":
            raise ModuleNotFoundError("No module named 'soundfile'")
        return real(name)

    monkeypatch.setattr("fmeco.datasets._audio.importlib.import_module", without)
    answer = fmeco("pretrain", write("c.yaml", {"dataset": SMALL, "backbone": "cnn"}))
    assert answer.code == 2
    assert "pip install 'fmeco[audio]'" in answer.err


def test_data_of_another_modality_is_trained_on_from_a_new_head_and_never_ends_below_the_solved_one(
    fmeco: Fmeco,
) -> None:
    """The source's features do not fit: `auto` changes them, with the statistics of its batch norms, and keeps step 0."""
    tones(Path("t"), each=8)
    photos(Path("p"), each=8)
    images = {
        "dataset": {"name": "image_folder", "path": "p", "image_size": 32},
        "backbone": "shufflenet_v2_x0_5",
        "train": {"epochs": 1, "batch_size": 8, "tensorboard": False},
    }
    source = api.pretrain(images, out="images").checkpoint
    command = ("finetune", "--from", "images", "--dataset", "t", *SHORT, "--set", "transfer.cross_modality=true")
    answer = fmeco(*command, "--set", "train.precision=fp32", "--out", "run")
    assert answer.code == 0, answer.err
    assert "data of another modality: auto trains everything as new weights are trained, from a new head" in answer.err
    assert "saved the solved head as step 0" in answer.err
    config = parse_yaml(Path("run/config.yaml").read_text(), "")[0]
    assert config["optimizer"]["lr"] == 5e-4  # adamw's, and not 1e-4 as for images
    before, solved, last = (
        load_file(path / "backbone.safetensors")
        for path in (source, Path("run/checkpoints/step-00000000"), Path("run/checkpoints/last"))
    )
    statistics = [name for name in before if "running_mean" in name]
    assert statistics
    assert all(torch.equal(before[name], solved[name]) for name in statistics)
    assert not any(torch.equal(before[name], last[name]) for name in statistics)
    best, start = (
        open_checkpoint(Path("run/checkpoints") / name).meta["metrics"]["val_accuracy"]
        for name in ("best", "step-00000000")
    )
    assert best >= start

    # A run that was stopped right after step 0 begins with the new head, too, and ends in the same bits.
    shutil.copytree("run", "stopped", symlinks=True)
    folder = Path("stopped/checkpoints")
    for path in folder.iterdir():
        if path.name != "step-00000000":
            path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)
    answer = fmeco("resume", "stopped")
    assert answer.code == 0, answer.err
    for file in ("backbone.safetensors", "objective.safetensors"):
        one, two = (load_file(Path(run) / "checkpoints/last" / file) for run in ("run", "stopped"))
        assert all(torch.equal(one[name], two[name]) for name in one)
