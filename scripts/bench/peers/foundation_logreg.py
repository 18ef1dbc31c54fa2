"""Fit logistic regression to the features that timm or transformers compute. See results_foundation.py.

The penalty is chosen by log loss in a cross-validation with five folds, on all drawn samples, validation samples
included. `seconds` are those of the features of these samples and of the fit.

Pictures are prepared by timm's own transform for the model. Sentences are prepared and averaged over tokens as
sentence-transformers does for this model. Spectrograms are those of fmeco, and timm sums the first convolution to one
channel.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from finetune_common import read_job, source_weights, write_result
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

BATCH = 32
FOLDS = 5
PENALTIES = np.logspace(-4, 2, 7)  # scikit-learn's C, for features of deviation 1

Batch = tuple[Tensor, list[str], list[str]]  # features, labels, names of samples


def network(job: dict[str, Any], channels: int) -> Any:
    """Create the model of timm without a class layer."""
    model = timm.create_model(job["model"], num_classes=0, in_chans=channels)
    weights = source_weights(job)
    if channels == 1:
        weights["conv_stem.weight"] = weights["conv_stem.weight"].sum(1, keepdim=True)  # as timm's pretrained=True
    model.load_state_dict(weights)
    return model.eval().to(memory_format=torch.channels_last)  # the same features in half the time


def pictures(job: dict[str, Any], model: Any, part: str) -> Iterator[Batch]:
    """Compute the features of the pictures of a split."""
    settings = timm.data.resolve_data_config({"img_size": job["size"]}, model=model)
    transform = timm.data.create_transform(**settings)
    files = sorted((Path(job["task"]) / part).glob("*/*"))
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        images = torch.stack([transform(Image.open(file).convert("RGB")) for file in batch])
        yield (
            model(images.contiguous(memory_format=torch.channels_last)),
            [file.parent.name for file in batch],
            [str(file) for file in batch],
        )


def sounds(job: dict[str, Any], model: Any, part: str) -> Iterator[Batch]:
    """Compute the features of the recordings of a split."""
    from fmeco.config.check import choose
    from fmeco.testing.bench import batches, build_data

    data = build_data(choose("dataset", job["dataset"]))
    samples = data.split(part)
    classes = data.spec.targets["label"].classes
    for batch in batches(data, part, BATCH, len(samples)):
        labels = [str(classes[code]) for code in batch.target["label"].tolist()]
        yield model(batch.views[0]["spectrogram"]), labels, [samples.name(i) for i in batch.index.tolist()]


def sentences(job: dict[str, Any], model: Any, part: str) -> Iterator[Batch]:
    """Compute the features of the sentences of a split."""
    tokenizer, encoder = model
    with open(Path(job["task"]) / f"{part}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        inputs = tokenizer([row["text"] for row in batch], padding=True, truncation=True, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        names = [f"{start + place:06}" for place in range(len(batch))]
        yield torch.nn.functional.normalize(mean), [row["label"] for row in batch], names


def main() -> None:
    job = read_job()
    features, model = {
        "cifar": lambda: (pictures, network(job, 3)),
        "digits": lambda: (sounds, network(job, 1)),
        "sst2": lambda: (
            sentences,
            (AutoTokenizer.from_pretrained(job["weights"]), AutoModel.from_pretrained(job["weights"]).eval()),
        ),
    }[job["kind"]]()

    def computed(*parts: str) -> tuple[Any, list[str], list[str]]:
        with torch.inference_mode():
            found = [batch for part in parts for batch in features(job, model, part)]
        rows = torch.cat([batch[0] for batch in found]).numpy()
        return rows, [label for batch in found for label in batch[1]], [name for batch in found for name in batch[2]]

    began = time.perf_counter()
    rows, labels, _ = computed("train", "val")
    logistic = LogisticRegressionCV(
        Cs=PENALTIES,
        cv=FOLDS,
        l1_ratios=(0,),
        use_legacy_attributes=False,
        scoring="neg_log_loss",
        n_jobs=2,  # processes of one thread are much faster than one process of two
    )
    # PCA only rotates, so that few samples need few columns; the solution is the same.
    fitted = make_pipeline(StandardScaler(), PCA(), logistic).fit(rows, labels)
    seconds = time.perf_counter() - began
    rows, labels, names = computed("test")
    correct = dict(zip(names, (fitted.predict(rows) == np.array(labels)).tolist(), strict=True))
    result = {"seconds": seconds, "epochs": 0, "penalty": float(np.ravel(logistic.C_)[0])}
    write_result(job, result, sum(correct.values()) / len(correct), correct)


if __name__ == "__main__":
    main()
