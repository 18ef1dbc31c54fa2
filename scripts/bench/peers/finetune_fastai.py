"""Finetune with fastai's fine_tune as in its documentation, but from the source's weights. See finetune.py and results_foundation.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    get_image_files,
    model_meta,
    set_seed,
    vision_learner,
)
from finetune_common import Clock, check_loaded, read_job, source_weights, write_result
from torch import Tensor, nn
from torchvision.models import resnet18


class Epochs(Callback):
    """Record the time and the learning rates of each epoch."""

    order = 1000  # run after all other callbacks

    def __init__(self) -> None:
        self.clock, self.rates = Clock(), []

    def after_epoch(self) -> None:
        self.clock.mark()
        self.rates.append([float(f"{group['lr']:.3g}") for group in self.opt.hypers])


def resnet_learner(loaders: Any, weights: dict[str, Tensor]) -> Any:
    """Build a learner with torchvision's resnet18."""

    def source(**_: Any) -> nn.Module:
        model = resnet18()
        model.load_state_dict(weights, strict=False)  # checked below
        return model

    model_meta[source] = model_meta[resnet18]  # cut it, and group its layers, like the original resnet18
    learner = vision_learner(loaders, source, metrics=accuracy)
    names = [name for name in resnet18().state_dict() if not name.startswith("fc.")]  # fastai's body numbers its layers
    check_loaded(zip(names, learner.model[0].state_dict().values(), strict=True), weights)
    return learner


def timm_learner(loaders: Any, name: str, weights: dict[str, Tensor]) -> Any:
    """Build a learner with a model of timm, whose name is all that fastai asks for. fine_tune freezes its body."""
    learner = vision_learner(loaders, name, pretrained=False, normalize=False, metrics=accuracy)
    learner.model[0].model.load_state_dict(weights, strict=False)  # checked below
    check_loaded(learner.model[0].model.state_dict().items(), weights)
    return learner


def main() -> None:
    job = read_job()
    weights, task = source_weights(job), Path(job["task"])
    set_seed(job["seed"])

    loaders = ImageDataLoaders.from_folder(
        task,
        train="train",
        valid="val",
        item_tfms=Resize(job["size"]),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(job["mean"], job["std"])],
        num_workers=0,
    )
    learner = timm_learner(loaders, job["model"], weights) if job["timm"] else resnet_learner(loaders, weights)
    epochs = Epochs()
    learner.fine_tune(job["epochs"], cbs=epochs)
    result = {**epochs.clock.stop(), "val": learner.recorder.values[-1][-1], "lr": epochs.rates}
    result["seen"] = loaders.train.n // loaders.train.bs * loaders.train.bs  # it drops incomplete batches

    files = sorted(get_image_files(task / "test"))
    scores, labels = learner.get_preds(dl=loaders.test_dl(files, with_labels=True, num_workers=0))
    if [loaders.vocab[label] for label in labels] != [file.parent.name for file in files]:
        raise ValueError("the test labels differ from the names of their folders")
    correct = (scores.argmax(1) == labels).tolist()
    write_result(job, result, sum(correct) / len(correct), dict(zip(map(str, files), correct, strict=True)))


if __name__ == "__main__":
    main()
