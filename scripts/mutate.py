"""Whether the tests see mistakes: change one line of the core at a time, in a copy, and run the tests that should notice.

    python scripts/mutate.py [PART OF A FILE'S NAME OR OF A LINE]     some minutes; exit code 1 where more than a tenth go unseen

Each mistake is a file, a text that it has once, and what stands there instead; and the tests that are run for it: files, or
file and -k, as pytest takes them. A line that was rewritten is an error here: write the mistake anew.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("fmeco", "tests", "scripts", "configs", "docs", "pyproject.toml")
SECONDS = 240  # for the tests of one mistake; one that hangs is seen
SEEN = 0.9  # share of the mistakes below which this fails


class Mistake(NamedTuple):
    file: str  # below fmeco/
    old: str
    new: str
    tests: str  # words of pytest's command line; files anywhere below tests/


MISTAKES = [
    Mistake("core/target.py", "missing=len(values) - int(present.sum())", "missing=int(present.sum())", "test_losses.py test_targets.py"),
    Mistake("core/target.py", "std(correction=0)", "std(correction=1)", "test_losses.py test_targets.py"),
    Mistake("core/random.py", "(mix(keys, stream) >> 40)", "(mix(keys, stream) >> 41)", "test_data.py -k order"),
    Mistake("core/random.py", "h = ((h ^ (h >> 27))", "h = ((h ^ (h >> 26))", "test_speed.py -k keys"),
    Mistake("core/data.py", "mul_(factor).sub_(offset)", "mul_(factor).add_(offset)", "test_speed.py -k standardized"),
    Mistake("core/data.py", '0 if wanted.dtype == "int64" else', '0 if wanted.dtype != "int64" else', "test_text.py -k fit"),
    Mistake("core/data.py", "values[end - n : end]", "values[end - n : end - 1]", "test_ctc.py test_targets.py"),
    Mistake("core/training.py", "parameter.ndim > 1 and", "parameter.ndim > 0 and", "test_contract.py -k optimizer"),
    Mistake("core/training.py", "requires_grad_(scale > 0)", "requires_grad_(scale >= 0)", "test_transfer.py -k freezing_or_strategy"),
    Mistake("data/order.py", "parts = -(-n // size)", "parts = max(1, n // size)", "test_data.py -k order"),
    Mistake("data/order.py", "rounds = place // len(members)", "rounds = place // (len(members) + 1)", "test_data.py -k balanced"),
    Mistake("data/order.py", "min(WINDOW, len(steps) // 4)", "min(WINDOW, len(steps) // 2)", "test_properties.py -k length"),
    Mistake("data/order.py", "return n * rank // world, n * (rank + 1) // world", "return n // world * rank, n // world * (rank + 1)", "test_text.py -k shared"),
    Mistake("data/loader.py", "((coins[:, orders].transpose(0, 1) + numbers) & 1)", "(coins[:, orders].transpose(0, 1) & 1)", "test_speed.py -k keys"),
    Mistake("data/loader.py", "mix(loader.seed, numbers, orders[:, None], places, views)", "mix(loader.seed, numbers, orders[:, None], views)", "test_speed.py test_targets.py -k keys"),
    Mistake("data/loader.py", 'batch.skipped and self.on_bad_sample == "error"', 'batch.skipped and self.on_bad_sample == "skip"', "test_errors.py test_run.py -k bad_or_unreadable_or_skip"),
    Mistake("data/loader.py", "mix(_VIEW, number, places)", "mix(_VIEW, places)", "test_transfer.py -k views"),
    Mistake("training/step.py", "_constant(s.ranks.world / expected, scaled", "_constant(1.0 / expected, scaled", "test_ranks.py -k two"),
    Mistake("training/step.py", "rescale = expected / count", "rescale = count / expected", "test_steps.py"),
    Mistake("training/step.py", "clip_norm / max(norm, s.train.clip_norm)", "clip_norm / norm", "test_steps.py"),
    Mistake("training/step.py", "seed_torch(s.own_seed, s.state.step)", "seed_torch(s.own_seed)", "test_steps.py"),
    Mistake("training/step.py", "if math.isfinite(loss) and math.isfinite(norm):", "if True:", "test_resume.py -k skipped"),
    Mistake("training/step.py", "elif math.isfinite(size):", "else:", "test_resume.py -k finite"),
    Mistake("training/step.py", "            module.eval()", "            module.train()", "test_transfer.py -k strategy"),
    Mistake("training/loop.py", "if score < s.state.best - s.error:", "if score < s.state.best:", "test_steps.py"),
    Mistake("training/loop.py", "s.state.waited += 1", "s.state.waited += 0", "test_steps.py"),
    Mistake("training/loop.py", 'group["base_lr"] * float(factor)', 'group["base_lr"]', "test_transfer.py test_golden.py -k rates_or_stopped"),
    Mistake("training/session.py", "min(decay, (1 + step) / (10 + step))", "max(decay, (1 + step) / (10 + step))", "test_golden.py -k ema"),
    Mistake("assembly/optimizer.py", 'decay if g["decay"] else 0.0', "decay", "test_contract.py -k optimizer"),
    Mistake("assembly/optimizer.py", "base * scale for scale", "base for scale", "test_contract.py -k moments"),
    Mistake("assembly/data.py", "sorted(validated - trained)", "sorted(trained - validated)", "test_errors.py test_targets.py -k never_or_class"),
    Mistake("assembly/measures.py", '1 if directions[best] == "max" else -1', "1", "test_steps.py"),
    Mistake("checkpoints/transplant.py", "MINIMUM = 0.95", "MINIMUM = 0.5", "test_checkpoint.py -k refused"),
    Mistake("checkpoints/transplant.py", "before[sources]", "before[rows]", "test_checkpoint.py -k names"),
    Mistake("checkpoints/format.py", '!= entry["size"] or hashlib.sha256(body).hexdigest() != entry["sha256"]', '!= entry["size"]', "test_checkpoint.py -k byte"),
    Mistake("checkpoints/format.py", "in reversed(steps(folder))", "in steps(folder)", "test_resume.py -k damaged"),
    Mistake("checkpoints/writer.py", 'tensor.to("cpu", copy=True)', 'tensor.to("cpu")', "test_checkpoint.py -k snapshot"),
    Mistake("datasets/_splits.py", "min(max(round(len(members) * val), 1)", "min(max(int(len(members) * val), 1)", "test_properties.py -k shares"),
    Mistake("nn/metrics.py", "last - (counts.double() - 1) / 2", "last - counts.double() / 2", "test_losses.py -k scikit"),
    Mistake("nn/intervals.py", "[0.025, 0.975]", "[0.05, 0.95]", "test_transfer.py test_targets.py -k interval"),
    Mistake("config/parser.py", "if key in out:", "if key in ():", "test_config.py"),
    Mistake("datasets/_columns.py", "list(map(str.strip, values))", "list(values)", "test_properties.py -k cells"),
    Mistake("datasets/_numbers.py", "map(str.lower, map(str.strip, column))", "map(str.strip, column)", "test_properties.py -k numbers"),
    Mistake("datasets/_splits.py", "np.isin(codes, at)", "np.isin(codes, at[1:])", "test_properties.py -k group"),
    Mistake("datasets/_splits.py", 'np.argsort(ranks(names, "split"), kind="stable")', "np.arange(len(names))", "test_properties.py -k names"),
    Mistake("config/parser.py", "except yaml.YAMLError as error:", "except yaml.MarkedYAMLError as error:", "test_properties.py -k tree"),
    Mistake("config/parser.py", "return float(text)", "return text", "test_properties.py -k plain"),
]  # fmt: skip


class Failures:
    """What a run of pytest found, as a plug-in of it."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed and not self.failed:
            self.failed = report.nodeid.rpartition("/")[2]


