"""Define what may change when a run is resumed, and find what was edited by hand in its config.yaml."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmeco.config.run_config import PLUGIN_SECTIONS, RunConfig
from fmeco.errors import ConfigError, clean

# Keys that may change on resuming: where the data is, and how it is read, computed and reported.
CHANGEABLE = (
    "dataset.path",
    "dataset.train",
    "dataset.val",
    "dataset.test",
    "dataset.root",
    "train.workers",
    "train.cache",
    "train.keep",
    "train.log_every",
    "train.save_every",
    "train.tensorboard",
    "train.micro_batch",
    "train.device",
)
_LENGTH = "train.epochs"  # `resume --epochs` changes it
_SEAL = "# As fmeco wrote it, the text below has the SHA-256 "


def sealed(text: str) -> str:
    """Add a first line with the text's hash, by which `is_sealed` finds out whether it was edited."""
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_sealed(text: str) -> bool:
    """Tell whether a text is as `sealed` returned it."""
    return text == sealed(text.partition("\n")[2])


def was_edited(text: str) -> bool:
    """Tell whether a text with a hash was edited. Older runs have no hash, so this is not known of theirs."""
    return text.startswith(_SEAL) and not is_sealed(text)


def check_overrides(overrides: Sequence[str]) -> None:
    """Check that --set changes only keys in CHANGEABLE. Raises ConfigError."""
    for item in overrides:
        if item.partition("=")[0].strip() not in CHANGEABLE:
            raise ConfigError(
                f"--set {clean(item)}: a resumed run must keep this value, which affects its results",
                f"allowed: {', '.join(CHANGEABLE)}",
                "to change more, start a new run with --from",
            )


def check_unedited(file: Path, now: RunConfig, then: RunConfig, *, own_length: bool = False, hint: str = "") -> None:
    """Compare a run's config with that of its checkpoint. Raises ConfigError that names every edited key.

    file: config.yaml of the run, for the message.
    now: config in that file.
    then: config in the checkpoint.
    own_length: fmeco itself wrote the length of the run; `resume --epochs` does so before it trains.
    hint: another way out.
    """
    # A checkpoint of an older version lacks keys that this one has: complete sections are compared.
    then, now = (config.replace(backbone_keys=None) if config.backbone else config for config in (then, now))
    free = (*CHANGEABLE, *((_LENGTH,) if own_length else ()))
    edited = [(key, old, new) for key, old, new in _differences(then, now) if key not in free]
    if not edited:
        return
    lines = [f"{key}: {old} in the checkpoint, {new} in config.yaml" for key, old, new in edited]
    longer = any(key == _LENGTH for key, _, _ in edited)
    raise ConfigError(
        "\n".join([f"{clean(file)} was edited, and these values must stay as the run was trained:", *lines]),
        "set them back; to train on with other values, start a new run with --from",
        hint,
        "the length of a run is changed with: fmeco resume RUN --epochs N" if longer else "",
    )


def _differences(then: RunConfig, now: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Yield (key, old value, new value) for each difference. Of another plug-in, only the name is yielded.

    Paths are compared by their last part: config.yaml has absolute ones, a checkpoint relative ones, and a run may be moved
    together with its files.
    """
    old, new = then.to_dict("names"), now.to_dict("names")
    shown_old, shown_new = then.to_dict(), now.to_dict()
    for section in dict.fromkeys([*old, *new]):
        before, after = old.get(section), new.get(section)
        if before == after:
            continue
        if not isinstance(before, Mapping) or not isinstance(after, Mapping):
            yield section, _shown(shown_old.get(section)), _shown(shown_new.get(section))
            continue
        word = "strategy" if section == "transfer" else "name"
        keys = (
            [word] if section in PLUGIN_SECTIONS and before[word] != after[word] else dict.fromkeys([*before, *after])
        )
        for key in keys:
            if before.get(key) != after.get(key):
                yield f"{section}.{key}", _shown(shown_old[section].get(key)), _shown(shown_new[section].get(key))


def _shown(value: Any) -> str:
    """Show a value of a config: a section by the name of its plug-in, null and booleans as YAML writes them."""
    if isinstance(value, Mapping):
        value = value.get("strategy", value.get("name", "a section"))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return clean(value, 80)


def extended(config: RunConfig, epochs: str, stopped_at: float | None) -> RunConfig:
    """Apply --epochs N or +N to a config. Raises ConfigError if it does not make the run longer.

    stopped_at: epoch at which early stopping ended the run; None if the run is as long as its config says.
    """
    if config.train.epochs is None:
        raise ConfigError(
            "--epochs: the length of this run is given in " + ("steps" if config.train.steps else "time"),
            "start a new run with --from",
        )
    current = config.train.epochs if stopped_at is None else stopped_at
    try:
        total = float(epochs.lstrip("+")) + (current if epochs.startswith("+") else 0.0)
    except ValueError:
        raise ConfigError(f"--epochs {clean(epochs)}: expected a number, or +N for N more") from None
    if not math.isfinite(total):
        raise ConfigError(f"--epochs {clean(epochs)}: expected a finite number")
    if total <= current:
        raise ConfigError(f"--epochs {clean(epochs)}: the run already has {current:g} epochs", "to add N more, pass +N")
    return dataclasses.replace(config, train=config.train.model_copy(update={"epochs": total}))
