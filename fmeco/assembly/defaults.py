"""Choose the objective and the augmentation for a config that names none, to suit the data."""

from __future__ import annotations

from fmeco.config.check import choose
from fmeco.config.run_config import Choice
from fmeco.core.data import DataSpec
from fmeco.core.model import Backbone
from fmeco.errors import ConfigError, clean
from fmeco.plugins.registry import Plugin, plugins


def objective(spec: DataSpec, backbone: Backbone) -> Choice:
    """Choose the objective that suits the data's targets. Raises ConfigError if none does.

    Each objective declares what it suits:
    DEFAULT_FOR: kinds of targets.
    COMBINES: key under which it takes one objective for each of several targets.
    suits(spec, backbone): whether it suits data without targets.
    """
    offers = plugins("objectives")
    if not spec.targets:
        for plugin in offers.values():
            suits = getattr(plugin.load(), "suits", None)
            if suits is not None and suits(spec, backbone):
                return choose("objective", plugin.name)
        raise ConfigError("this dataset has no labels, and no objective suits it by default", "name an `objective:`")
    serving = {name: _serving(offers, name, target.kind) for name, target in spec.targets.items()}
    if len(serving) == 1:
        target, plugin = next(iter(serving.items()))
        return choose("objective", {"name": plugin.name, "target": target})
    combining = next((plugin for plugin in offers.values() if plugin.combines), None)
    if combining is None:
        raise ConfigError(f"no objective combines several targets ({', '.join(serving)})", "name an `objective:`")
    each = {target: plugin.name for target, plugin in serving.items()}
    return choose("objective", {"name": combining.name, combining.combines: each})


def _serving(offers: dict[str, Plugin], target: str, kind: str) -> Plugin:
    """Find the default objective for a kind of target."""
    plugin = next((offer for offer in offers.values() if kind in offer.default_for), None)
    if plugin is None:
        raise ConfigError(
            f"no objective is the default for the target '{clean(target)}' ({kind}): name an `objective:`"
        )
    return plugin


def augment(spec: DataSpec, views: int) -> str:
    """Choose the first augmentation whose `default(spec, views)` accepts the data; "none" if none does."""
    offers = (getattr(plugin.load(), "default", None) for plugin in plugins("augment").values())
    return next((name for offer in offers if offer is not None and (name := offer(spec, views)) is not None), "none")
