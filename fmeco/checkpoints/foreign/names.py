"""Find out which tensor of a source belongs to which of a backbone: by a prefix, by rules of renaming, or by order."""

from __future__ import annotations

import collections
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from fmeco.core.model import Backbone
from fmeco.errors import CheckpointError, ConfigError, clean, listing

# Names of the network to load if a file holds several and no `prefix` is set, as in the papers: DINO's teacher, MoCo's
# query encoder, BYOL's online network.
HANDED_ON = ("teacher", "encoder_q", "online", "online_network", "online_encoder")
COUNTER = "num_batches_tracked"  # of a batch norm; it does not change outputs, and old files lack it
PATIENCE = 20.0  # seconds for all rules of transfer.rename
HEADS = ("in the source, without a place", "wanted, not in the source")
SHOWN = 12  # rows of names that an error shows side by side

# A process of its own applies the rules: a regular expression may backtrack for ever, and within a process nothing can
# stop it. Each rule is announced on stderr before it is applied.
_SUBSTITUTE = """
import json, re, sys
rules, names = json.load(sys.stdin)
counts = []
for pattern, replacement in rules:
    print(len(counts), file=sys.stderr, flush=True)
    results = [re.subn(pattern, replacement, name) for name in names]
    counts.append(sum(times > 0 for _, times in results))
    names = [name for name, _ in results]
json.dump([counts, names], sys.stdout)
"""


def rename(names: Sequence[str], rules: Mapping[str, str], source: str) -> tuple[dict[str, str], dict[str, int]]:
    """Change names by regular expressions, one rule after the other. Each rule replaces all its matches in all names.

    rules: regular expression -> replacement, which may contain groups such as \\1.
    source: REF of the weights, for messages.

    Returns (old name -> new name, rule -> number of names that it fitted). Raises ConfigError for a rule that fits no name
    or never ends, and if two names become one.
    """
    if not rules:
        return {name: name for name in names}, {}
    listed = list(rules.items())
    try:
        ran = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _SUBSTITUTE],
            input=json.dumps([listed, list(names)]),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        at = _last_rule(error.stderr)
        raise ConfigError(
            f"transfer.rename: '{clean(listed[at][0], 120)}' has not finished after {PATIENCE:.0f} seconds",
            "a repetition inside a repetition, such as (a+)+, may never end on some names: write it without one",
        ) from None
    except subprocess.CalledProcessError as error:
        at, last = _last_rule(error.stderr), (error.stderr or "").strip().rpartition("\n")[2]
        raise ConfigError(f"transfer.rename: '{clean(listed[at][0], 120)}' failed: {clean(last, 200)}") from None
    counts, changed = json.loads(ran.stdout)
    for (pattern, _), count in zip(listed, counts, strict=True):
        if not count:
            raise ConfigError(
                f"transfer.rename: '{clean(pattern, 120)}' fits no name of {clean(source)}, which has {listing(names, 4)}",
                "rules are applied in order, each to the names that the rule before it made; "
                f"`fmeco info {clean(source)} --all` lists the names of a file",
            )
    first: dict[str, str] = {}
    for old, new in zip(names, changed, strict=True):
        if new in first:
            raise ConfigError(
                f"transfer.rename: {clean(first[new], 120)} and {clean(old, 120)} of {clean(source)} both become "
                f"'{clean(new, 120)}'",
                "make a rule fit only one of them, with ^ for the start and $ for the end of a name",
            )
        first[new] = old
    fitted = {f"'{rule}' -> '{new}'": int(count) for (rule, new), count in zip(listed, counts, strict=True)}
    return dict(zip(names, changed, strict=True)), fitted


def _last_rule(announced: str | bytes | None) -> int:
    """Return the position of the rule that was applied last."""
    text = announced.decode("utf-8", "replace") if isinstance(announced, bytes) else announced or ""
    return max((int(line) for line in text.split("\n") if line.isdigit()), default=0)


