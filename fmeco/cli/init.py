"""Write starter configs, with an explanation of each choice: `fmeco init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fmeco.cli.options import Datasets, Force, command, one_dataset
from fmeco.errors import ConfigError
from fmeco.files import disk_error, replacing

ORDER = 6
DEFAULT_BACKBONE = "resnet18"  # for datasets whose STARTER names none

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
# fmeco finetune {finetune} --from RUN     RUN is the directory that pretrain printed; it brings the backbone
dataset: {dataset}
seed: 0
"""


def register(app: typer.Typer) -> None:
    app.command()(init)


@command(lambda result: print("\n".join(result["written"])), plugins=False)
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write pretrain.yaml and finetune.yaml.")] = Path(),
    dataset: Datasets = [],
    backbone: Annotated[
        str | None, typer.Option(help="Architecture to pretrain, as in `fmeco list backbones`.")
    ] = None,
    force: Force = False,
) -> Any:
    """Write starter configs that run as they are."""
    return {"written": [str(path) for path in write(folder, one_dataset(dataset), backbone, force)]}


def write(folder: Path, dataset: str | None, backbone: str | None, force: bool) -> list[Path]:
    """Write pretrain.yaml and finetune.yaml. Returns their paths.

    Without a dataset, the configs pretrain on the first five of scikit-learn's digits, and finetune on the others.
    """
    from fmeco.config.load import load_config

    first, second, default_backbone = _sections(dataset)
    paths = [folder / "pretrain.yaml", folder / "finetune.yaml"]
    if taken := [str(path) for path in paths if path.exists() and not force]:
        raise ConfigError(f"{' and '.join(taken)} already exist", "--force replaces them")
    epochs = 10 if first == second else 5
    texts = [
        PRETRAIN.format(pretrain=paths[0], dataset=first, backbone=backbone or default_backbone, epochs=epochs),
        FINETUNE.format(finetune=paths[1], dataset=second),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from None
    for path, text in zip(paths, texts, strict=True):
        with replacing(path) as temporary:
            temporary.write_text(text, "utf-8")
    load_config(paths[0], stage="pretrain")  # check that the written configs are valid
    load_config(paths[1], stage="finetune")
    return paths


def _sections(dataset: str | None) -> tuple[str, str, str]:
    """Return, as YAML, the dataset to pretrain on, the one to finetune on, and a backbone that suits them."""
    from fmeco.config.dataset_argument import dataset_section, table_header
    from fmeco.plugins.registry import find, plugins

    section = dataset_section(dataset) if dataset is not None else "digits"
    if section == "digits":
        return (
            "{name: digits, classes: [0, 1, 2, 3, 4]}",
            "{name: digits, classes: [5, 6, 7, 8, 9], limit_per_class: 10}",
            DEFAULT_BACKBONE,
        )
    plugin = plugins("datasets")[section["name"]] if isinstance(section, dict) else find("datasets", section)[0]
    starter = plugin.starter
    if isinstance(section, str):
        yaml_section = f"{{name: {section}}}"
    else:
        if "column" in starter:
            columns = table_header(Path(section["path"]))
            section[starter["column"]] = "label" if "label" in columns else columns[-1]
        pairs = (f"{key}: {value}" if key == "name" else f"{key}: {value!r}" for key, value in section.items())
        yaml_section = "{" + ", ".join(pairs) + "}"
    return yaml_section, yaml_section, starter.get("backbone", DEFAULT_BACKBONE)
