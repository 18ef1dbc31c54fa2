"""Stage 1: find the weights that a run starts from, and the teachers that it learns from."""

from __future__ import annotations

import dataclasses
import os

from fmeco.assembly.stages import RunSource
from fmeco.checkpoints import refs, transplant
from fmeco.checkpoints.format import Checkpoint
from fmeco.config.check import choose
from fmeco.config.run_config import Choice, RunConfig
from fmeco.core.data import DataSpec
from fmeco.core.model import Backbone, Objective, Teacher
from fmeco.distributed.ranks import Ranks
from fmeco.errors import CheckpointError, clean
from fmeco.log import say


def read_source(config: RunConfig, ranks: Ranks, backbone: Backbone | None, resumed: Checkpoint | None) -> RunSource:
    """Read what a run starts from.

    resumed: the run's own checkpoint; then the source is not read again. Raises ConfigError, CheckpointError,
    ResourceError.
    """
    if config.backbone is not None:
        config = dataclasses.replace(config, backbone=refs.completed(config.backbone))
    source = _source(config, backbone) if resumed is None else None
    teachers = _teachers(config.objective, resumed)
    prepared: DataSpec | None
    if source is not None:
        prepared = source.spec
    elif resumed is not None:
        inherited = config.source is not None or _weights(config.backbone) is not None or bool(teachers)
        prepared = resumed.spec if inherited else None
    else:  # a student sees what its teacher sees
        prepared = next((one.spec for one in teachers.values()), None)
    known = prepared.preprocessing_only() if prepared is not None else None
    return RunSource(config, ranks, source, teachers, resumed, backbone, known)


def _source(config: RunConfig, own_backbone: Backbone | None) -> refs.Source | None:
    """The weights of --from, else of the backbone's `weights`."""
    ref, weights = config.source, _weights(config.backbone)
    if ref is not None and own_backbone is not None:
        saved = refs.find_checkpoint(ref)
        placeholder = choose("backbone", "mlp")  # the object that was handed in takes its place
        licence = saved.meta.get("licence")
        return refs.Source(ref, placeholder, saved.tensors("backbone"), saved.spec, saved, licence)
    if ref is not None:
        return refs.resolve(ref, config.backbone)
    if config.backbone is None or weights is None:
        return None
    if os.path.exists(weights):
        return refs.resolve(weights, config.backbone)
    return refs.published(config.backbone, weights)


def _teachers(objective: Choice | None, resumed: Checkpoint | None) -> dict[str, Teacher]:
    """Load what the objective's section names by a Ref. Raises CheckpointError for another teacher than a resumed run's."""
    if objective is None:
        return {}
    found = {ref: teacher(ref) for ref in (objective.options[key] for key in objective.plugin.refs)}
    for one in found.values():
        if resumed is not None and one.id is not None and one.id not in resumed.manifest["parents"]:
            raise CheckpointError(f"{clean(one.ref)} is not the teacher that this run began with")
    return found


def _weights(backbone: Choice | None) -> str | None:
    return backbone.options.get("weights") if backbone is not None else None


def teacher(ref: str) -> Teacher:
    """Load a trained model to learn from, frozen. Raises what `refs.resolve` does."""
    source = refs.resolve(ref, None)
    backbone: Backbone = source.backbone.build(spec=source.spec)
    saved, objective = source.checkpoint, None
    if saved is not None:
        refs.check_needs(saved, ref, "objectives")
        made: Objective = choose("objective", saved.meta["config"]["objective"]).build(
            backbone=backbone, spec=source.spec
        )
        transplant.load_objective(made, saved)
        objective = made
    else:
        transplant.transplant(backbone, source.state, source=ref)
    (objective or backbone).eval().requires_grad_(False)
    say(f"the teacher: {clean(ref)}, {source.backbone.spelled}")
    return Teacher(ref, backbone, objective, source.spec, saved.id if saved is not None else None)
