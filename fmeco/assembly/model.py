"""Stage 3: build the backbone, the objective and the augmentation, and load the weights to start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fmeco.assembly import defaults
from fmeco.assembly.stages import Origin, RunData, RunModel, RunSource
from fmeco.checkpoints.transplant import Report, carry_rows, split_state, transplant
from fmeco.config.check import choose
from fmeco.config.run_config import Choice
from fmeco.core.augment import Augment
from fmeco.core.data import Data
from fmeco.core.model import Backbone, Objective
from fmeco.core.random import seed_torch
from fmeco.core.target import known
from fmeco.core.training import Role, Roles, Transfer, frozen
from fmeco.errors import ConfigError, DataError, clean
from fmeco.log import say

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def build_model(given: RunData) -> RunModel:
    """Build everything with parameters. Initialisation, in order: the seed's random values; then the source's backbone;
    then head rows of classes that both tasks have.

    Raises ConfigError, CheckpointError, and DataError for samples without a value that the objective needs.
    """
    start, config, data = given.start, given.start.config, given.data
    seed_torch(config.seed, 0x696E6974)  # "init": apart from the seeds of steps
    chosen = start.source.backbone if start.source is not None else config.backbone
    backbone = start.backbone or build_backbone(chosen, data)
    section = _objective_section(given, backbone)
    objective: Objective = section.plugin.build(
        {"backbone": backbone, "spec": data.spec}, section.options, start.teachers.__getitem__
    )
    if objective.about:
        say(clean(", ".join(f"{key}: {value}" for key, value in objective.about.items())))
    roles = roles_of(objective)
    strategy = config.transfer or choose("transfer", "full")
    transfer: Transfer = frozen(strategy.plugin.build({"roles": roles}, strategy.options), config.carry.freeze, roles)
    fresh = start.source is None or transfer.fresh
    report = None if fresh else _transplant(given, objective)
    varied = config.augment or choose("augment", defaults.augment(data.spec, len(objective.views)))
    augment: Augment = varied.plugin.build(
        {"spec": data.spec, "arch": varied.arch, "train": data.split("train")}, varied.options
    )
    if len(objective.views) > 1 and not augment.varies:
        raise ConfigError(
            f"objective {section.name} compares views of a sample, and with augment {varied.spelled} they are all the same"
        )
    named = None if start.backbone is not None else chosen
    config = dataclasses.replace(config, backbone=named, objective=section, augment=varied)
    origin = _origin(given.start, report, fresh)
    return RunModel(given, config, objective, augment, roles, transfer, fresh, report, origin)


def _origin(start: RunSource, report: Report | None, fresh: bool) -> Origin:
    """Tell where the weights come from; of a resumed run, what its checkpoint says."""
    resumed, source = start.resumed, None if fresh else start.source
    if resumed is not None:
        return Origin(list(resumed.manifest["parents"]), resumed.meta["transplant"], resumed.meta.get("licence"))
    parents = [source.checkpoint.id] if source is not None and source.checkpoint is not None else []
    parents += [teacher.id for teacher in start.teachers.values() if teacher.id is not None]
    return Origin(parents, report.to_json() if report is not None else None, source.licence if source else None)


def build_backbone(chosen: Choice | None, data: Data) -> Backbone:
    """Build the backbone that a section names, for this data. Raises ConfigError where none is named."""
    if chosen is None:
        raise ConfigError("backbone: missing", "name one, as in `backbone: resnet18`, or hand in your own object")
    backbone: Backbone = chosen.plugin.build({"spec": data.spec, "arch": chosen.arch}, chosen.options)
    return backbone


def _objective_section(given: RunData, backbone: Backbone) -> Choice:
    """The config's objective, or the default one, with what its teacher decides written into its options."""
    section = given.start.config.objective or defaults.objective(given.data.spec, backbone)
    _check_values(section, given.data)
    complete = getattr(section.plugin.load(), "complete", None)
    if complete is None:
        return section
    teacher = given.start.teachers[section.options[section.plugin.refs[0]]]
    return dataclasses.replace(section, options=complete(dict(section.options), teacher))


def _check_values(section: Choice, data: Data) -> None:
    """Refuse samples that lack the value of an objective's one target."""
    name = section.options.get("target")
    for part, samples in (("training", data.train), ("validation", data.val)):
        values = samples.targets.get(name) if samples is not None and name is not None else None
        if isinstance(values, Tensor) and not (here := known(values)).all():
            raise DataError(
                f"the target '{clean(name)}' has no value in {len(here) - int(here.sum())} of {len(here)} {part} samples",
                "objective: multi_task leaves such samples out of that task alone; or remove these rows",
            )


def roles_of(objective: Objective) -> Roles:
    """Tell what each parameter that can learn is: its depth in the backbone, and weight, bias, norm or other."""
    product = objective.product
    inside = {id(p): name for name, p in product.library.named_parameters()}
    norms = {id(p) for module in objective.modules() if isinstance(module, NORMS) for p in module.parameters(False)}

    def role(name: str, p: nn.Parameter) -> Role:
        depth = product.depth_of(inside[id(p)]) if id(p) in inside else None
        if id(p) in norms:
            return Role(depth, "norm")
        return Role(
            depth, "bias" if name.endswith("bias") else "weight" if name.endswith("weight") and p.ndim > 1 else "other"
        )

    # Teachers never learn: they have no role.
    learning = {name: p for name, p in objective.named_parameters() if p.requires_grad or id(p) in inside}
    return {name: role(name, p) for name, p in learning.items()}


def _transplant(given: RunData, objective: Objective) -> Report:
    """Load the source's backbone, and head rows of the classes that both tasks have."""
    source, carry, spec = given.start.source, given.start.config.carry, given.data.spec
    assert source is not None
    report = transplant(
        objective.product, source.state, source=source.ref, allow_partial=carry.allow_partial, prefix=carry.prefix
    )
    if source.spec.modality != spec.modality:
        report.crossing = f"{source.spec.modality} -> {spec.modality}"
    rows: Mapping[str, Sequence[str]] = {}
    if source.checkpoint is not None and carry.head == "auto":
        rows = source.checkpoint.meta.get("class_rows", {})
        report.carried = carry_rows(objective, source.checkpoint.tensors("objective"), rows)
    report.new = [name for name in split_state(objective)[1] if not report.carried or name not in rows]
    return report
