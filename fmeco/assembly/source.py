"""Stage 1: load the weights that a run starts from, and the teachers that it learns from."""

from __future__ import annotations

import contextlib
import dataclasses
import os

from fmeco.assembly.stages import RunSource
from fmeco.checkpoints import refs, sources, transplant
from fmeco.checkpoints.format import Checkpoint
from fmeco.config.run_config import Choice, RunConfig
from fmeco.core.data import DataSpec
from fmeco.core.model import Backbone, Objective, Teacher
from fmeco.distributed.ranks import Ranks
from fmeco.errors import CheckpointError, clean
from fmeco.log import say


def read_source(config: RunConfig, ranks: Ranks, backbone: Backbone | None, resumed: Checkpoint | None) -> RunSource:
    """Load the weights and teachers that a run starts from.

    backbone: a backbone that was passed as an object.
    resumed: the run's own checkpoint; the source is then not read again.

    Raises ConfigError, CheckpointError, ResourceError.
    """
    section = sources.completed(config.backbone) if config.backbone is not None else None
    source = _source(config, section, backbone) if resumed is None else None
    teachers = _teachers(config.objective, resumed)
    known: DataSpec | None
    if resumed is not None:  # the data is read as it was before the run was stopped
        known = refs.spec_of(resumed)
    else:  # without a source, a student gets the same inputs as its teacher
        prepared = [source.spec] if source is not None else [loaded.spec for loaded in teachers.values()]
        known = prepared[0].preprocessing_only() if prepared else None
    complete = dataclasses.replace(config, backbone=section)
    return RunSource(complete, ranks, source, teachers, resumed, backbone, known)


def _source(config: RunConfig, section: Choice | None, own_backbone: Backbone | None) -> sources.Source | None:
    """Load the weights that --from names, or else the backbone's `weights`; None if neither is set."""
    ref, weights = config.source, _weights(section)
    if ref is not None and own_backbone is not None:
        saved = refs.find_checkpoint(ref)
        return sources.Source(ref, None, saved.tensors("backbone"), refs.spec_of(saved), saved, saved.meta["licence"])
    if ref is not None:
        return refs.resolve(ref, section, config.backbone_keys)
    if section is None or weights is None:
        return None
    if os.path.exists(weights):
        return refs.resolve(weights, section)
    return sources.published(section, weights)


def _teachers(objective: Choice | None, resumed: Checkpoint | None) -> dict[str, Teacher]:
    """Load the teachers that the objective's section names.

    Raises CheckpointError for a teacher that the resumed run did not have.
    """
    if objective is None:
        return {}
    teachers = {ref: teacher(ref) for ref in (objective.options[key] for key in objective.plugin.refs)}
    for loaded in teachers.values():
        if resumed is not None and loaded.id is not None and loaded.id not in resumed.manifest["parents"]:
            raise CheckpointError(f"{clean(loaded.ref)} is not the teacher that this run started with")
    return teachers


def _weights(backbone: Choice | None) -> str | None:
    """Return the `weights` that a backbone's section names, if any."""
    return backbone.options.get("weights") if backbone is not None else None


def teacher(ref: str) -> Teacher:
    """Load a trained model as a frozen teacher. Raises the errors of `refs.resolve`."""
    source = refs.resolve(ref, None)
    assert source.backbone is not None, "resolve names one"
    saved, objective = source.checkpoint, None
    with contextlib.nullcontext() if saved is None else refs.rebuilding(saved):
        backbone: Backbone = source.backbone.build(spec=source.spec)
    if saved is not None:
        refs.check_needs(saved, ref, "objectives")
        with refs.rebuilding(saved):
            loaded: Objective = refs.section_of(saved, "objective").build(backbone=backbone, spec=source.spec)
        transplant.load_objective(loaded, saved)
        objective = loaded
    else:
        transplant.transplant(backbone, source.state, source=ref)
    (objective or backbone).eval().requires_grad_(False)
    say(f"teacher: {clean(ref)}, {source.backbone.spelled}")
    return Teacher(ref, backbone, objective, source.spec, saved.id if saved is not None else None)
