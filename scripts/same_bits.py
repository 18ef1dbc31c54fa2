"""Compare two revisions bit for bit: trained weights, predictions, and the answers of commands.

    python scripts/same_bits.py REV [REV2]      REV2: default the working tree

Each revision trains the same short, seeded runs on generated data of each modality, and runs the same commands, valid
and invalid, in one thread. A table lists each case as same or different. The exit code is 1 if any differs. Of messages,
only the keys and the error code are compared, not the words. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import golden
import yaml

ROOT = Path(__file__).resolve().parent.parent
Seen = dict[str, dict[str, Any]]  # case -> aspect -> value
SETS = "--set train.steps=12 --set train.tensorboard=false"
CONFIGS = yaml.safe_load("""
image-pretrain: {dataset: {name: image_folder, path: data/photos, image_size: 32}, backbone: shufflenet_v2_x0_5,
  augment: standard, train: {batch_size: 12, ema: 0.9}}
image-finetune: {dataset: {name: image_folder, path: data/others}, transfer: lp_ft, train: {batch_size: 8}}
table-pretrain: {dataset: {name: csv_table, path: data/several.csv, target: [ripe, weight], drop: [part]},
  backbone: {name: mlp, hidden: [32, 32], dropout: 0.1}, train: {batch_size: 16, micro_batch: 6, clip_norm: 1}}
table-finetune: {dataset: {name: csv_table, path: data/one.csv, target: ripe, split_column: part}, transfer: l2sp}
text-pretrain: {dataset: {name: text, path: data/texts.jsonl, label: null, vocabulary: 300, length: 12},
  backbone: {name: transformer, width: 16, depth: 2, heads: 2}, objective: mask}
text-finetune: {dataset: {name: text, path: data/texts.jsonl}, transfer: {strategy: lora, rank: 2}}
audio-pretrain: {dataset: {name: audio, path: data/tones, sample_rate: 8000, seconds: 0.3, mels: 16},
  backbone: {name: cnn, widths: [8, 16]}, augment: specaugment, optimizer: {name: muon, lr: 0.002}}
audio-finetune: {dataset: {name: audio, path: data/tones}, transfer: {strategy: gradual, blocks: 2}}
events-pretrain: {dataset: {name: events, path: data/events.csv, length: 5},
  backbone: {name: transformer, width: 16, depth: 2, heads: 2, causal: true}, objective: next}
events-finetune: {dataset: {name: events, path: data/more.csv}}
series-pretrain: {dataset: {name: series, path: data/hours.csv, context: 48, horizon: 0},
  backbone: {name: transformer, width: 16, depth: 2, heads: 2, patch: 12}, objective: mask}
