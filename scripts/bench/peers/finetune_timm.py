"""Finetune with timm's train.py, by its own main(), from the source's weights. See finetune.py and results_foundation.py.

Three of its functions are wrapped: create_model, to check the weights; create_loader, to use its validation settings
for the test; and train_one_epoch, to time epochs.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from finetune_common import Clock, check_loaded, read_job, source_weights, write_result
from timm.data import create_dataset


def main() -> None:
    job = read_job()
    task, folder = Path(job["task"]), Path(job["folder"])
    spec = importlib.util.spec_from_file_location("train", job["train"])
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)

    clocks: list[Clock] = []
    rates: list[float] = []
    loading: dict[str, Any] = {}
    settings: list[Any] = []
    create_model, create_loader, train_one_epoch = train.create_model, train.create_loader, train.train_one_epoch

    def watched_model(*args: Any, **options: Any) -> Any:
        model = create_model(*args, **options)
        check_loaded(model.state_dict().items(), source_weights(job))
        return model

    def watched_loader(dataset: Any, **options: Any) -> Any:
        if not options["is_training"]:
            loading.update(options)
        return create_loader(dataset, **options)

    def watched_epoch(epoch: int, model: Any, loader: Any, optimizer: Any, args: Any, **options: Any) -> Any:
        if clocks:
            clocks[0].mark()
        else:
            clocks.append(Clock())
            settings.append(args)
        rates.append(optimizer.param_groups[0]["lr"])
        return train_one_epoch(epoch, model, loader, optimizer, args, **options)

    classes = sorted(path.name for path in (task / "test").iterdir())
    train.create_model, train.create_loader, train.train_one_epoch = watched_model, watched_loader, watched_epoch
    sys.argv = ["train.py", "--data-dir", str(task), "--val-split", "val"]
    sys.argv += ["--output", str(folder), "--experiment", "run"]
    sys.argv += ["--model", job["model"], "--pretrained", "--pretrained-path", job["weights"]]
    sys.argv += ["--num-classes", str(len(classes)), "--seed", str(job["timm_seed"])]
    sys.argv += ["--img-size", str(job["size"]), "--mean", *map(str, job["mean"]), "--std", *map(str, job["std"])]
    sys.argv += ["--device", "cpu", "--workers", "0", "--batch-size", str(job["batch"]), "--epochs", str(job["epochs"])]
    train.main()
    clocks[0].mark()
    with open(folder / "run" / "summary.csv", newline="") as file:
        best = max(float(row["eval_top1"]) for row in csv.DictReader(file))
    result = {**clocks[0].stop(), "lr": rates, "val": best / 100, "seen": sum(1 for _ in (task / "train").glob("*/*"))}

    model = create_model(
        job["model"], num_classes=len(classes), checkpoint_path=str(folder / "run" / "model_best.pth.tar")
    )
    tests = create_dataset("", root=str(task), split="test")
    loader = create_loader(tests, **loading)
    outputs: list[torch.Tensor] = []
    model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    metrics = train.validate(model, loader, torch.nn.CrossEntropyLoss(), settings[0], device=torch.device("cpu"))
    for file in (folder / "run").glob("*.tar"):  # ten files of 90 MB
        file.unlink()
    files = [str(task / "test" / name) for name in tests.filenames()]
    answers = [classes[code] for code in torch.cat(outputs).argmax(1).tolist()]
    correct = {file: answer == Path(file).parent.name for file, answer in zip(files, answers, strict=True)}
    write_result(job, result, metrics["top1"] / 100, correct)


if __name__ == "__main__":
    main()
