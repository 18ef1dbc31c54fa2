"""Build networks of transformers from the JSON of a config.json, which may come from anyone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from fmeco.core import ConfigError, clean, listing, nearest
from fmeco.errors import FmecoError

KEPT = 64 << 10  # bytes of a config that are kept
# Keys that a config must not have, and why.
REFUSED = {
    "auto_map": "it names code of its own, which fmeco does not run",
    "trust_remote_code": "it asks to run code of its own",
    "quantization_config": "its weights are quantised",
    "backbone": "it is made of several models",
    "backbone_config": "it is made of several models",
    "use_pretrained_backbone": "it is made of several models",
}
# Keys that are left out: they are about a class layer, a file format or how a model is run.
DROPPED = (
    *("architectures", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict"),
    *("attn_implementation", "experts_implementation", "output_attentions", "output_hidden_states", "torchscript"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task"),
)
# Models that hear waveforms through convolutions without padding: a step of time then depends on real samples alone.
SPEECH = ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")
FOREIGN = ("timm_wrapper", "timm_backbone")  # they ask another library for an architecture, which may come from a hub

Kind = Literal["text", "image", "speech"]
CLASSIFIERS: dict[Kind, str] = {"text": "Sequence", "image": "Image", "speech": "Audio"}


def import_transformers() -> Any:
    """Import transformers late: it takes seconds."""
    try:
        found = importlib.import_module("transformers")
        importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError(f"backbones of transformers need transformers: {error}", "pip install 'fmeco[hf]'") from None
    found.logging.set_verbosity_error()
    return found


def parse_config(config: str, where: str) -> dict[str, Any]:
    """Read the config that a checkpoint holds. It may come from anyone, and the same rules hold for it as for a file."""
    try:
        raw = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: backbone.config is not JSON: {clean(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: backbone.config holds no object")
    return strip_config(raw, f"{where}: backbone.config")


def strip_config(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Keep what a config says of the architecture. Raises ConfigError for models that fmeco does not run."""
    for key, why in REFUSED.items():
        if raw.get(key):
            raise ConfigError(f"{where}: {key}: {why}")
    if parts := [key for key, value in raw.items() if isinstance(value, dict) and "model_type" in value]:
        raise ConfigError(f"{where}: {listing(parts)}: it is made of several models")
    if not isinstance(raw.get("model_type"), str):
        raise ConfigError(f"{where}: no model_type, which says what the model is")
    out = {key: value for key, value in _public(raw).items() if key not in (*REFUSED, *DROPPED)}
    if len(json.dumps(out)) > KEPT:
        raise ConfigError(f"{where}: more than {KEPT >> 10} KB: this describes no architecture")
    return out


def _public(value: Any) -> Any:
    """Drop keys that begin with _: the library keeps its own there, such as which kernel to fetch."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items() if not key.startswith("_")}
    return [_public(inner) for inner in value] if isinstance(value, list) else value


def library_config(raw: Mapping[str, Any], options: Mapping[str, Any], where: str) -> tuple[Any, Kind]:
    """Make transformers' own object for a config, and say what the model reads. Raises ConfigError."""
    hf = import_transformers()
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    given = dict(raw)
    model = given.pop("model_type")
    text, image = (
        model in getattr(auto, f"MODEL_FOR_{what}_CLASSIFICATION_MAPPING_NAMES") and model not in FOREIGN
        for what in ("SEQUENCE", "IMAGE")
    )
    if model not in hf.CONFIG_MAPPING:
        raise ConfigError(f"{where}: transformers {hf.__version__} knows no model_type '{clean(model)}'")
    speech = model in SPEECH
    if not text and not image and not speech:
        raise ConfigError(f"{where}: {model} is no model of one text, image or waveform that gives features")
    if speech:  # layers left out at random are parameters without gradients, which several ranks do not take
        options = {"layerdrop": 0.0, **options}
    try:
        made = hf.AutoConfig.for_model(model, **given)
        for key in options:
            if key.startswith("_") or key in (*REFUSED, *DROPPED) or not hasattr(made, key):
                raise ConfigError(
                    f"{where}: backbone.options: no '{clean(key)}'{nearest(key, made.to_dict())} to change"
                )
        made = hf.AutoConfig.for_model(model, **{**given, **options})
    except FmecoError:
        raise
    except Exception as error:  # whatever a config holds that the library does not expect
        raise ConfigError(f"{where}: not a config of {model}: {type(error).__name__}: {clean(error)}") from None
    if made.is_encoder_decoder:
        raise ConfigError(f"{where}: {model} is an encoder with a decoder; fmeco takes one or the other")
    if made.sub_configs:
        raise ConfigError(f"{where}: {model} is made of several models")
    made.use_cache = False  # of a generation's past
    if getattr(made, "add_adapter", False):
        raise ConfigError(f"{where}: add_adapter: fmeco takes no steps of time together")
    if getattr(made, "conv_pos_batch_norm", False):
        raise ConfigError(f"{where}: conv_pos_batch_norm: what a recording gives would depend on those beside it")
    return made, "text" if text else "speech" if speech else "image"


def network(config: Any, kind: Kind) -> nn.Module:
    """Build a new network in evaluation mode: the body of the library's classifier."""
    hf = import_transformers()
    auto = getattr(hf, f"AutoModelFor{CLASSIFIERS[kind]}Classification")
    found = auto._model_mapping[type(config)]
    whole = found[0] if isinstance(found, tuple) else found
    config.architectures = [whole.__name__]
    # Named here, so that no config chooses: what is not torch's own might be fetched.
    attention = "sdpa" if getattr(whole, "_supports_sdpa", False) else "eager"
    made = auto.from_config(config, trust_remote_code=False, attn_implementation=attention, dtype=torch.float32)
    body: nn.Module = made.base_model
    if body is made:
        raise ConfigError(f"{config.model_type}: its classifier has no body of its own")
    return body.eval()
