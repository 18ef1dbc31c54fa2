"""The promises of an augmentation: a pure function of the sample and its key, which keeps shapes and types."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fmeco.config.check import choose
from fmeco.config.run_config import Choice
from fmeco.core.augment import Augment, check_riders
from fmeco.core.data import Data, DataSpec, Inputs
from fmeco.core.geometry import IGNORED, fit, pad
from fmeco.core.random import mix, seed_torch
from fmeco.errors import ConfigError, FmecoError, listing
from fmeco.testing.bench import Bench
from fmeco.testing.dataset import differs
from fmeco.testing.report import Broken, Checks

KEYS = 16  # random keys for each of a few samples
SAMPLES = 4
AGREEING = 0.98  # share of the pixels of masks; colours, which change too, blur the border


def checks(choice: Choice, bench: Bench) -> Checks:
    """Check an augmentation with all data that it is the default for, else with the first that it takes."""
    suits = getattr(choice.plugin.load(), "default", None)
    taken, refused = 0, dict[str, None]()
    for name, data in bench.trials():
        offered = {suits(data.spec, views) for views in (1, 2)} - {None} if suits is not None else set()
        if suits is not None and not offered:
            continue
        for one in offered:
            _check_name(choice, one)
        try:
            augment = _build(choice, data)
            check_riders(augment, data.spec, choice.spelled)
            _vary(augment, data, 0)
        except (FmecoError, KeyError, TypeError, AttributeError) as error:
            if offered:
                raise
            refused[error.message if isinstance(error, FmecoError) else f"{type(error).__name__}: {error}"] = None
            continue
        taken += 1
        if not (yield f"shapes and types of {name}", functools.partial(_shapes, augment, data)):
            continue
        yield f"sample(inputs, key) of {name}", functools.partial(_sample, augment, data)
        yield f"batch(inputs, keys) of {name}", functools.partial(_batch, augment, data)
        yield f"variety of {name}", functools.partial(_variety, augment, data)
        if data.spec.riders and augment.varies:
            yield f"masks of {name}", functools.partial(_carried, augment, data)
        if suits is None:
            return
    if not taken:
        reasons = listing(refused, 3) or "its default() suits none"
        raise Broken(f"it takes none of the data there is ({reasons}); give its dataset with --plugin or --dataset")


def _check_name(choice: Choice, name: str) -> None:
    try:
        known = choose("augment", name).plugin is choice.plugin
    except ConfigError:
        known = False
    if not known:
        raise Broken(f"default() returns '{name}', which is no name of this plug-in")


def _build(choice: Choice, data: Data) -> Augment:
    augment = choice.build(spec=data.spec, train=data.split("train"))
    if not isinstance(augment, Augment):
        raise Broken(f"build() must return a core.Augment, not {type(augment).__name__}")
    return augment


def _inputs(data: Data) -> list[Inputs]:
    samples = data.split("train")
    return [samples[i] for i in range(min(SAMPLES, len(samples)))]


def _keys(seed: int, count: int) -> Tensor:
    return mix(seed, torch.arange(count))


def _together(samples: list[Inputs], spec: DataSpec) -> Inputs:
    """A batch (B, ...) of samples, as the loader makes it."""
    fitted = [fit(sample, spec) for sample in samples]
    return {
        name: (pad if one.ragged else torch.stack)([sample[name] for sample in fitted])
        for name, one in spec.inputs.items()
    }


def _vary(augment: Augment, data: Data, seed: int) -> Inputs:
    """A batch with both parts of the augmentation."""
    inputs = _inputs(data)
    keys = _keys(seed, len(inputs))
    samples = [augment.sample(one, key) for one, key in zip(inputs, keys.tolist(), strict=True)]
    return augment.batch(_together(samples, data.spec), keys)


def _shapes(augment: Augment, data: Data) -> str | None:
    plain, varied = _together(_inputs(data), data.spec), _vary(augment, data, 0)
    for name, x in plain.items():
        if name not in varied:
            raise Broken(f"the input '{name}' is missing from what it returns")
        if varied[name].dtype != x.dtype:
            raise Broken(f"'{name}' becomes {varied[name].dtype}; it is stored as {x.dtype}")
        ragged = data.spec.inputs[name].ragged
        if varied[name].shape[2 if ragged else 1 :] != x.shape[2 if ragged else 1 :]:
            raise Broken(f"'{name}' becomes {tuple(varied[name].shape)}, from {tuple(x.shape)}")
    return None


def _pure(call: Callable[[Inputs], Inputs], inputs: Inputs, what: str) -> None:
    """Call twice, with other states of the global generators, and compare."""
    kept = {name: x.clone() for name, x in inputs.items()}
    seed_torch(1)
    first = {name: x.clone() for name, x in call(inputs).items()}
    if name := differs(inputs, kept):
        raise Broken(f"{what} writes into its input '{name}'; return a new tensor")
    seed_torch(2)
    if name := differs(call(inputs), first):
        raise Broken(f"{what} gives another '{name}' the second time; its random numbers must come from the key")


def _sample(augment: Augment, data: Data) -> str | None:
    if not augment.per_sample:
        return "it has none"
    samples = _inputs(data)
    for inputs, key in zip(samples, _keys(0, len(samples)).tolist(), strict=True):
        _pure(functools.partial(augment.sample, key=key), inputs, "sample(inputs, key)")
    return None


def _batch(augment: Augment, data: Data) -> str | None:
    if type(augment).batch is Augment.batch:
        return "it has none"
    samples = _inputs(data)
    inputs, keys = _together(samples, data.spec), _keys(0, len(samples))
    _pure(lambda inputs: augment.batch(inputs, keys), inputs, "batch(inputs, keys)")
    varied = augment.batch(inputs, keys)
    for name, one in data.spec.inputs.items():
        if one.ragged and any(varied[name][at, len(sample[name]) :].any() for at, sample in enumerate(samples)):
            raise Broken(
                f"batch(inputs, keys) fills the padding of '{name}': leave it zero, or use sample, which sees no padding"
            )
    return None


def _variety(augment: Augment, data: Data) -> str | None:
    if not augment.varies:
        return "it changes nothing"
    first = _vary(augment, data, 0)
    if all(differs(_vary(augment, data, seed), first) is None for seed in range(1, KEYS)):
        raise Broken(f"{KEYS} different keys give the same inputs")
    return None


def _carried(augment: Augment, data: Data) -> str | None:
    """A mask stays on its image: where a generated picture is bright, the mask that moved with it says so."""
    shapes = {name: one.shape for name, one in data.spec.inputs.items()}
    masks = [(name, one.rides) for name, one in data.spec.riders.items() if one.shape == shapes[one.rides][-2:]]
    if not masks:
        return "there are none"
    agreement = []
    samples = _inputs(data)
    for at, key in enumerate(_keys(1, KEYS).tolist()):
        inputs = dict(samples[at % len(samples)])
        for name, image in masks:
            height, width = inputs[image].shape[-2:]
            drawn = torch.zeros(height, width, dtype=torch.uint8)
            drawn[: height // 3, : width // 2] = 1  # in a corner: no move leaves it where it was
            inputs[name] = drawn
            inputs[image] = (64 + 128 * drawn).expand_as(inputs[image]).to(inputs[image].dtype).contiguous()
        moved = augment.sample(inputs, key)
        for name, image in masks:
            valid = moved[name] != IGNORED
            bright = moved[image].float().mean(0)
            agreement.append(float(((bright > 128) == (moved[name] == 1))[valid].float().mean()))
    if (mean := sum(agreement) / len(agreement)) < AGREEING:
        raise Broken(
            f"it says that it carries masks, and {1 - mean:.0%} of their pixels no longer lie on what they show"
        )
    return f"{mean:.0%} of the pixels agree"
