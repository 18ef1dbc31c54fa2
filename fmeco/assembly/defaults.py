"""Choose what a config leaves out: the objective and the augmentation that suit the data."""

from __future__ import annotations

from fmeco.config.check import choose
from fmeco.config.run_config import Choice
from fmeco.core.data import DataSpec
from fmeco.core.model import Backbone
from fmeco.errors import ConfigError, clean
from fmeco.plugins.registry import Plugin, plugins


def objective(spec: DataSpec, backbone: Backbone) -> Choice:
    """Choose the objective that suits the data's targets. Raises ConfigError where none does.

    An objective says itself what it suits: DEFAULT_FOR names kinds of targets, COMBINES is the key under which it takes an
    objective for each of several targets, and `suits(spec, backbone)` speaks for data without targets.
    """
    offers = plugins("objectives")
    if not spec.targets:
        for plugin in offers.values():
            suits = getattr(plugin.load(), "suits", None)
            if suits is not None and suits(spec, backbone):
                return choose("objective", plugin.name)
        raise ConfigError("this dataset has no labels to learn from", "name an `objective:`")
    serving = {name: _serving(offers, name, target.kind) for name, target in spec.targets.items()}
    if len(serving) == 1:
        target, plugin = next(iter(serving.items()))
        return choose("objective", {"name": plugin.name, "target": target})
    combining = next((plugin for plugin in offers.values() if plugin.combines), None)
    if combining is None:
        raise ConfigError(f"no objective takes several targets ({', '.join(serving)})", "name an `objective:`")
    each = {target: plugin.name for target, plugin in serving.items()}
    return choose("objective", {"name": combining.name, combining.combines: each})


def _serving(offers: dict[str, Plugin], target: str, kind: str) -> Plugin:
    found = next((plugin for plugin in offers.values() if kind in plugin.default_for), None)
    if found is None:
        raise ConfigError(f"no objective serves the target '{clean(target)}' ({kind}) by default: name an `objective:`")
    return found


def augment(spec: DataSpec, views: int) -> str:
    """Choose the augmentation that first says that it suits the data; none is for those that nothing suits."""
    offers = (getattr(plugin.load(), "default", None) for plugin in plugins("augment").values())
    return next((name for offer in offers if offer is not None and (name := offer(spec, views)) is not None), "none")
