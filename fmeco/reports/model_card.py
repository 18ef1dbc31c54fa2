"""Write the model card of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmeco.core.data import DataSpec
from fmeco.errors import clean, escaped, listing


def model_card(meta: Mapping[str, Any]) -> str:
    """Write the text of a checkpoint's README.md: what it is, its training data, its metrics, and how to use it.

    meta: the content of meta.json.
    """
    spec, raw = meta["spec"], meta["config"]
    backbone = raw.get("backbone", {}).get("name", "given in Python")
    lines = [
        "---",
        "library_name: fmeco",
        "tags: [transfer-learning]",
        "---",
        "",
        f"# {clean(meta['name'])}: {backbone}, {raw['objective']['name']}",
        "",
        f"Step {meta['step']}, epoch {meta['epoch']:.3g}, {meta['parameters']:,} parameters. Licence: {meta['licence'] or 'not stated by its author'}.",
        "",
        "## Use",
        "",
        "```",
        "fmeco predict THIS_FOLDER FILE...",
        "fmeco finetune --from THIS_FOLDER --dataset YOUR_DATA",
        "```",
        "",
        "## Data",
        "",
        f"{spec['modality']} data, dataset `{raw.get('dataset', {}).get('name', 'given in Python')}`: "
        + ", ".join(f"{n:,} {part}" for part, n in spec["sizes"].items())
        + f". Fingerprint `{spec['fingerprint'][:16]}`.",
        "",
    ]
    for name, target in DataSpec.from_json(spec).targets.items():
        lines.append(f"Target `{clean(name)}` ({target.kind}): {target.traits.summary(target)}.")
    if meta["metrics"]:
        lines += ["", "## Metrics on the validation split", "", "| metric | value |", "|---|---|"]
        lines += [f"| {clean(name).replace('|', '/')} | {value:.4f} |" for name, value in meta["metrics"].items()]
        lines += [
            "",
            "The best checkpoint was selected on this split, so these numbers are slightly optimistic; `fmeco evaluate` on a test split gives unbiased ones.",
        ]
    if meta["transplant"]:
        report = meta["transplant"]
        lines += [
            "",
            "## Origin",
            "",
            f"Started from `{clean(Path(report['source']).name)}`: {report['share']:.1%} of the backbone's parameters were loaded"
            + (f", across modalities ({clean(report['crossing'])})." if report.get("crossing") else "."),
        ]
    if meta["needs"]:
        lines += ["", f"Needs code that is not part of fmeco: {listing(meta['needs'])}."]
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    return escaped("\n".join([*lines, "", f"Made with {versions}.", ""]))
