"""`fmeco init`: starter configs, with every choice that a newcomer makes explained."""

from __future__ import annotations

from pathlib import Path

from fmeco.config.dataset_argument import dataset_section, table_header
from fmeco.config.load import load_config
from fmeco.errors import ConfigError, DiskError
from fmeco.plugins.registry import find, plugins

PRETRAIN = """\
# fmeco pretrain {pretrain}
# `fmeco describe KIND NAME` explains every key, `fmeco list KIND` every choice.
dataset: {dataset}
backbone: {backbone}
optimizer: {{name: adamw, lr: 1.0e-3, weight_decay: 0.05}}
schedule: {{name: cosine, warmup: 0.05}}
train: {{epochs: {epochs}}}
seed: 0
"""
FINETUNE = """\
# fmeco finetune {finetune} --from RUN     RUN is what pretrain printed; the backbone comes with it
dataset: {dataset}
seed: 0
"""


def write(folder: Path, dataset: str | None, backbone: str | None, force: bool) -> list[Path]:
    """Write pretrain.yaml and finetune.yaml. Without a dataset: the first five of scikit-learn's digits, then the others."""
    section = dataset_section(dataset) if dataset is not None else "digits"
    found = plugins("datasets")[section["name"]] if isinstance(section, dict) else find("datasets", section)[0]
    starter = found.starter
    if isinstance(section, dict) and "column" in starter:
        columns = table_header(Path(section["path"]))
        section[starter["column"]] = "label" if "label" in columns else columns[-1]
    if isinstance(section, dict):
        first = second = (
            "{"
            + ", ".join(f"{key}: {value}" if key == "name" else f"{key}: {value!r}" for key, value in section.items())
            + "}"
        )
    elif section == "digits":
        first, second = (
            "{name: digits, classes: [0, 1, 2, 3, 4]}",
            "{name: digits, classes: [5, 6, 7, 8, 9], limit_per_class: 10}",
        )
    else:
        first = second = f"{{name: {section}}}"
    chosen = backbone or starter.get("backbone", "resnet18")
    paths = [folder / "pretrain.yaml", folder / "finetune.yaml"]
    if taken := [str(path) for path in paths if path.exists() and not force]:
        raise ConfigError(f"{' and '.join(taken)} exist already", "--force replaces them")
    texts = [
        PRETRAIN.format(pretrain=paths[0], dataset=first, backbone=chosen, epochs=5 if section == "digits" else 10),
        FINETUNE.format(finetune=paths[1], dataset=second),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, "utf-8")
    except OSError as error:
        raise DiskError(f"cannot write {folder}: {error.strerror}") from None
    load_config(paths[0], stage="pretrain")  # what init writes is valid
    load_config(paths[1], stage="finetune")
    return paths
