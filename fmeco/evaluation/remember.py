"""Measure what a finetune forgot: its source's own task, with the source's head, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmeco.checkpoints import transplant
from fmeco.checkpoints.format import open_checkpoint
from fmeco.checkpoints.pointers import marked
from fmeco.checkpoints.refs import find_checkpoint
from fmeco.errors import ConfigError, FmecoError, clean
from fmeco.evaluation.measure import measure
from fmeco.evaluation.verdict import better
from fmeco.inference.model import load
from fmeco.log import say
from fmeco.nn.intervals import interval


class Memory:
    """Hold how well a source does its own task, to compare a finetune of it with."""

    def __init__(self, source: str | None, dataset: str) -> None:
        """Measure the source on its own task.

        dataset: as --dataset. The name or path of the dataset that the source was trained on means that one, with its splits.

        Raises ConfigError for a source without a head, and the errors of `measure`.
        """
        try:
            if source is None:
                raise ConfigError("there is no source (--from)")
            saved = find_checkpoint(source)
        except FmecoError as error:
            raise ConfigError(
                f"--remember measures the source's own task with the source's head: {error.message.splitlines()[0]}",
                "start from a run or a checkpoint, or leave --remember out",
            ) from None
        own = saved.meta["config"].get("dataset") or {}
        self.source, self.dataset = source, None if dataset in (own.get("name"), own.get("path")) else dataset
        say(f"measuring {clean(source)} on {clean(dataset)}, to compare with after the run")
        self.before = measure(source, self.dataset, None, ())

    def after(self, run: str | Path) -> dict[str, Any]:
        """Measure the run's best backbone with the source's head.

        Returns {"metric", "split", "samples", "before", "after", "difference", "sentence"}. The difference is how much
        better (negative: worse) the finetuned backbone is, with its 95% interval by a paired bootstrap over samples.
        Raises ConfigError if the finetuned backbone does not fit the source's head.
        """
        best = marked(Path(run) / "checkpoints", "best")
        assert best is not None, "a finished run has a best checkpoint"
        model, before = load(self.source), self.before
        state = open_checkpoint(best).tensors("backbone")
        try:
            transplant.load_exactly(model.objective.product.library, state, str(best))
        except FmecoError as error:
            raise ConfigError(
                f"--remember: the finetuned backbone cannot serve the source's head: {error.message}"
            ) from None
        after = measure(self.source, self.dataset, before.split, (), model=model)
        metric, objective = before.metric, model.objective
        sign = 1 if objective.directions[metric] == "max" else -1
        low, high = interval(objective, after.rows, objective, before.rows, metric, sign, before.samples.block)
        difference = [sign * (after.metrics[metric] - before.metrics[metric]), low, high]
        words, between = better(difference)
        return {
            "metric": metric,
            "split": before.split,
            "samples": len(before.names),
            "before": before.metrics[metric],
            "after": after.metrics[metric],
            "difference": difference,
            "sentence": f"the source's own task, {metric}: {before.metrics[metric]:.4f} before, {after.metrics[metric]:.4f} "
            f"after finetuning ({words}, {between}) on {len(before.names):,} {before.split} samples",
        }
