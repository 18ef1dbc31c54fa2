"""List the published files that a run needs, and fetch them into a folder for a machine without a network."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fmeco.checkpoints import carried, refs, sources
from fmeco.config.arguments import checked
from fmeco.config.check import choose
from fmeco.config.run_config import Choice, RunConfig
from fmeco.download import File, NotHere, ask, get, is_offline, not_here, record, recorded, show_size
from fmeco.errors import ConfigError, clean
from fmeco.log import say


def needed(config: RunConfig) -> list[File]:
    """List the published files that a run reads: of its weights, its teachers and its dataset.

    Downloads descriptions such as config.json, but no weights and no data. Inside `offline`, it downloads nothing.

    Raises ConfigError for weights that are not published, and ResourceError.
    """
    looks: list[Callable[[], None]] = []
    if config.source is not None:
        looks.append(functools.partial(_look, config.source, config.backbone, config.backbone_keys))
    elif config.backbone is not None:
        looks.append(functools.partial(_look_section, config.backbone))
    if (objective := config.objective) is not None:
        looks += [functools.partial(_look, objective.options[key], None) for key in objective.plugin.refs]
    with recorded() as found:
        for look in looks:
            with contextlib.suppress(NotHere):  # the file is recorded, and others may be missing, too
                look()
        for file in dataset_files(config.dataset) if config.dataset is not None else ():
            record(file)
    return [file if file.here or is_offline() else ask(file) for file in found.values()]


def announce(files: list[File]) -> None:
    """Say which files a run will download. Raises NotHere, inside `offline`, if there are any."""
    missing = [file for file in files if not file.here]
    if missing and is_offline():
        raise NotHere(not_here(missing))
    if missing:
        known = sum(file.size for file in missing)
        say(f"files to download: {len(missing)}, {show_size(known) if known else 'of unknown size'} in all")


def dataset_files(section: Choice) -> list[File]:
    """List the files that a dataset downloads, by the function `files` of its plug-in; [] for data that is a user's own."""
    find = getattr(section.plugin.load(), "files", None)
    return [] if find is None else list(find(section.arch, dict(section.options)))


def _look(ref: str, backbone: Choice | None, keys: Mapping[str, Any] | None = None) -> None:
    """Record the files of a REF; a path needs none."""
    if not refs.is_local(ref):
        sources.find_release(*refs.named(ref, backbone, keys))


def _look_section(backbone: Choice) -> None:
    """Record the files of the config's backbone: its description, and the weights that it names."""
    chosen, weights = sources.completed(backbone), backbone.options.get("weights")
    if weights is not None and not Path(weights).exists():
        sources.find_release(chosen, weights)


@checked
def fetch(
    ref: str | Path | None = None, *, out: str | Path, dataset: str | Path | None = None, force: bool = False
) -> dict[str, Any]:
    """Fetch published weights, or a published dataset, into a folder for a machine without a network.

    ref: SOURCE/ARCH@WEIGHTS. The folder then is a REF.
    dataset: name of a dataset; the folder then is its key `root`.
    out: the folder to write.
    force: replace an earlier folder of weights.

    Returns {"ref" or "dataset", "out", "files", "licence"}.

    Raises ConfigError, ResourceError, CheckpointError and DiskError.
    """
    if (ref is None) == (dataset is None):
        raise ConfigError(
            "fetch takes a REF or a dataset, one of them", "fmeco fetch torchvision/resnet18@DEFAULT --out FOLDER"
        )
    return _fetch_dataset(str(dataset), Path(out)) if ref is None else _fetch_weights(str(ref), Path(out), force)


def _fetch_weights(ref: str, out: Path, force: bool) -> dict[str, Any]:
    """Fetch published weights into a folder."""
    if refs.is_local(ref):
        if Path(ref).exists():
            raise ConfigError(f"{clean(ref)} is on this machine: copy it")
        raise ConfigError(f"{clean(ref)} names no published weights", "they are written SOURCE/ARCH@WEIGHTS")
    carried.check_free(out, force=force)
    with recorded() as found:
        chosen, weights = refs.named(ref, None)
        release = sources.find_release(chosen, weights)
        paths = [get(file) if "://" in file.url else file.path for file in release.files]
    sources.read_all(paths)  # refuse what no run could load
    others = {file.name: file.path for file in found.values() if file.name and file.path not in paths and file.here}
    names = [Path(file.url.partition("?")[0]).name for file in release.files]
    about = {
        "ref": release.ref,
        "backbone": chosen.to_dict(),
        "spec": release.spec.to_json(),
        "licence": release.licence,
    }
    content = carried.write(out, about, paths, names, others)
    say(f"{release.ref}: {_size(content['weights'])}; --from {clean(out)} takes it without a network")
    return {
        "ref": release.ref,
        "out": str(out.resolve()),
        "files": [*content["weights"], *others, carried.ABOUT],
        "licence": release.licence,
    }


def _size(entries: dict[str, Any]) -> str:
    """Format the size of the weights in published.json."""
    return f"{show_size(sum(entry['size'] for entry in entries.values()))} of weights"


def _fetch_dataset(name: str, out: Path) -> dict[str, Any]:
    """Fetch the files of a published dataset into a folder."""
    section = choose("dataset", {"name": name})
    if not hasattr(section.plugin.load(), "files"):
        raise ConfigError(f"the dataset {clean(name)} downloads nothing", "its files are yours to copy")
    section = choose("dataset", {"name": name, "root": str(out)})
    files = dataset_files(section)
    for file in files:
        get(file)
    say(f"{section.spelled}: --set dataset.root={clean(out)} takes it without a network")
    return {
        "dataset": section.spelled,
        "out": str(out.resolve()),
        "files": [str(file.path.relative_to(out)) for file in files],
        "licence": None,
    }
