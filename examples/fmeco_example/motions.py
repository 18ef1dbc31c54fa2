"""Motions of a body, as an accelerometer at the hip measures them: made-up recordings, and files of `x,y,z` lines to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from fmeco.core import (
    Classes,
    ConfigError,
    Data,
    DataError,
    DataSpec,
    Doc,
    Ge,
    Gt,
    Inputs,
    InputSpec,
    Samples,
    Target,
    fit,
    nearest,
    same_modality,
)

from ._signals import MOTIONS, recording

KIND = "dataset"  # for --plugin and the check; an entry point says the kind itself
MODALITY = "motion"
STARTER = {"backbone": "dilated"}


class Recordings(Samples):
    in_memory = True

    def __init__(self, windows: Tensor, names: list[str]) -> None:
        self.windows, self.names = windows, names  # (N, 3, T)
        self.tensors = {"motion": windows}  # batches are cut from it

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Inputs:
        return {"motion": self.windows[index]}  # (3, T)

    def name(self, index: int) -> str:
        return self.names[index]


def build(
    known: DataSpec | None,
    *,
    classes: Classes = None,
    people: Annotated[int, Doc("who is recorded; one in five validates"), Ge(5)] = 10,
    each: Annotated[int, Doc("recordings of each motion of a person"), Gt(0)] = 10,
    length: Annotated[
        int | None, Doc("moments of a recording, 50 per second; null = the checkpoint's, else 128"), Gt(0)
    ] = None,
) -> Data:
    same_modality(known, MODALITY)
    length = length or (known.inputs["motion"].shape[1] if known is not None else 128)
    motions = tuple(map(str, classes or MOTIONS))
    if unknown := [motion for motion in motions if motion not in MOTIONS]:
        raise ConfigError(f"dataset.classes: no motion is called {unknown[0]}{nearest(unknown[0], MOTIONS)}")
    train = _split([person for person in range(people) if person % 5 != 4], motions, each, length)
    val = _split([person for person in range(people) if person % 5 == 4], motions, each, length)
    if known is not None:  # standardised as the source's inputs were
        statistics = known.inputs["motion"]
        mean, std = statistics.mean, statistics.std
    else:
        seen = train.windows.double()
        mean, std = tuple(seen.mean((0, 2)).tolist()), tuple(seen.std((0, 2)).tolist())
    spec = DataSpec(
        modality=MODALITY,
        inputs={"motion": InputSpec((3, length), mean=mean, std=std)},
        targets={"label": Target("class", motions)},
        preprocessing={"length": length},
        reader="motions",
        sizes={"train": len(train), "val": len(val)},
        fingerprint=f"{motions}-{people}-{each}-{length}",
    )
    return Data(spec, train, val)


def _split(people: Sequence[int], motions: Sequence[str], each: int, length: int) -> Recordings:
    drawn = [(motion, person, i) for person in people for motion in motions for i in range(each)]
    names = [f"person-{person}/{motion}-{i}" for motion, person, i in drawn]
    windows = [recording(motion, person, i, length) for motion, person, i in drawn]
    samples = Recordings(torch.stack(windows), names)
    samples.targets = {"label": torch.tensor([motions.index(motion) for motion, _, _ in drawn])}
    samples.groups = {"person": [f"person-{person}" for _, person, _ in drawn]}  # evaluate --by person
    return samples


def read(spec: DataSpec, sources: Sequence[str]) -> Samples:
    """The middle of each recording."""
    return _Files(spec, [str(source) for source in sources])


class _Files(Samples):
    def __init__(self, spec: DataSpec, paths: list[str]) -> None:
        self.spec, self.paths = spec, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Inputs:
        path = self.paths[index]
        try:
            lines = Path(path).read_text("utf-8").splitlines()
            rows = torch.tensor([[float(value) for value in line.split(",")] for line in lines]).view(len(lines), 3)
            return fit({"motion": rows.T.contiguous()}, self.spec)
        except (OSError, ValueError, RuntimeError, DataError) as error:
            moments = self.spec.preprocessing["length"]
            raise DataError(f"{path}: not a file of {moments} lines `x,y,z` or more: {error}") from None

    def name(self, index: int) -> str:
        return self.paths[index]
