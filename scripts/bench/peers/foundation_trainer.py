"""Finetune a text classifier with the Trainer of transformers at its default settings. See results_foundation.py.

The model, tokenizer and collator are those of its documentation of text classification. The last weights are kept.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from finetune_common import Clock, read_job, write_result
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Epochs(TrainerCallback):
    """Record the time of each epoch."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock = Clock()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.clock.mark()


def main() -> None:
    job = read_job()
    tokenizer = AutoTokenizer.from_pretrained(job["weights"])
    parts: dict[str, list[dict[str, Any]]] = {}
    classes: list[str] = []
    for part in ("train", "val", "test"):
        with open(Path(job["task"]) / f"{part}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        classes = classes or sorted({row["label"] for row in rows})
        parts[part] = [
            {**tokenizer(row["text"], truncation=True), "label": classes.index(row["label"])} for row in rows
        ]
    model = AutoModelForSequenceClassification.from_pretrained(job["weights"], num_labels=len(classes))
    epochs = Epochs()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=job["folder"],
            num_train_epochs=job["epochs"],
            eval_strategy="epoch",
            seed=job["seed"],
            use_cpu=True,
            save_strategy="no",  # time on the disk is no training
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["val"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda answers: {"accuracy": float(np.mean(answers[0].argmax(1) == answers[1]))},
        callbacks=[epochs],
    )
    trainer.train()
    result = {**epochs.clock.stop(), "seen": len(parts["train"])}
    answers = trainer.predict(parts["test"])
    correct = (answers.predictions.argmax(1) == answers.label_ids).tolist()
    names = [f"{place:06}" for place in range(len(correct))]
    write_result(job, result, sum(correct) / len(correct), dict(zip(names, correct, strict=True)))


if __name__ == "__main__":
    main()
