"""Build networks of transformers from a config.json, which is untrusted input."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from fmeco.core import ConfigError, clean, listing, nearest
from fmeco.errors import FmecoError

KEPT = 64 << 10  # largest config, in bytes of JSON
# Keys that a config must not have -> the reason, for the error message.
REFUSED = {
    "auto_map": "it names code of its own, which fmeco does not run",
    "trust_remote_code": "it asks to run code of its own",
    "quantization_config": "its weights are quantised",
    "backbone": "it is made of several models",
    "backbone_config": "it is made of several models",
    "use_pretrained_backbone": "it is made of several models",
}
# Keys that are dropped: they describe a class layer, a file format or how a model is run, not the architecture.
DROPPED = (
    *("architectures", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict"),
    *("attn_implementation", "experts_implementation", "output_attentions", "output_hidden_states", "torchscript"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task"),
)
# Speech models whose convolutions over the waveform have no padding, so that a time step depends on real samples only.
SPEECH = ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")
FOREIGN = ("timm_wrapper", "timm_backbone")  # they load an architecture from another library, possibly from a hub

Kind = Literal["text", "image", "speech"]
CLASSIFIERS: dict[Kind, str] = {"text": "Sequence", "image": "Image", "speech": "Audio"}


def import_transformers() -> Any:
    """Import transformers when it is first needed: importing takes seconds. Raises ConfigError if it is not installed."""
    try:
        transformers = importlib.import_module("transformers")
        importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError(f"backbones of transformers need transformers: {error}", "pip install 'fmeco[hf]'") from None
    transformers.logging.set_verbosity_error()
    return transformers


def parse_config(config: str, where: str) -> dict[str, Any]:
    """Read the architecture from the JSON that a checkpoint holds, by the same rules as for a file (`strip_config`).

    Raises ConfigError.
    """
    try:
        raw = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: backbone.config is not JSON: {clean(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: backbone.config is not a JSON object")
    return strip_config(raw, f"{where}: backbone.config")


def strip_config(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Keep only the keys of a config that describe the architecture.

    Raises ConfigError for models that fmeco does not run, and for configs larger than KEPT.
    """
    for key, why in REFUSED.items():
        if raw.get(key):
            raise ConfigError(f"{where}: {key}: {why}")
    if parts := [key for key, value in raw.items() if isinstance(value, dict) and "model_type" in value]:
        raise ConfigError(f"{where}: {listing(parts)}: it is made of several models")
    if not isinstance(raw.get("model_type"), str):
        raise ConfigError(f"{where}: no model_type, the key that names the architecture")
    out = {key: value for key, value in _public(raw).items() if key not in (*REFUSED, *DROPPED)}
    if len(json.dumps(out)) > KEPT:
        raise ConfigError(f"{where}: larger than {KEPT >> 10} KB, too large for the description of an architecture")
    return out


def _public(value: Any) -> Any:
    """Drop keys that begin with _: they are internal to the library, such as the name of a kernel to download."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items() if not key.startswith("_")}
    return [_public(inner) for inner in value] if isinstance(value, list) else value


def library_config(raw: Mapping[str, Any], options: Mapping[str, Any], where: str) -> tuple[Any, Kind]:
    """Build the library's config object, and tell whether the model reads text, images or speech.

    options: keys of the config to change.
    Raises ConfigError for models, keys and values that fmeco or the library does not support.
    """
    hf = import_transformers()
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    keys = dict(raw)
    model = keys.pop("model_type")
    text, image = (
        model in getattr(auto, f"MODEL_FOR_{what}_CLASSIFICATION_MAPPING_NAMES") and model not in FOREIGN
        for what in ("SEQUENCE", "IMAGE")
    )
    if model not in hf.CONFIG_MAPPING:
        raise ConfigError(f"{where}: transformers {hf.__version__} has no model_type '{clean(model)}'")
    speech = model in SPEECH
    if not text and not image and not speech:
        raise ConfigError(f"{where}: {model} is not a model that turns a text, an image or a waveform into features")
    if speech:  # layer drop leaves parameters without gradients, which data parallel training does not allow
        options = {"layerdrop": 0.0, **options}
    try:
        made = hf.AutoConfig.for_model(model, **keys)
        for key in options:
            if key.startswith("_") or key in (*REFUSED, *DROPPED) or not hasattr(made, key):
                raise ConfigError(
                    f"{where}: backbone.options: no '{clean(key)}'{nearest(key, made.to_dict())} to change"
                )
        made = hf.AutoConfig.for_model(model, **{**keys, **options})
    except FmecoError:
        raise
    except Exception as error:  # the library raises anything for values that it does not expect
        raise ConfigError(f"{where}: not a valid config of {model}: {type(error).__name__}: {clean(error)}") from None
    if made.is_encoder_decoder:
        raise ConfigError(f"{where}: {model} is an encoder-decoder; fmeco runs encoder-only and decoder-only models")
    if made.sub_configs:
        raise ConfigError(f"{where}: {model} is made of several models")
    made.use_cache = False  # the cache is only for generation
    if getattr(made, "add_adapter", False):
        raise ConfigError(f"{where}: add_adapter: fmeco does not run models that merge time steps")
    if getattr(made, "conv_pos_batch_norm", False):
        raise ConfigError(
            f"{where}: conv_pos_batch_norm: the features of a recording would depend on the rest of its batch"
        )
    return made, "text" if text else "speech" if speech else "image"


def network(config: Any, kind: Kind) -> nn.Module:
    """Build the body of the library's classifier with new weights, in evaluation mode."""
    hf = import_transformers()
    auto = getattr(hf, f"AutoModelFor{CLASSIFIERS[kind]}Classification")
    mapped = auto._model_mapping[type(config)]
    whole = mapped[0] if isinstance(mapped, tuple) else mapped
    config.architectures = [whole.__name__]
    # Set explicitly, so that no config chooses it: the library may download an attention kernel that is not torch's own.
    attention = "sdpa" if getattr(whole, "_supports_sdpa", False) else "eager"
    made = auto.from_config(config, trust_remote_code=False, attn_implementation=attention, dtype=torch.float32)
    body: nn.Module = made.base_model
    if body is made:
        raise ConfigError(f"{config.model_type}: the library's classifier has no separate body to use as a backbone")
    return body.eval()
