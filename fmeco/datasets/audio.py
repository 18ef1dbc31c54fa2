"""Recordings (.wav, .flac) in class folders, or in a table of paths and labels or transcripts; read as spectrograms or waveforms.

Needs the extra: pip install 'fmeco[audio]'.
"""

from __future__ import annotations

import dataclasses
import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from fmeco.core import (
    CheckpointError,
    ConfigError,
    Data,
    DataSpec,
    Doc,
    FilePath,
    Ge,
    Given,
    Gt,
    Inputs,
    Le,
    Samples,
    Spelling,
    Splitting,
)
from fmeco.datasets import _audio, _file_tables, _files, _folders, _stored, _waveforms

MODALITY = "audio"

SUFFIXES = (".wav", ".flac")
FILES = (".csv", ".tsv", ".parquet")
SPEC = _stored.Recordings
TAKES = {
    "arrays": "waveforms: arrays of L or Lxchannels samples from -1 to 1, at the checkpoint's sample rate",
    "mappings": "dicts of a waveform and its rate: {'array': ..., 'sampling_rate': ...}",
}
LAYOUT = ("path_column", "label_column", "task", "separator", "lowercase", "missing", "decimal", "split_column?")
SHOWN_STEPS, SHOWN_BANDS = 176, 96  # of a spectrogram in a report
RENAMED = {"speaker": "group_split"}


def shown(spec: DataSpec) -> str:
    """Describe in a few words how recordings are prepared."""
    prep = spec.preprocessing
    return f"waveforms of {prep['sample_rate']} Hz" + (", each of mean 0 and deviation 1" if prep["loudness"] else "")


def show(spec: DataSpec, inputs: Inputs) -> Any:
    """Draw the spectrogram of a recording: time to the right, frequency upwards, loudness as shades of grey."""
    from PIL import Image

    if "spectrogram" in inputs:
        loud = inputs["spectrogram"].float()  # (bands, steps)
        loud = loud.view(-1, *loud.shape[-2:])[0]
        low = float(loud.min())
    else:
        wave = inputs["waveform"].float()
        size = 2 * SHOWN_BANDS
        wave = torch.nn.functional.pad(wave, (0, max(0, size - len(wave))))
        hop = -(-len(wave) // SHOWN_STEPS)
        power = torch.stft(wave, size, hop, window=torch.hann_window(size), return_complex=True).abs().square()
        loud = 10 * power.clamp_min(1e-12).log10()  # (frequencies, steps) in decibels
        low = float(loud.max()) - 80
    shades = 255 * ((loud - low) / (float(loud.max()) - low or 1)).clamp(0, 1).flip(0)
    return Image.fromarray(shades.to(torch.uint8).contiguous().numpy()).resize((SHOWN_STEPS, SHOWN_BANDS))


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[
        FilePath | None,
        Doc("folder with train/, val/ and test/, folder of class folders, or table (CSV, TSV, Parquet)"),
    ] = None,
    train: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    val: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    test: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    path_column: Annotated[str, Doc("for a table: column of the paths, relative to the table's folder")] = "path",
    label_column: Annotated[
        str | list[str], Doc("for a table: column of the label; several columns become tasks of objective: multi_task")
    ] = "label",
    split_column: Annotated[
        str | None, Doc("for a table: column that holds train, val or test; null = split by val_fraction")
    ] = None,
    root: Annotated[FilePath | None, Doc("for a table: folder of the recordings, if it is not the table's")] = None,
    task: Annotated[
        Literal["auto", "class", "multilabel", "number", "text"],
        Doc(
            "for a table: kind of the label; text = a transcript, learned character by character; auto = number if all labels "
            "have decimals, else class"
        ),
    ] = "auto",
    separator: Annotated[
        str, Doc("for a table, with task multilabel: separator between the labels of a recording")
    ] = "|",
    lowercase: Annotated[bool, Doc("for transcripts: convert them to lower case")] = False,
    spelling: Spelling = Spelling(),
    splitting: Splitting = Splitting(),
    input: Annotated[
        Literal["spectrogram", "waveform"] | None,
        Doc(
            "input of the model: log-mel spectrogram, or waveform, which speech encoders of hf/ need; null = the checkpoint's, "
            "else spectrogram"
        ),
    ] = None,
    sample_rate: Annotated[
        int | None,
        Doc("sample rate in Hz; files at another rate are resampled; null = the checkpoint's, else 16000"),
        Ge(1000),
        Le(768000),
    ] = None,
    seconds: Annotated[
        float | None,
        Doc(
            "length of the model's input; longer recordings are cropped (an error for transcripts), shorter spectrograms are "
            "padded; null = the checkpoint's, else 1"
        ),
        Gt(0),
    ] = None,
    mels: Annotated[int | None, Doc("number of mel bands; null = the checkpoint's, else 64"), Gt(0)] = None,
    window: Annotated[
        float | None, Doc("length of the spectrogram's window, ms; null = the checkpoint's, else 25"), Gt(0)
    ] = None,
    hop: Annotated[
        float | None, Doc("time from one window to the next, ms; null = the checkpoint's, else 10"), Gt(0)
    ] = None,
    fmin: Annotated[float | None, Doc("lowest frequency, Hz; null = the checkpoint's, else 20"), Ge(0)] = None,
    fmax: Annotated[
        float | None, Doc("highest frequency, Hz; null = the checkpoint's, else half of the sample rate"), Gt(0)
    ] = None,
    loudness: Annotated[
        bool | None,
        Doc(
            "normalise each recording: a spectrogram to a common loudness, a waveform to mean 0 and deviation 1; null = the "
            "checkpoint's, else true"
        ),
    ] = None,
) -> Data:
    _audio.import_soundfile()
    kind = _task(task, known)
    spec = _audio.audio_spec(
        known,
        whole=kind == "text",
        seconds=seconds,
        input=input,
        sample_rate=sample_rate,
        mels=mels,
        window=window,
        hop=hop,
        fmin=fmin,
        fmax=fmax,
        loudness=loudness,
    )
    folders = {"train": train, "val": val, "test": test}
    layout = _file_tables.Layout(split_column, root, path_column, label_column, kind, lowercase, separator, spelling)
    if path is not None and not os.path.isdir(path) and path.lower().endswith((".csv", ".tsv", ".txt", ".parquet")):
        if extra := [part for part, folder in folders.items() if folder is not None]:
            raise ConfigError(
                f"dataset.{extra[0]}: is for class folders, and dataset.path is a table",
                "leave the key out; dataset.split_column names a column that splits the table",
            )
        labelled = _file_tables.in_table(_audio.AudioFiles, known, whole, path, layout, splitting)
    else:
        _check_no_layout(layout)
        labelled = _folders.in_folders(
            _audio.AudioFiles, SUFFIXES, known, whole, path=path, split_folders=folders, splitting=splitting
        )
    if labelled.grouped_by is not None:
        for (
            columns
        ) in labelled.groups.values():  # so that `evaluate --by speaker` works, whatever the groups are called
            columns["speaker"] = columns[labelled.grouped_by]
    files, targets = next(iter(labelled.parts.values()))  # of the training split, which comes first
    first = _audio.AudioFiles(files, targets, spec.preprocessing)
    if known is not None:
        labelled.notes.extend(_audio.shorter(first, first.drawn, spec))
    if known is None or not known.targets:
        spec, notes = _audio.lengths(first, spec)
        labelled.notes.extend(notes if kind != "text" else [])
    if "spectrogram" in spec.inputs and not spec.inputs["spectrogram"].mean:
        spec = dataclasses.replace(spec, inputs={"spectrogram": _audio.measure(first, spec)})
    return _files.data(_audio.AudioFiles, spec, labelled)


