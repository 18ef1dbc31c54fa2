"""Real recordings: silent ones, cut-off ones, with an offset, with channels that cancel, and very short ones."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmeco.core import DataError, DataSpec
from fmeco.data.spec_reader import reader_module
from tests.conftest import Answer, tones, write
from tests.data.test_data import build

soundfile = pytest.importorskip("soundfile")
_audio: Any = importlib.import_module("fmeco.datasets._audio")
Fmeco = Callable[..., Answer]
RATE = 8000
SMALL = {"name": "audio", "sample_rate": RATE, "seconds": 0.4}
INPUTS: dict[str, dict[str, Any]] = {
    "spectrogram": {**SMALL, "mels": 16},
    "spectrogram, own loudness": {**SMALL, "mels": 16, "loudness": False},
    "waveform": {**SMALL, "input": "waveform"},
}


def tone(pitch: float = 700.0, seconds: float = 0.4, size: float = 0.3) -> Any:
    return size * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)


def prep(**keys: Any) -> dict[str, Any]:
    """Return the preprocessing of new data."""
    none = dict.fromkeys(("sample_rate", "seconds", "mels", "window", "hop", "fmin", "fmax", "loudness", "input"))
    given = {**none, **keys}
    given.pop("name", None)
    return dict(_audio.audio_spec(None, **given).preprocessing)


def recording(wave: Any, file: str = "x.wav", subtype: str | None = "PCM_16") -> str:
    soundfile.write(file, wave, RATE, subtype=subtype)
    return file


NOISE = np.random.default_rng(0).standard_normal(3200)
SILENT = {
    "zeros": np.zeros(3200),
    "zeros in two channels": np.zeros((3200, 2)),
    "a constant": np.full(3200, 0.25),
    "two constants": np.stack([np.full(3200, 0.25), np.full(3200, -0.125)], 1),
    "the lowest bit": (np.arange(3200) % 2) / 2**15,
}
CANCELLING = {
    "left = -right": np.stack([tone(), -tone()], 1),
    "left = -right, with offsets": np.stack([tone() + 0.1, -tone() + 0.2], 1),
    "left = -right, but for noise": np.stack([tone(), -tone() + 0.001 * NOISE], 1),
    "four channels": np.stack([tone(), -tone(), tone(300), -tone(300)], 1),
}


@pytest.mark.situation("silent recordings", "refused by name")
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("wave", SILENT)
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_silence_is_no_sample(wave: str, kind: str, suffix: str) -> None:
    with pytest.raises(DataError, match=rf"cannot read the recording x.{suffix}: it is silent"):
        _audio.decode(recording(SILENT[wave], f"x.{suffix}"), prep(**INPUTS[kind]))


@pytest.mark.situation("channels that cancel each other out", "refused by name")
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("wave", CANCELLING)
def test_channels_that_cancel_are_refused(wave: str, kind: str) -> None:
    with pytest.raises(DataError, match=r"x.wav: its channels cancel each other out"):
        _audio.decode(recording(CANCELLING[wave]), prep(**INPUTS[kind]))


@pytest.mark.situation("channels that differ", "read rightly")
@pytest.mark.parametrize(
    "other", [tone(), 0.5 * tone(), tone(300), np.zeros(3200), -0.5 * tone(), 0.1 * NOISE], ids=range(6)
)
def test_other_channels_are_averaged(other: Any) -> None:
    stereo = np.stack([tone(), other], 1)
    how = prep(**INPUTS["spectrogram, own loudness"])
    found = _audio.decode(recording(stereo, subtype="FLOAT"), how)
    wanted = _audio.decode(recording(stereo.mean(1), "mono.wav", subtype="FLOAT"), how)
    assert torch.allclose(found, wanted, atol=1e-3)


@pytest.mark.situation("recordings with a constant offset", "read rightly")
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("offset", [0.05, 0.5, -0.3])
@pytest.mark.parametrize("rate", [RATE, 11025])
def test_an_offset_is_no_loudness(kind: str, offset: float, rate: int) -> None:
    wave = 0.1 * np.sin(2 * np.pi * 700 * np.arange(rate) / rate)
    for name, shift in (("plain", 0.0), ("shifted", offset)):
        soundfile.write(f"{name}.wav", wave + shift, rate, subtype="FLOAT")
    plain, shifted = (_audio.decode(f"{name}.wav", prep(**INPUTS[kind])) for name in ("plain", "shifted"))
    assert float((plain - shifted).abs().max()) < 0.01
    if kind == "spectrogram":
        heard = plain[0, :, 5:-5].exp().sum(0)
        power = (
            0.1**2 * (np.hanning(200) ** 2).sum() * how_long(prep(**INPUTS[kind])) / 2
        )  # of a sound of that loudness
        assert float(heard.mean()) == pytest.approx(power, rel=0.25)


def how_long(how: dict[str, Any]) -> float:
    """Return the length of the Fourier transform, over which the power of a frame is spread."""
    return float(how["fft"])


@pytest.mark.situation("recordings of an old checkpoint", "read rightly")
@pytest.mark.parametrize("kind", INPUTS)
def test_an_old_checkpoint_hears_what_it_heard(kind: str) -> None:
    """Decode rule 1 takes an offset for loudness, and cancelled channels and silence for sounds."""
    old = {key: value for key, value in prep(**INPUTS[kind]).items() if key != "decode"}
    for wave in (tone() + 0.2, CANCELLING["left = -right"], SILENT["zeros"], SILENT["a constant"]):
        read = soundfile.read(recording(wave), dtype="float32", always_2d=True)[0].mean(1)
        if kind == "waveform":
            wanted = (read - read.mean()) / np.sqrt(read.var() + 1e-7)
            wanted = torch.from_numpy(np.where(wanted == 0, 1e-12, wanted).astype(np.float32))
        else:
            loud = 0.1 / max(float(np.sqrt(np.square(read).mean())), 1e-4) if old["loudness"] else 1.0
            wanted = _audio.log_mel(torch.from_numpy(read * loud), old)
        assert torch.equal(_audio.decode("x.wav", old), wanted)


def cut(share: float, subtype: str = "PCM_16", file: str = "x.wav") -> str:
    """Write a recording of 2 seconds, and keep a share of the file."""
    recording(tone(seconds=2.0) + 0.01 * np.random.default_rng(1).standard_normal(2 * RATE), file, subtype)
    content = Path(file).read_bytes()
    Path(file).write_bytes(content[: round(share * len(content))])
    return file


@pytest.mark.situation("recordings that are cut off", "refused by name")
@pytest.mark.parametrize("share", [0.95, 0.5, 0.3])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_half_a_wav_file_is_refused(share: float, subtype: str) -> None:
    how = prep(**INPUTS["spectrogram"])
    with pytest.raises(DataError, match=rf"x.wav: it is cut off: {1 - share:.0%} of the sound") as caught:
        _audio.decode(cut(share, subtype), how)
    assert "copy it again" in caught.value.message


@pytest.mark.situation("recordings of an old checkpoint", "read rightly")
def test_an_old_checkpoint_reads_half_a_wav_file_as_it_was_trained() -> None:
    how = prep(**INPUTS["spectrogram"])
    del how["decode"]
    assert _audio.decode(cut(0.5, "PCM_16"), how).isfinite().all()


@pytest.mark.situation("recordings that are cut off", "refused by name")
@pytest.mark.parametrize(("format", "endian"), [("WAV", "BIG"), ("WAVEX", "FILE"), ("RF64", "FILE")])
def test_half_a_file_of_another_wav_format_is_refused(format: str, endian: str) -> None:
    soundfile.write("x.wav", tone(seconds=2.0), RATE, "PCM_16", endian, format)
    whole = _audio.decode("x.wav", prep(**INPUTS["spectrogram"]))
    recording(tone(seconds=2.0), "plain.wav")
    assert torch.equal(whole, _audio.decode("plain.wav", prep(**INPUTS["spectrogram"])))
    content = Path("x.wav").read_bytes()
    Path("x.wav").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="it is cut off: 50% of the sound"):
        _audio.decode("x.wav", prep(**INPUTS["spectrogram"]))


@pytest.mark.situation("recordings that are cut off", "refused by name")
@pytest.mark.parametrize("share", [0.6, 0.3])
def test_half_a_flac_file_is_refused(share: float) -> None:
    with pytest.raises(DataError, match=r"cannot read the recording x.flac"):
        _audio.decode(cut(share, file="x.flac"), {**prep(**INPUTS["spectrogram"]), "span": 2.0})


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if size is None else size) + content + b"\0" * (len(content) % 2)


@pytest.mark.situation("WAV files of other writers", "read rightly")
@pytest.mark.parametrize(
    "how",
    [
        "plain",
        "chunks before",
        "an odd chunk before",
        "chunks after",
        "size of a stream",
        "sox's size of a stream",
        "a header too long",
    ],
)
def test_unusual_headers_are_read(how: str) -> None:
    samples = np.rint(tone() * 2**15).astype("<i2")
    sound = samples.tobytes()
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
    info = {"chunks before": chunk(b"LIST", b"INFOISFT" + b"abcd"), "an odd chunk before": chunk(b"note", b"odd")}
    size = {
        "size of a stream": 0xFFFFFFFF,
        "sox's size of a stream": 0x7FFFFFFF - 44,
        "a header too long": len(sound) + 44,
    }
    after = chunk(b"LIST", b"INFO") if how == "chunks after" else b""
    body = form + info.get(how, b"") + chunk(b"data", sound, size.get(how)) + after
    Path("x.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body)
    wanted = _audio.decode(recording(samples, "plain.wav"), prep(**INPUTS["spectrogram"]))
    assert torch.equal(_audio.decode("x.wav", prep(**INPUTS["spectrogram"])), wanted)


# ---------------------------------------------------------------- the commands


@pytest.fixture
def trained(fmeco: Fmeco) -> str:
    """A model of tones, of classes or of transcripts."""
    tones(Path("t"), each=6)
    config = {
        "dataset": {**INPUTS["spectrogram"], "path": "t"},
        "backbone": {"name": "cnn", "widths": [4]},
        "train": {"steps": 1, "batch_size": 4, "tensorboard": False},
    }
    answer = fmeco("pretrain", write("c.yaml", config), "--out", "run")
    assert answer.code == 0, answer.err
    return "run"


BROKEN: dict[str, tuple[Callable[[str], Any], str]] = {
    "silent": (lambda file: recording(np.zeros(3200), file), "it is silent"),
    "cancelling": (lambda file: recording(CANCELLING["left = -right"], file), "cancel each other out"),
    "cut off": (lambda file: cut(0.5, file=file), "it is cut off"),
}


@pytest.mark.situation("silent, cancelling and cut-off recordings in the commands", "refused by name")
def test_no_command_takes_a_broken_recording_for_a_sound(fmeco: Fmeco, trained: str) -> None:
    files = []
    for name, (make, _) in BROKEN.items():
        files.append(f"{name}.wav")
        make(files[-1])
    rows = fmeco("predict", trained, "t/high/ann_00.wav", *files, "--json").json["predictions"]
    assert [row["error"] is None for row in rows] == [True, False, False, False]
    assert [row["prediction"] is None for row in rows] == [False, True, True, True]
    for row, (_, reason) in zip(rows[1:], BROKEN.values(), strict=True):
        assert reason in row["error"]
    assert fmeco("predict", trained, *files).code == 3
    for file in files:
        Path(file).rename(f"t/high/{file}")
    reasons = [reason for _, reason in BROKEN.values()]
    for command, code, told in (
        (("check", "c.yaml"), 3, any),
        (("pretrain", "c.yaml", "--out", "other"), 3, any),
        (("evaluate", trained, "--dataset", "t"), 3, any),
        (("embed", trained, "--dataset", "t", "--output", "e.npz"), 0, all),
    ):
        answer = fmeco(*command)
        assert answer.code == code and told(reason in answer.err for reason in reasons), (command, answer.err)
    assert len(np.load("e.npz")["names"]) == 12, "without the three"
    skip = ("--set", "train.on_bad_sample=skip", "--set", "train.steps=3", "--out", "other")
    assert fmeco("pretrain", "c.yaml", *skip).code == 0
    assert any(reason in Path("other/bad_samples.txt").read_text() for reason in reasons)


@pytest.mark.situation("silent, cancelling and cut-off recordings with transcripts", "refused by name")
@pytest.mark.parametrize("name", BROKEN)
def test_transcripts_of_broken_recordings_are_refused(name: str) -> None:
    make, reason = BROKEN[name]
    make("x.wav")
    for other in "yzuv":
        recording(tone(), f"{other}.wav")
    write("t.csv", "path,label\nx.wav,ab\ny.wav,ba\nz.wav,a\nu.wav,b\nv.wav,aa\n")
    data = build(**{**INPUTS["spectrogram"], "path": "t.csv", "task": "text", "seconds": 3.0, "val_fraction": 0.5})
    parts = [part for part in (data.train, data.val) if part is not None]
    bad = next(part for part in parts for i in range(len(part)) if part.name(i) == "x.wav")
    with pytest.raises(DataError, match=reason):
        bad[next(i for i in range(len(bad)) if bad.name(i) == "x.wav")]


@pytest.mark.situation("recordings much shorter than those of training", "said")
@pytest.mark.parametrize("count", [1, 3])
def test_recordings_of_a_tenth_of_a_second_are_told(fmeco: Fmeco, trained: str, count: int) -> None:
    for i in range(count):
        recording(tone(seconds=0.05), f"short{i}.wav")
    answer = fmeco("predict", trained, *(f"short{i}.wav" for i in range(count)), "t/low/ann_00.wav")
    assert answer.code == 0
    assert f"{count} of {count + 1} recordings are shorter than 0." in answer.err
    assert "the first is short0.wav, 0.05 s" in answer.err
    assert "recordings are shorter" not in fmeco("predict", trained, "t/low").err
    Path("u/high").mkdir(parents=True)
    Path("u/low").mkdir()
    Path("short0.wav").rename("u/high/short0.wav")
    recording(tone(), "u/low/long.wav")
    answer = fmeco("embed", trained, "--dataset", "u", "--output", "e.npz")
    assert "1 of 2 recordings are shorter than 0." in answer.err


@pytest.mark.situation("training on recordings much shorter than the model's input", "said")
def test_an_input_that_is_mostly_padding_is_told() -> None:
    tones(Path("t"), each=6)
    data = build(**{**INPUTS["spectrogram"], "path": "t", "seconds": 2.0})
    assert "most recordings are shorter than half of dataset.seconds, 2: the rest is filled with silence" in data.notes
    assert not any("shorter" in note for note in build(**INPUTS["spectrogram"], path="t").notes)
    spec: DataSpec = data.spec
    assert spec.decode == 2
    assert reader_module(spec).read(spec, ["t/high/ann_00.wav"]).notes == ()


@pytest.mark.situation("recordings with samples that are no sound", "refused by name")
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, -1e30], ids=["nan", "inf", "1e30", "-1e30"])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_no_sound(value: float, subtype: str, kind: str) -> None:
    """They spoil the loudness of the whole recording, and the weights in training.

    https://github.com/Plachtaa/seed-vc/pull/108, https://github.com/flashlight/wav2letter/issues/386
    """
    wave = tone()
    wave[1600] = value
    with pytest.raises(DataError, match=r"x.wav: it holds (values that are not finite|a sample of 1e\+30)"):
        _audio.decode(recording(wave, subtype=subtype), prep(**INPUTS[kind]))


@pytest.mark.situation("float recordings on the scale of whole numbers", "read rightly")
@pytest.mark.parametrize("kind", ["spectrogram", "waveform"])
@pytest.mark.parametrize("largest", [2**7, 2**15, 2**23, 2**31])
def test_float_recording_on_the_scale_of_integers(kind: str, largest: int) -> None:
    """Programs convert whole numbers to floats without dividing them.

    https://github.com/librosa/librosa/issues/696, https://github.com/dscripka/openWakeWord/issues/295
    """
    quiet, loud = (
        _audio.decode(recording(tone() * scale, subtype="FLOAT"), prep(**INPUTS[kind])) for scale in (1, largest)
    )
    assert (quiet - loud).abs().max() < 0.02
