"""Stage 3: build the backbone, the objective and the augmentation, and load the weights to start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fmeco.assembly import defaults
from fmeco.assembly.stages import Origin, RunData, RunModel, RunSource
from fmeco.checkpoints.sources import Source
from fmeco.checkpoints.transplant import Naming, Report, carry_rows, split_state, transplant
from fmeco.config.check import DEFAULT_NAMES, choose
from fmeco.config.run_config import Choice
from fmeco.config.sections import Carry
from fmeco.core.augment import Augment, check_riders
from fmeco.core.data import Data
from fmeco.core.model import Backbone, Objective
from fmeco.core.random import seed_torch
from fmeco.core.target import known
from fmeco.core.training import Role, Roles, checked, frozen
from fmeco.errors import ConfigError, DataError, clean
from fmeco.log import say

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def build_model(run_data: RunData) -> RunModel:
    """Build everything with parameters, and initialise it.

    Weights are set in this order: random values from the seed, then the source's backbone, then head rows of classes
    that both tasks have.

    Raises ConfigError, CheckpointError, and DataError for samples without a value that the objective needs.
    """
    run_source, config, data = run_data.run_source, run_data.run_source.config, run_data.data
    seed_torch(config.seed, 0x696E6974)  # "init": differs from the seeds of steps
    chosen = run_source.source.backbone if run_source.source is not None else config.backbone
    backbone = run_source.backbone or build_backbone(chosen, data)
    objective_section = _objective_section(run_data, backbone)
    objective: Objective = objective_section.plugin.build(
        {"backbone": backbone, "spec": data.spec}, objective_section.options, run_source.teachers.__getitem__
    )
    if objective.about:
        say(clean("; ".join(f"{key}: {value}" for key, value in objective.about.items())))
    roles = roles_of(objective)
    strategy = config.transfer or choose("transfer", DEFAULT_NAMES["transfer"])
    far = _far(run_source, data)
    decay = chosen.plugin.layer_decay if chosen is not None else 1.0
    values = {"roles": roles, "layer_decay": decay, "far": far}
    planned = checked(strategy.plugin.build(values, strategy.options), roles, str(strategy.plugin.file))
    if far and "far" in strategy.plugin.injected:
        say(
            f"data of another modality: {strategy.spelled} trains everything as new weights are trained, from a new head, and "
            "batch norms adapt; the solved head is only what training has to beat"
        )
    transfer = frozen(planned, config.carry.freeze, roles)
    loads = run_source.source is not None and not transfer.fresh
    report = _transplant(run_data, objective) if loads else None
    augment_section = config.augment or choose("augment", defaults.augment(data.spec, len(objective.views)))
    augment: Augment = augment_section.plugin.build(
        {"spec": data.spec, "arch": augment_section.arch, "train": data.split("train")}, augment_section.options
    )
    check_riders(augment, data.spec, augment_section.spelled)
    if len(objective.views) > 1 and not augment.varies:
        raise ConfigError(
            f"objective {objective_section.name} compares views of a sample, but augment {augment_section.spelled} makes them all the same"
        )
    backbone_section = None if run_source.backbone is not None else chosen
    return RunModel(
        run_data=run_data,
        config=dataclasses.replace(
            config, backbone=backbone_section, backbone_keys=None, objective=objective_section, augment=augment_section
        ),
        objective=objective,
        augment=augment,
        roles=roles,
        transfer=transfer,
        fresh=report is None and run_source.resumed is None,
        report=report,
        origin=_origin(run_source, report),
    )


def _far(run_source: RunSource, data: Data) -> bool:
    """Whether the weights were trained on data of another modality; of a resumed run, as when it began."""
    if run_source.resumed is not None:
        report = run_source.resumed.meta["transplant"]
        return report is not None and bool(report.get("crossing"))  # early checkpoints do not have it
    return run_source.source is not None and run_source.source.spec.modality != data.spec.modality


def _origin(run_source: RunSource, report: Report | None) -> Origin:
    """Record where the weights come from; for a resumed run, as its checkpoint does."""
    resumed, source = run_source.resumed, None if report is None else run_source.source
    if resumed is not None:
        return Origin(list(resumed.manifest["parents"]), resumed.meta["transplant"], resumed.meta["licence"])
    parents = [source.checkpoint.id] if source is not None and source.checkpoint is not None else []
    parents += [teacher.id for teacher in run_source.teachers.values() if teacher.id is not None]
    return Origin(parents, report.to_json() if report is not None else None, source.licence if source else None)


def build_backbone(chosen: Choice | None, data: Data) -> Backbone:
    """Build the backbone of a config section for this data. Raises ConfigError if there is no section."""
    if chosen is None:
        raise ConfigError("backbone: missing", "name one, as in `backbone: resnet18`, or pass your own object")
    backbone: Backbone = chosen.plugin.build({"spec": data.spec, "arch": chosen.arch}, chosen.options)
    return backbone


def _objective_section(run_data: RunData, backbone: Backbone) -> Choice:
    """Return the config's objective, or the default one, with its options completed from its teacher."""
    section = run_data.run_source.config.objective or defaults.objective(run_data.data.spec, backbone)
    _check_values(section, run_data.data)
    complete = getattr(section.plugin.load(), "complete", None)
    if complete is None:
        return section
    teacher = run_data.run_source.teachers[section.options[section.plugin.refs[0]]]
    return dataclasses.replace(section, options=complete(dict(section.options), teacher))