series-finetune: {dataset: {name: series, path: data/hours.csv, horizon: 12, season: 24}, objective: forecast}
""")
INPUTS = {  # arguments of `predict`
    "image": ["data/new/odd.png", "data/new/alpha.png", "data/new/large.jpg"],
    "table": ["data/one.csv"],
    "text": ["a cat and a dog", "data/texts.jsonl"],
    "audio": ["data/tones/low"],
    "events": ["data/more.csv", "i3,i8,i1"],
    "series": ["data/hours.csv"],
}
TASK = f"finetune table-finetune.yaml --from table/source {SETS}"
COMMANDS = {
    "resume": "resume table/tuned",
    "finetune --control": f"{TASK} --out controlled --control scratch",
    "finetune --label-fractions": f"{TASK} --out fewer --label-fractions 0.5,1",
    "evaluate": "evaluate image/tuned",
    "evaluate --by --baseline": "evaluate table/tuned --split val --by shape --baseline gbdt",
    "embed": "embed image/source --dataset data/others --output features.npz",
    "probe": "probe image/source --dataset data/others",
    "rank": "rank image/source image/tuned --dataset data/others",
    "compare": "compare table/tuned controlled",
    "check": "check image-finetune.yaml --from image/source",
    "info": "info text/tuned",
    "list objectives": "list objectives",
    "list backbones resnet": "list backbones resnet",
    "describe optimizer": "describe optimizer muon",
    "describe section": "describe section train",
    "init": "init fresh --dataset data/photos",
    "schema": "schema",
    "cache": "cache",
    "wrong: no such option": "pretrain image-pretrain.yaml --nope",
    "wrong: key of a config": "pretrain image-pretrain.yaml --set train.step=3",
    "wrong: plug-in": "pretrain image-pretrain.yaml --set backbone=resnet19",
    "wrong: config file": "pretrain nowhere.yaml",
    "wrong: REF": "evaluate nowhere",
    "wrong: folder not empty": f"pretrain table-pretrain.yaml --out table/source {SETS}",
    "wrong: dataset": "finetune --from image/source --dataset nowhere --out never",
    "wrong: modality": "finetune audio-finetune.yaml --from image/source --out never",
    "wrong: classes": "evaluate image/tuned --dataset data/photos",
    "wrong: image": "predict image/tuned data/new/broken.png",
    "wrong: no target in a row": "finetune table-finetune.yaml --from table/source --set dataset.path=data/several.csv --out never",
    "wrong: split": "evaluate image/tuned --split dev",
    "wrong: damaged checkpoint": "info damaged",
    "wrong: resume of another run": "resume table/tuned --set optimizer.lr=1",
    "wrong: rate": f"pretrain table-pretrain.yaml --out far --set optimizer=sgd --set optimizer.lr=1e30 {SETS}",
}


def make_data() -> None:
    """Write data/ and the configs into the current folder."""
    golden.photos("data/photos", "blue", "green", "red")
    golden.photos("data/others", "green", "red", "white")
    golden.picture("data/new/odd.png", "red", 2, (37, 23))
    golden.picture("data/new/alpha.png", "white", 3, mode="RGBA")
    golden.picture("data/new/large.jpg", "green", 6, (201, 150))
    Path("data/new/broken.png").write_bytes(Path("data/new/odd.png").read_bytes()[:60])
    golden.table("data/several.csv", 120, 0)
    golden.table("data/one.csv", 120, 1)
    rows = [row.split(",") for row in Path("data/one.csv").read_text("utf-8").splitlines()]
    Path("data/one.csv").write_text("".join(",".join(row[:4] + row[5:]) + "\n" for row in rows if row[3]), "utf-8")
    golden.texts("data/texts.jsonl", 30)
    for i in range(12):
        golden.tone(f"data/tones/high/{i:02}.wav", 1800, i)
        golden.tone(f"data/tones/low/{i:02}.wav", 300, 100 + i)
    golden.events("data/events.csv", 20, 9)
    golden.events("data/more.csv", 12, 12)
    golden.hours("data/hours.csv", 400)
    for name, config in CONFIGS.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(config), "utf-8")


# ---------------------------------------------------------------- one revision


def call(tree: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package of `tree`, in `folder`, which also serves as its home."""
    env = {"PYTHONPATH": str(tree), "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | env, capture_output=True, text=True)


def ask(tree: Path, folder: Path, arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a command with --json. Returns the aspects to compare, and the JSON object that it printed."""
    process = call(tree, folder, "-m", "fmeco", *arguments, "--json")
    try:
        answer = dict(json.loads(process.stdout))
    except (ValueError, TypeError):
        answer = {"error": {"code": "not one JSON object"}}
    aspects = {
        "exit code": process.returncode,
        "keys": nested(answer),
        "error": answer.get("error", {}).get("code", ""),
    }
    return aspects | {"traceback": "Traceback" in process.stderr}, answer


def nested(answer: Any, above: str = "") -> list[str]:
    """List the keys of an object and of nested objects, but not of objects in lists."""
    if not isinstance(answer, dict):
        return []
    return sorted(name for key in answer for name in (above + key, *nested(answer[key], f"{above}{key}.")))


def trained(run: Path) -> dict[str, Any]:
    """Return hashes of a run's best weights, and its log."""
    aspects: dict[str, Any] = {}
    for name in ("backbone.safetensors", "objective.safetensors"):
        path = run / "checkpoints" / "best" / name
        aspects[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
    return aspects | {"metrics.jsonl": golden.logged(run) if (run / "metrics.jsonl").exists() else None}


def work(tree: Path, folder: Path) -> Seen:
    """Train, predict and run all commands with the code of `tree`."""
    package = call(tree, folder, "-c", "import fmeco; print(fmeco.__file__)").stdout.strip()
    if not package.startswith(f"{tree}{os.sep}"):
        raise SystemExit(f"{tree}: another fmeco would run, {package}")
    seen: Seen = {}
    for name, inputs in INPUTS.items():
        for stage, out, source in (("pretrain", "source", []), ("finetune", "tuned", ["--from", f"{name}/source"])):
            arguments = [stage, f"{name}-{stage}.yaml", *source, "--out", f"{name}/{out}", *shlex.split(SETS)]
            aspects, _ = ask(tree, folder, arguments)
            seen[f"{name}: {stage}"] = aspects | trained(folder / name / out)
        aspects, output = ask(tree, folder, ["predict", f"{name}/tuned", *inputs])
        seen[f"{name}: predict"] = aspects | {"predictions": output.get("predictions")}
    with contextlib.suppress(FileNotFoundError):  # nothing was trained: the case above reports it
        shutil.copytree(folder / "table/tuned/checkpoints/best", folder / "damaged")
        with open(folder / "damaged/backbone.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
    for name, arguments in COMMANDS.items():
        seen[name], _ = ask(tree, folder, shlex.split(arguments))
    return seen


# ---------------------------------------------------------------- two revisions


@contextlib.contextmanager
def tree_of(revision: str | None, place: Path) -> Iterator[Path]:
    """Check out a revision into `place` within the context; None is the working tree."""
    if revision is None:
        yield ROOT
        return
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    if (created := git(["git", "worktree", "add", "--detach", place, revision])).returncode:
        raise SystemExit(created.stderr)
    try:
        yield place
    finally:
        git(["git", "worktree", "remove", "--force", place])


def difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Describe how the aspects of a case differ between two revisions; "" if they are the same."""
    differences = []
    for aspect in first:
        before, after = first[aspect], second[aspect]
        if before == after:
            continue
        if aspect == "keys":
            differences.append(
                " ".join(
                    [f"-{key}" for key in before if key not in after]
                    + [f"+{key}" for key in after if key not in before]
                )
            )
        else:
            differences.append(
                f"{aspect} {before} -> {after}" if isinstance(before, int | bool) or aspect == "error" else aspect
            )
    return ", ".join(differences)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="+", metavar="REV")
    revisions = parser.parse_args().revisions
    if len(revisions) > 2:
        parser.error("two revisions at most")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        room = Path(temporary).resolve()
        trees = [
            stack.enter_context(tree_of(revision, room / f"tree{i}"))
            for i, revision in enumerate((revisions[0], revisions[1] if len(revisions) > 1 else None))
        ]
        (room / "work0").mkdir()
        with contextlib.chdir(room / "work0"):
            make_data()
        shutil.copytree(room / "work0", room / "work1")
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(work, trees, [room / "work0", room / "work1"])
    differences = {case: difference(first[case], second[case]) for case in first}
    for case, text in differences.items():
        print(f"{case:30} | {'DIFFERENT: ' + text if text else 'same'}")
    failed = [
        f"{case} ({seen['exit code']})" for case, seen in first.items() if seen["exit code"] and "wrong" not in case
    ]
    if failed:  # if both fail alike, nothing was compared
        print(f"failed in the first revision: {', '.join(failed)}")
    return 1 if failed or any(differences.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