def best_prefix(names: Sequence[str], expected: Mapping[str, Tensor], source: str) -> str:
    """Find the prefix to remove so that most names fit the backbone. Raises CheckpointError if several fit equally well."""
    fitting: collections.Counter[str] = collections.Counter()
    for name in names:
        starts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
        fitting.update(name[:start] for start in starts if name[start:] in expected)
    most = max(fitting.values(), default=0)
    best = sorted((prefix for prefix, count in fitting.items() if count == most), key=len)
    if len(best) < 2 or best[0] == "":
        return best[0] if best else ""
    for word in HANDED_ON:
        if named := [prefix for prefix in best if word in prefix.split(".")]:
            return named[0]
    raise CheckpointError(
        f"{source} holds several networks that fit this backbone: {listing(best)}",
        f"choose one, such as: --set transfer.prefix={best[0]}",
    )


class Ordered(NamedTuple):
    """Hold tensors of a source that were paired with those of a backbone by order.

    pairs: source's name -> backbone's name.
    problem: why they do not fit; "" if all shapes agree.
    at: number of the first pair that does not agree; None if the problem is another.
    """

    pairs: dict[str, str]
    problem: str = ""
    at: int | None = None


def in_order(state: Mapping[str, Tensor], backbone: Backbone) -> Ordered:
    """Pair the tensors of a source with those of a backbone in the order in which each lists them.

    The counters of batch norms may be missing in the source, and a class layer may follow at its end.
    """
    expected = backbone.library.state_dict()
    counted = any(name.endswith(COUNTER) for name in state)
    wanted = [name for name in expected if counted or not name.endswith(COUNTER)]
    names = list(state)
    both = min(len(names), len(wanted))
    pairs = dict(zip(names[:both], wanted[:both], strict=True))
    extra = [state[name] for name in names[len(wanted) :]]
    if len(names) < len(wanted):
        return Ordered(pairs, f"the source has {len(names)} tensors, the backbone {len(wanted)}")
    if any(not tensor.ndim for tensor in extra) or len({tensor.shape[0] for tensor in extra}) > 1:
        return Ordered(
            pairs, f"the source has {len(names)} tensors, the backbone {len(wanted)}, and the others are no class layer"
        )
    plain = [name for name in names if not name.endswith(COUNTER)]
    if len(plain) > 1 and plain == sorted(plain):
        return Ordered(
            pairs, "the source lists its tensors by the alphabet, as safetensors does, and not as the network was built"
        )
    fitted, _ = backbone.adapt({mine: state[theirs] for theirs, mine in pairs.items()})
    ends = {_end(name) for name in wanted}
    for at, (theirs, mine) in enumerate(pairs.items()):
        same = fitted[mine].shape == expected[mine].shape
        if not same or (_end(theirs) in ends and _end(theirs) != _end(mine)):
            problem = f"{described(theirs, state[theirs])} is beside {described(mine, expected[mine])}"
            return Ordered(pairs, problem, at)
    return Ordered(pairs)


def _end(name: str) -> str:
    """Return the last word of a tensor's name, such as weight."""
    return name.rpartition(".")[2]


def described(name: str, tensor: Tensor) -> str:
    """Describe a tensor by its name and shape."""
    return f"{clean(name, 120)} {tuple(tensor.shape)}"


def side_by_side(theirs: Sequence[str], wanted: Sequence[str], heads: tuple[str, str] = HEADS) -> list[str]:
    """Format names of a source and of a backbone as the lines of a table; counts those that it does not show.

    heads: of the two columns.
    """
    rows = list(itertools.zip_longest(theirs[:SHOWN], wanted[:SHOWN], fillvalue=""))
    more = [f"and {len(names) - SHOWN} more" if len(names) > SHOWN else "" for names in (theirs, wanted)]
    if any(more):
        rows.append((more[0], more[1]))
    rows.insert(0, heads)
    width = max(len(left) for left, _ in rows)
    return [f"{left:<{width}}  {right}".rstrip() for left, right in rows]