def _check_values(section: Choice, data: Data) -> None:
    """Refuse samples without a value of the objective's target. Of targets that lie on the input, one sample must have it."""
    name = section.options.get("target")
    described = data.spec.targets.get(name) if name is not None else None
    for part, samples in (("training", data.train), ("validation", data.val)):
        values = samples.targets.get(name) if samples is not None and name is not None else None
        if isinstance(values, Tensor) and not (labelled := known(values)).all():
            if described is not None and described.input and labelled.any():
                continue  # such samples teach nothing, and are not judged
            raise DataError(
                f"the target '{clean(name)}' has no value in {len(labelled) - int(labelled.sum())} of {len(labelled)} {part} samples",
                "remove these samples, or use objective: multi_task, which leaves them out of that task alone",
            )


def roles_of(objective: Objective) -> Roles:
    """Map each parameter that can learn to its role: its depth in the backbone, and weight, bias, norm or other."""
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

    # The parameters of teachers never learn, and have no role.
    for name in objective.idle:
        inside.pop(id(product.get_parameter(name)), None)
    learning = {name: p for name, p in objective.named_parameters() if p.requires_grad or id(p) in inside}
    return {name: role(name, p) for name, p in learning.items()}


def load_weights(backbone: Backbone, source: Source, carry: Carry) -> Report:
    """Load a source's weights into a backbone, as the keys of `transfer:` say. Raises CheckpointError, ConfigError."""
    by_user = source.backbone if source.checkpoint is None else None
    return transplant(
        backbone,
        source.state,
        source=source.ref,
        allow_partial=carry.allow_partial,
        naming=Naming(carry.prefix, carry.rename, carry.match),
        architecture=by_user.spelled if by_user is not None else "",
    )


def _transplant(run_data: RunData, objective: Objective) -> Report:
    """Load the source's backbone, and the head rows of classes that both tasks have."""
    source, carry, spec = run_data.run_source.source, run_data.run_source.config.carry, run_data.data.spec
    assert source is not None
    report = load_weights(objective.product, source, carry)
    if source.spec.modality != spec.modality:
        report.crossing = f"{source.spec.modality} -> {spec.modality}"
    rows: Mapping[str, Sequence[str]] = {}
    if source.checkpoint is not None and carry.head == "auto":
        rows = source.checkpoint.meta.get("class_rows", {})
        report.carried = carry_rows(objective, source.checkpoint.tensors("objective"), rows)
    report.new = [name for name in split_state(objective)[1] if not report.carried or name not in rows]
    return report
