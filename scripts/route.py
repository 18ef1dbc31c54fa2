"""Count the modules that a config passes on its way from `pretrain` (or `finetune`) to the training loop.

    python scripts/route.py [--list]        PYTHONPATH=TREE counts the code of another tree

A config passes a module whenever a function of the module receives it, or resumes with it after a call into another
module. It counts as the raw mapping, as a RunConfig or a section of one, and inside a dataclass. A return is a passage of
a module that the config had left before.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

TASK = """
dataset: {name: digits, classes: [0, 1, 2], image_size: 8}
train: {steps: 2, tensorboard: false}
"""
BACKBONE = "backbone: {name: mlp, hidden: [8]}"
SECTIONS = ("RunConfig", "Choice", "Train", "Evaluate", "Carry")


def holds_config(value: Any, depth: int = 0) -> bool:
    """Whether a value is the config or a section of it, or a dataclass that holds one, at most six levels deep."""
    if type(value).__name__ in SECTIONS or (isinstance(value, dict) and {"dataset", "train"} <= value.keys()):
        return True
    nested = depth < 6 and dataclasses.is_dataclass(value) and type(value).__module__.startswith("fmeco")
    return nested and any(holds_config(getattr(value, f.name, None), depth + 1) for f in dataclasses.fields(value))


def passages(start: Any, *arguments: Any, **options: Any) -> list[str]:
    """Call `start`, which trains for two steps. Returns the modules that the config passes up to the loop, in order."""
    passed: list[str] = []
    holding: list[tuple[FrameType, str]] = []
    arrived = False

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal arrived
        module, code = frame.f_globals.get("__name__", ""), frame.f_code
        if arrived or not module.startswith("fmeco.") or code.co_name.startswith(("<", "__")):
            return
        if event == "call":
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if not any(holds_config(frame.f_locals.get(name)) for name in names):
                return
            holding.append((frame, module))
            arrived = code.co_name == "train" and module.endswith("loop")
        elif event == "return" and holding and holding[-1][0] is frame:
            holding.pop()
        if holding and passed[-1:] != [holding[-1][1]]:
            passed.append(holding[-1][1])

    sys.setprofile(watch)
    try:
        start(*arguments, **options)
    finally:
        sys.setprofile(None)
    return passed


if __name__ == "__main__":
    import fmeco

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pretrain.yaml").write_text(TASK + BACKBONE)
        Path(folder, "finetune.yaml").write_text(TASK)
        source = f"{folder}/source"
        routes = {
            "pretrain": passages(fmeco.pretrain, f"{folder}/pretrain.yaml", out=source),
            "finetune": passages(fmeco.finetune, f"{folder}/finetune.yaml", ref=source, out=f"{folder}/run"),
        }
    for name, passed in routes.items():
        if "--list" in sys.argv:
            print(*passed, sep="\n")
        print(f"{name}: {len(passed)} passages of {len(set(passed))} modules, {len(passed) - len(set(passed))} returns")
