"""Recordings (.wav, .flac) as log-mel spectrograms or waveforms: a folder with one folder per class, or a table of paths and
labels, which may be transcripts.

Needs the extra: pip install 'fmeco[audio]'.
"""

from __future__ import annotations

import dataclasses
import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fmeco.core import CheckpointError, ConfigError, Data, DataSpec, Doc, FilePath, Ge, Gt, Le, Samples, Splitting
from fmeco.datasets import _audio, _file_tables, _files, _folders

MODALITY = "audio"

SUFFIXES = (".wav", ".flac")
FILES = (".csv", ".tsv", ".parquet")
LAYOUT = ("path_column", "label_column", "task", "separator", "lowercase", "split_column?")
RENAMED = {"speaker": "group_split"}


def shown(spec: DataSpec) -> str:
    """Say how recordings are prepared, in a few words."""
    how = spec.preprocessing
    return f"waveforms of {how['sample_rate']} Hz" + (", each of mean 0 and deviation 1" if how["loudness"] else "")


def build(
    known: DataSpec | None,
    whole: bool,
    *,
    path: Annotated[
        FilePath | None,
        Doc("folder with train/, val/, test/, or with class folders directly; or a table (CSV, Parquet)"),
    ] = None,
    train: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    val: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    test: Annotated[FilePath | None, Doc("folder of class folders, instead of `path`")] = None,
    path_column: Annotated[str, Doc("of a table: column of the paths, relative to its folder")] = "path",
    label_column: Annotated[
        str | list[str], Doc("of a table: column of the label; several are tasks of objective: multi_task")
    ] = "label",
    split_column: Annotated[
        str | None, Doc("of a table: column that says train, val or test; null = split by val_fraction")
    ] = None,
    root: Annotated[FilePath | None, Doc("of a table: folder of the recordings, if it is not the table's")] = None,
    task: Annotated[
        Literal["auto", "class", "multilabel", "number", "text"],
        Doc(
            "of a table: what the label is; text = a transcript, character by character; auto = number if all labels are decimals, else class"
        ),
    ] = "auto",
    separator: Annotated[str, Doc("of a table: between the labels of one recording, for multilabel")] = "|",
    lowercase: Annotated[bool, Doc("of transcripts: write all in small letters")] = False,
    splitting: Splitting = Splitting(),
    input: Annotated[
        Literal["spectrogram", "waveform"] | None,
        Doc(
            "what the model hears: log-mel spectrograms, or the recording itself, as hf/ encoders do; null = the checkpoint's, else spectrogram"
        ),
    ] = None,
    sample_rate: Annotated[
        int | None,
        Doc("Hz; files at another rate are resampled; null = the checkpoint's, else 16000"),
        Ge(1000),
        Le(768000),
    ] = None,
    seconds: Annotated[
        float | None,
        Doc(
            "length of the model's input; longer recordings are cropped (with transcripts, an error), shorter spectrograms padded; null = the checkpoint's, else 1"
        ),
        Gt(0),
    ] = None,
    mels: Annotated[int | None, Doc("frequency bands; null = the checkpoint's, else 64"), Gt(0)] = None,
    window: Annotated[float | None, Doc("of the spectrogram, ms; null = the checkpoint's, else 25"), Gt(0)] = None,
    hop: Annotated[
        float | None, Doc("from one window to the next, ms; null = the checkpoint's, else 10"), Gt(0)
    ] = None,
    fmin: Annotated[float | None, Doc("lowest frequency, Hz; null = the checkpoint's, else 20"), Ge(0)] = None,
    fmax: Annotated[
        float | None, Doc("highest frequency, Hz; null = the checkpoint's, else half of the sample rate"), Gt(0)
    ] = None,
    loudness: Annotated[
        bool | None,
        Doc(
            "bring every recording to the same loudness, a waveform to mean 0 and deviation 1; null = the checkpoint's, else true"
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
    layout = _file_tables.Layout(split_column, root, path_column, label_column, kind, lowercase, separator)
    if path is not None and not os.path.isdir(path) and path.lower().endswith((".csv", ".tsv", ".txt", ".parquet")):
        if extra := [part for part, folder in folders.items() if folder is not None]:
            raise ConfigError(
                f"dataset.{extra[0]}: a folder, beside the table in `path`", "split_column splits a table"
            )
        found = _file_tables.in_table(_audio.AudioFiles, known, whole, path, layout, splitting)
    else:
        _check_no_layout(layout)
        found = _folders.in_folders(
            _audio.AudioFiles, SUFFIXES, known, whole, path=path, given=folders, splitting=splitting
        )
    if found.grouped_by is not None:
        for columns in found.groups.values():  # `evaluate --by speaker`, wherever their names are from
            columns["speaker"] = columns[found.grouped_by]
    files, targets = next(iter(found.parts.values()))  # those of training, which come first
    first = _audio.AudioFiles(files, targets, spec.preprocessing)
    if kind != "text" and (known is None or not known.targets):
        found.notes.extend(_audio.cropped(first, spec))
    if "spectrogram" in spec.inputs and not spec.inputs["spectrogram"].mean:
        spec = dataclasses.replace(spec, inputs={"spectrogram": _audio.measure(first, spec)})
    return _files.data(_audio.AudioFiles, spec, found)


def _check_no_layout(layout: _file_tables.Layout) -> None:
    """Check that no key of a table is given for recordings in folders. Raises ConfigError."""
    usual = _file_tables.Layout()._asdict()
    if key := next((key for key, value in layout._asdict().items() if value != usual[key]), None):
        hint = "a recognised text is a column of a table, beside one of paths" if layout.task == "text" else ""
        raise ConfigError(f"dataset.{key}: only for a table in `path`", hint)


def _task(task: str, known: DataSpec | None) -> str:
    """What the label is: of a whole checkpoint (`known`) that was trained on transcripts, a transcript again. Raises
    CheckpointError where one is a transcript and the other is not."""
    old = known.targets.get("label") if known is not None else None
    if old is None or (old.kind != "text" and task != "text"):
        return task
    if old.kind != "text" or task not in ("auto", "text"):
        raise CheckpointError(f"dataset.task: {task}: the checkpoint's target is of kind {old.kind}")
    return "text"


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    """Recordings, and those below folders, in the order given."""
    _audio.import_soundfile()
    return _files.read(_audio.AudioFiles, SUFFIXES, spec, sources)


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
