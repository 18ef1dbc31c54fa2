"""Write docs/performance.md from what the other scripts of this folder have measured.

python scripts/bench/report.py [WORK/images.json] [WORK/parts.json] [OUT/speedrun.json]

Each file writes its own section; sections without one stay as they are, as measurements of an hour each need not be repeated
for the sake of another.
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
    given = {Path(path).stem: json.loads(Path(path).read_text()) for path in sys.argv[1:]}
    if not given or not given.keys() <= SECTIONS.keys():
        sys.exit(__doc__)
    begin, *rest = re.split("^## ", DOC.read_text(), flags=re.MULTILINE)
    kept = {text.splitlines()[0]: f"## {text}".rstrip().splitlines() for text in rest}
    written = [begin.rstrip()]
    for name, (title, section) in SECTIONS.items():
        written += ["", *([f"## {title}", "", *section(given[name])] if name in given else kept[title])]
    DOC.write_text("\n".join([*written, ""]))


def peers(trained: dict[str, Any]) -> list[str]:
    machine = trained["sessions"][-1]["machine"]
    versions = {name: found for session in trained["sessions"] for name, found in session["versions"].items()}
    job = images.Job(**trained["job"])
    return [
        f"resnet18 at {job.size} pixels, batches of {job.batch}, {job.images:,} generated photographs of 400x533 pixels, on",
        f"{machine['cores']} cores of an {machine['cpu']}, torch {versions['fmeco']['torch']}.",
        "",
        "- `bare`: a bfloat16 channels_last loop over one batch in memory. It reads no data, so it is the upper limit.",
        "- fmeco: no flags.",
        "- A peer's name alone: its defaults. `best`: the fastest CPU settings that we know for it; the script lists them.",
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


def pieces(found: dict[str, Any]) -> list[str]:
    return [
        "`python scripts/bench/parts.py run --work W`",
        "",
        "- Loop: an MLP on 8x8 digits, batches of 32, one thread, with metrics.jsonl and TensorBoard on. `bare` is the same model on tensors",
        "  in memory. Both take turns of 100 steps in one process.",
        "- Checkpoint pause: how long training stops. A thread writes the rest during training.",
        "- Memory: the whole process tree.",
        "",
        *parts.rows(found),
    ]


def recipe(found: dict[str, Any]) -> list[str]:
    return [
        "[configs/speedrun/cifar10.yaml](../configs/speedrun/cifar10.yaml) against plain SGD (Nesterov, cosine, the same network). Both train",
        "for the same time on CIFAR-10's 50,000 training images, read as files. Accuracy is on the 10,000 test images.",
        f"`python scripts/bench/speedrun.py FOLDER OUT --seeds {len(found['recipe'])}`. [LOG.md](LOG.md) tells how the recipe was found.",
        "",
        *speedrun.rows(found),
    ]


# A file's stem -> the title of its section, and what writes it.
SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "images": ("The same training, by fmeco and by its peers", peers),
    "parts": ("Part by part", pieces),
    "speedrun": ("A recipe for small images", recipe),
}


def version(packages: dict[str, str], name: str) -> str:
    return next(one for key, one in packages.items() if key.lower().replace("_", "-") == name)


def verdict(results: dict[str, Any], job: images.Job) -> list[str]:
    """How fmeco stands to each peer, round by round, in a sentence each; who is faster is named."""
    speeds: dict[str, dict[int, float]] = {}
    for record in results["runs"]:
        if "error" not in record:
            for label, one in images.measured(record, job).items():
                speeds.setdefault(label, {})[record["round"]] = one.speed
    ours = speeds["fmeco, epoch 2 on"]
    told, faster = [], []
    for label, by_round in speeds.items():
        if label.startswith(("bare", "fmeco")):
            continue
        ratios = [ours[n] / speed for n, speed in by_round.items() if n in ours]
        middle = statistics.median(ratios)
        told.append(f"{label} {middle:.2f} ({min(ratios):.2f}..{max(ratios):.2f})")
        if middle < 1:
            faster.append(label)
    return [
        f"fmeco's speed from the second epoch on, divided by that of: {'; '.join(told)}.",
        f"Faster than fmeco: {', '.join(faster)}." if faster else "By the median, no peer is faster than fmeco.",
    ]


if __name__ == "__main__":
    main()
