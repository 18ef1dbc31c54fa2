"""Models of transformers that read text, images or speech: `backbone: hf/distilbert-base-uncased` of the hub, or `hf/./FOLDER`.
Needs the extra: pip install 'fmeco[hf]'.

A name that begins with . or / is a folder, and no other is. Code that comes with a model never runs. The architecture
is that of config.json, which a run writes into its own config, so that a checkpoint needs neither folder nor hub.
The network is the body of the library's own classifier (of sequences, images or recordings), and tensors keep its names.
`pooled` is what that classifier reads: pooler_output where the body has one, else the first token, of a causal model the last.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fmeco.backbones import _hf_image, _hf_speech, _hf_text
from fmeco.backbones._hf_config import library_config, parse_config
from fmeco.backbones._hf_published import licence, place, read_config, weight_files
from fmeco.backbones._images import assumed as assumed
from fmeco.core import Backbone, ConfigError, DataSpec, Doc, FilePath, Published, Scalar, clean
from fmeco.errors import FmecoError

QUALIFIED = True
OPEN = True
MODELS = {
    "text": _hf_text,
    "image": _hf_image,
    "speech": _hf_speech,
}  # what a model reads -> the file about such models


def build(
    spec: DataSpec,
    arch: str,
    *,
    weights: Annotated[
        FilePath | None, Doc("pretrained weights: DEFAULT = the model's own, or a file; null = random")
    ] = None,
    pooling: Annotated[
        Literal["model", "mean"],
        Doc("a sample's vector: what the model's own classifier reads, or the mean of its tokens; of speech the mean"),
    ] = "model",
    options: Annotated[dict[str, Scalar], Doc("keys of config.json to change, such as hidden_dropout_prob: 0")] = {},
    config: Annotated[
        str | None, Doc("the JSON of config.json; null = that of the model, filled in by the run")
    ] = None,
) -> Backbone:
    """Loading `weights` is the caller's: weights change hands in one place only."""
    where = f"hf/{clean(arch)}"
    raw = parse_config(config, where) if config is not None else read_config(arch)
    made, kind = library_config(raw, options, where)
    try:
        backbone: Backbone = MODELS[kind].build(made, spec, pooling, where)
        return backbone
    except FmecoError:
        raise
    except Exception as error:  # a config may say anything, and each architecture refuses in its own way
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            raise  # explained elsewhere
        said = ", ".join(f"{name} {one.shape}" for name, one in spec.inputs.items())
        raise ConfigError(f"{where} cannot be built for {said}: {type(error).__name__}: {clean(error)}") from None


def complete(arch: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Add the architecture itself to the options of `build`."""
    return options if options["config"] is not None else {**options, "config": json.dumps(read_config(arch or ""))}


def pretrained(arch: str, weights: str) -> Published:
    """Find the model's own weights, and how its inputs are made. Raises ConfigError where there are none."""
    if weights != "DEFAULT":
        raise ConfigError(
            f"hf/{clean(arch)} has no weights '{clean(weights)}'; it has: DEFAULT",
            "a file with weights is named by its path",
        )
    spec = preprocessing(arch)
    first, *rest = [place(arch, name) for name in weight_files(arch)]
    return Published(first, "", spec, licence(arch), tuple(rest))


def preprocessing(arch: str) -> DataSpec | None:
    """Read how the model's inputs are made: its tokenizer, the size and colours of its images, or the sample rate of its
    waveforms. None where it does not say."""
    config, kind = library_config(read_config(arch), {}, f"hf/{clean(arch)}")
    spec: DataSpec | None = MODELS[kind].preprocessing(arch, config)
    return spec