def _check_no_layout(layout: _file_tables.Layout) -> None:
    """Check that no key for tables is set for recordings in folders. Raises ConfigError."""
    keys, usual = ({**one._asdict(), **vars(one.spelling)} for one in (layout, _file_tables.Layout()))
    if key := next((key for key, value in keys.items() if key != "spelling" and value != usual[key]), None):
        hint = "transcripts need a table with a column of paths and a column of texts" if layout.task == "text" else ""
        raise ConfigError(f"dataset.{key}: is only for a table in dataset.path", hint)


def _task(task: str, known: DataSpec | None) -> str:
    """Choose the kind of the label: `task`, or text for a checkpoint (`known`) that was trained on transcripts.

    Raises CheckpointError if only one of config and checkpoint has transcripts.
    """
    old = known.targets.get("label") if known is not None else None
    if old is None or (old.kind != "text" and task != "text"):
        return task
    if old.kind != "text" or task not in ("auto", "text"):
        raise CheckpointError(f"dataset.task: {task}: the checkpoint's target is of kind {old.kind}")
    return "text"


def read(spec: DataSpec, sources: Sequence[str | Given]) -> Samples:
    """Read recordings, and all recordings below folders, in the order of `sources`; or waveforms that were passed in Python."""
    if given := [source for source in sources if isinstance(source, Given)]:
        return _waveforms.given(given, spec)
    _audio.import_soundfile()
    samples = _files.read(_audio.AudioFiles, SUFFIXES, spec, [str(source) for source in sources])
    assert isinstance(samples, _audio.AudioFiles)
    samples.notes = (*samples.notes, *_audio.shorter(samples, range(len(samples)), spec))
    return samples


def example(folder: Path) -> dict[str, Any]:
    """Write a few tones into a folder, and return the keys that read them: for the checks of plug-ins."""
    rate = 8000
    for label, period in (("high", 8), ("low", 40)):
        for i in range(12):
            file = folder / "tones" / label / f"{i:02}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            samples = (int(6000 * (1 + (n + i) % (period + i % 3) / period)) for n in range(1200 + 40 * i))
            with wave.open(str(file), "wb") as out:
                out.setnchannels(1)
                out.setsampwidth(2)
                out.setframerate(rate)
                out.writeframes(b"".join(sample.to_bytes(2, "little", signed=True) for sample in samples))
    return {"path": str(folder / "tones"), "sample_rate": rate, "seconds": 0.2, "mels": 16}
