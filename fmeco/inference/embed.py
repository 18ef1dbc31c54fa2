"""Write the features of a dataset to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fmeco.checkpoints import refs
from fmeco.config.arguments import checked
from fmeco.errors import known_errors
from fmeco.files import replacing
from fmeco.inference.bare import data_and_features
from fmeco.inference.data_for import data_for
from fmeco.inference.model import load
from fmeco.inference.outputs import check_place
from fmeco.log import say


@known_errors()
@checked
def embed(
    ref: str | Path,
    *,
    dataset: str | Path | None,
    output: str | Path,
    split: str | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Compute the features of a dataset, and write them to an .npz file.

    ref: a run, a checkpoint, a file of weights (with `backbone=NAME` in `overrides`), or SOURCE/ARCH@WEIGHTS.
    dataset: as --dataset; None for the dataset that the checkpoint was trained on.
    split: default test if there is one, else val.
    force: replace an existing file.

    The file holds features (N, D), names, and the labels of each target, if any. Returns {"output", "samples", "width",
    "skipped"}.
    """
    output = Path(output)
    check_place("--output", output, (".npz",), force)
    if refs.is_bare(ref):
        data, compute = data_and_features(ref, dataset, overrides)
    else:
        model = load(ref)
        # A new dataset has its own labels: take only the preprocessing of inputs from the checkpoint.
        known = model.spec.preprocessing_only() if dataset else None
        data, compute = data_for(model, ref, dataset, overrides, known=known)[0], model.features
    for note in data.notes:
        say(note)
    samples = data.split(split or ("test" if data.test is not None else "val"))
    features, kept, skipped = compute(samples)
    for message in skipped:
        say(message)
    arrays: dict[str, Any] = {
        "features": features.numpy(),
        "names": np.array([samples.name(i) for i in kept]),
    }
    for name, target in data.spec.targets.items():
        values = samples.targets.get(name)
        if isinstance(values, Tensor) and not target.input:  # what lies on an image is no label of it
            arrays[name] = values[kept].numpy()
            if target.classes:
                arrays[f"{name}_classes"] = np.array(target.classes)
    with replacing(output) as temporary:
        np.savez(temporary, **arrays)
    return {
        "output": str(output.resolve()),
        "samples": len(kept),
        "width": int(features.shape[1]),
        "skipped": len(skipped),
    }