def words(copy: Path, tests: str) -> list[str]:
    """`a.py b.py -k one_or_two` as words for pytest; `_or_` is its `or`."""
    files, _, chosen = tests.partition(" -k ")
    found = [str(path.relative_to(copy)) for name in files.split() for path in (copy / "tests").rglob(name)]
    return [*found, *(("-k", chosen.replace("_or_", " or ")) if chosen else ())]


def run_tests(copy: Path, tests: str) -> str:
    """Run tests on the copy in a forked process, which imports it anew, with all libraries there. Returns what failed
    first; nothing where all passed."""
    answer = copy / "answer.txt"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        found = Failures()
        with open(copy / "output.txt", "w") as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            os.chdir(copy)
            sys.path.insert(0, str(copy))
            code = pytest.main(["-x", "-p", "no:cacheprovider", "-p", "no:xdist", *words(copy, tests)], plugins=[found])
            if code in (0, 1):
                answer.write_text(found.failed if code == 1 else "" if found.passed else "no test was run", "utf-8")
            sys.stdout.flush()
        os._exit(0)
    end = time.monotonic() + SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.1)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"more than {SECONDS} s"
    if not answer.exists():
        tail = (copy / "output.txt").read_text("utf-8", "replace")[-300:]
        return f"pytest ended early: {' '.join(tail.split())}"
    return answer.read_text("utf-8")


def main() -> int:
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [one for one in MISTAKES if asked in f"{one.file} {one.old}"]
    sys.dont_write_bytecode = True  # a file that changes back within a second must not be run as it was
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    import scipy.optimize  # noqa: F401  # what takes long to import is imported once
    import sklearn.datasets  # noqa: F401
    import torchvision  # noqa: F401

    unseen = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source, ignore = ROOT / name, shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy)
        os.environ["PYTHONPATH"] = folder
        print("mistake | seen by\n--- | ---", flush=True)
        for one in chosen:
            path = copy / "fmeco" / one.file
            text = path.read_text("utf-8")
            if text.count(one.old) != 1:
                raise SystemExit(f"fmeco/{one.file} has {text.count(one.old)} times, not once: {one.old}")
            path.write_text(text.replace(one.old, one.new), "utf-8")
            began = time.monotonic()
            seen = run_tests(copy, one.tests)
            path.write_text(text, "utf-8")
            unseen += not seen or seen == "no test was run"
            told = f"`{one.old.strip()}` -> `{one.new.strip()}`"
            print(f"{one.file} {told} | {seen or '**nothing**'} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"\n{len(chosen) - unseen} of {len(chosen)} mistakes are seen")
    return 1 if len(chosen) - unseen < SEEN * len(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
