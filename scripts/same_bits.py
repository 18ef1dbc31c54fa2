"""Compare two revisions: the bits that they train, what they predict, and how their commands answer.

    python scripts/same_bits.py REV [REV2]      REV2: the working tree unless given

Each runs the same short, seeded runs on generated data, one of each modality, and the same commands, good and wrong ones,
in one thread. A table says what is the same, and the exit code is 1 where anything differs. Takes about three minutes. Of
messages only the keys and the code of an error are compared, not the words.
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
Seen = dict[str, dict[str, Any]]  # case -> what was looked at -> what was found
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
INPUTS = {  # of `predict`
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


def call(tree: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package of `tree`, in the folder `place`, which is also its home."""
    env = {"PYTHONPATH": str(tree), "HOME": str(place), "XDG_CACHE_HOME": str(place / "cache")}
    env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=place, env=os.environ | env, capture_output=True, text=True)


def ask(tree: Path, place: Path, words: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a command with --json. Returns what is compared of any answer, and the object that it printed."""
    done = call(tree, place, "-m", "fmeco", *words, "--json")
    try:
        answer = dict(json.loads(done.stdout))
    except (ValueError, TypeError):
        answer = {"error": {"code": "not one JSON object"}}
    seen = {"exit code": done.returncode, "keys": nested(answer), "error": answer.get("error", {}).get("code", "")}
    return seen | {"traceback": "Traceback" in done.stderr}, answer


def nested(answer: Any, above: str = "") -> list[str]:
    """List the keys of an object and of the objects in it, but not those of lists."""
    if not isinstance(answer, dict):
        return []
    return sorted(name for key in answer for name in (above + key, *nested(answer[key], f"{above}{key}.")))


def trained(run: Path) -> dict[str, Any]:
    """Look at what a run left: hashes of its best weights, and its log."""
    found: dict[str, Any] = {}
    for name in ("backbone.safetensors", "objective.safetensors"):
        path = run / "checkpoints" / "best" / name
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
    return found | {"metrics.jsonl": golden.logged(run) if (run / "metrics.jsonl").exists() else None}


def work(tree: Path, place: Path) -> Seen:
    """Train, predict and ask everything with the code of `tree`."""
    home = call(tree, place, "-c", "import fmeco; print(fmeco.__file__)").stdout.strip()
    if not home.startswith(f"{tree}{os.sep}"):
        raise SystemExit(f"{tree}: another fmeco would run, {home}")
    seen: Seen = {}
    for name, inputs in INPUTS.items():
        for stage, out, source in (("pretrain", "source", []), ("finetune", "tuned", ["--from", f"{name}/source"])):
            words = [stage, f"{name}-{stage}.yaml", *source, "--out", f"{name}/{out}", *shlex.split(SETS)]
            answer, _ = ask(tree, place, words)
            seen[f"{name}: {stage}"] = answer | trained(place / name / out)
        answer, told = ask(tree, place, ["predict", f"{name}/tuned", *inputs])
        seen[f"{name}: predict"] = answer | {"predictions": told.get("predictions")}
    with contextlib.suppress(FileNotFoundError):  # where nothing was trained, which is told already
        shutil.copytree(place / "table/tuned/checkpoints/best", place / "damaged")
        with open(place / "damaged/backbone.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
    for name, words in COMMANDS.items():
        seen[name], _ = ask(tree, place, shlex.split(words))
    return seen


# ---------------------------------------------------------------- two revisions


@contextlib.contextmanager
def tree_of(revision: str | None, place: Path) -> Iterator[Path]:
    """Check a revision out into `place` for a while; None is the working tree."""
    if revision is None:
        yield ROOT
        return
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    if (made := git(["git", "worktree", "add", "--detach", place, revision])).returncode:
        raise SystemExit(made.stderr)
    try:
        yield place
    finally:
        git(["git", "worktree", "remove", "--force", place])


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Say what differs between what two revisions made of a case; "" for nothing."""
    told = []
    for aspect in one:
        a, b = one[aspect], other[aspect]
        if a == b:
            continue
        if aspect == "keys":
            told.append(" ".join([f"-{key}" for key in a if key not in b] + [f"+{key}" for key in b if key not in a]))
        else:
            told.append(f"{aspect} {a} -> {b}" if isinstance(a, int | bool) or aspect == "error" else aspect)
    return ", ".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="+", metavar="REV")
    given = parser.parse_args().revisions
    if len(given) > 2:
        parser.error("two revisions at most")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        room = Path(temporary).resolve()
        trees = [
            stack.enter_context(tree_of(revision, room / f"tree{i}"))
            for i, revision in enumerate((given[0], given[1] if len(given) > 1 else None))
        ]
        (room / "work0").mkdir()
        with contextlib.chdir(room / "work0"):
            make_data()
        shutil.copytree(room / "work0", room / "work1")
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(work, trees, [room / "work0", room / "work1"])
    told = {case: difference(one[case], other[case]) for case in one}
    for case, what in told.items():
        print(f"{case:30} | {'DIFFERENT: ' + what if what else 'same'}")
    failed = [
        f"{case} ({seen['exit code']})" for case, seen in one.items() if seen["exit code"] and "wrong" not in case
    ]
    if failed:  # the same failure twice compares nothing
        print(f"failed in the first revision: {', '.join(failed)}")
    return 1 if failed or any(told.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
