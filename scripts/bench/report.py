"""Write docs/performance.md from the measurements of the other scripts in this folder.

    python scripts/bench/report.py [WORK/images.json] [WORK/parts.json] [OUT/speedrun.json]

Each file updates its own section. The other sections stay as they are, since each measurement takes about an hour.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images
import parts
import speedrun

DOC = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def main() -> None:
    """Rewrite the sections whose results are given as arguments."""
    results = {Path(path).stem: json.loads(Path(path).read_text()) for path in sys.argv[1:]}
    if not results or not results.keys() <= SECTIONS.keys():
        sys.exit(__doc__)
    head, *sections = re.split("^## ", DOC.read_text(), flags=re.MULTILINE)
    kept = {text.splitlines()[0]: f"## {text}".rstrip().splitlines() for text in sections}
    written = [head.rstrip()]
    for name, (title, section) in SECTIONS.items():
        written += ["", *([f"## {title}", "", *section(results[name])] if name in results else kept[title])]
    DOC.write_text("\n".join([*written, ""]))


def peers(trained: dict[str, Any]) -> list[str]:
    """Write the section on the same training by fmeco and its peers."""
    machine = trained["sessions"][-1]["machine"]
    versions = {name: packages for session in trained["sessions"] for name, packages in session["versions"].items()}
    job = images.Job(**trained["job"])
    precision = {"bf16": "bfloat16", "fp32": "float32"}[images.precision_of(trained["sessions"][-1])]
    return [
        f"resnet18 at {job.size} pixels, batches of {job.batch}, {job.images:,} generated photographs of 400x533 pixels, on",
        f"{machine['cores']} cores of an {machine['cpu']}, torch {versions['fmeco']['torch']}.",
        "",
        f"- `bare`: a channels_last loop over one batch in memory, in {precision}, the faster precision of this CPU. It reads no data, so it",
        "  is the upper limit.",
        "- fmeco: no flags; it measures which precision is faster.",
        "- A peer's name alone: its defaults. `best`: the fastest CPU settings that we know for it, with the precision of `bare`; the script lists",
        "  them.",
        "",
        "```",
        "python scripts/bench/images.py setup --work W && python scripts/bench/images.py run --work W --rounds 5 --timm-train TRAIN.PY",
        "```",
        "",
        *images.rows(trained),
        "",
        *verdict(trained, job),
        "",
        "Versions: "
        + ", ".join(f"{name} {version(versions[name], name)}" for name in images.PACKAGES if name in versions)
        + ".",
    ]


def pieces(measured: dict[str, Any]) -> list[str]:
    """Write the section on the parts of fmeco."""
    return [
        "`python scripts/bench/parts.py run --work W`",
        "",
        "- Loop: an MLP on 8x8 digits, batches of 32, one thread, with metrics.jsonl and TensorBoard on. `bare` is the same model on tensors",
        "  in memory. Both compute in float32, and take turns of 100 steps in one process.",
        "- Checkpoint pause: how long training stops. A thread writes the rest during training.",
        "- Memory: the whole process tree.",
        "",
        *parts.rows(measured),
    ]


def recipe(measured: dict[str, Any]) -> list[str]:
    """Write the section on the recipe for small images."""
    return [
        "[configs/speedrun/cifar10.yaml](../configs/speedrun/cifar10.yaml) against plain SGD (Nesterov, cosine, the same network). Both train",
        "for the same time on CIFAR-10's 50,000 training images, read as files. Accuracy is on the 10,000 test images.",
        f"`python scripts/bench/speedrun.py FOLDER OUT --seeds {len(measured['recipe'])}`. [LOG.md](LOG.md) tells how the recipe was found.",
        "",
        *speedrun.rows(measured),
    ]


# Stem of a results file -> title of its section, and the function that writes it.
SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "images": ("The same training, by fmeco and by its peers", peers),
    "parts": ("Part by part", pieces),
    "speedrun": ("A recipe for small images", recipe),
}


def version(packages: dict[str, str], name: str) -> str:
    """Look up a package's version, whatever the case and separators of its name."""
    return next(found_version for key, found_version in packages.items() if key.lower().replace("_", "-") == name)


def verdict(results: dict[str, Any], job: images.Job) -> list[str]:
    """Compare fmeco with each peer, round by round, and name the peers that are faster."""
    speeds: dict[str, dict[int, float]] = {}
    for record in results["runs"]:
        if "error" not in record:
            for label, measured in images.measured(record, job).items():
                speeds.setdefault(label, {})[record["round"]] = measured.speed
    fmeco_speeds = speeds["fmeco, epoch 2 on"]
    ratios_of_peers, faster = [], []
    for label, by_round in speeds.items():
        if label.startswith(("bare", "fmeco")):
            continue
        ratios = [fmeco_speeds[n] / speed for n, speed in by_round.items() if n in fmeco_speeds]
        middle = statistics.median(ratios)
        ratios_of_peers.append(f"{label} {middle:.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
        if middle < 1:
            faster.append(label)
    return [
        f"fmeco's speed from the second epoch on, divided by that of: {'; '.join(ratios_of_peers)}.",
        f"Faster than fmeco: {', '.join(faster)}." if faster else "By the median, no peer is faster than fmeco.",
    ]


if __name__ == "__main__":
    main()
