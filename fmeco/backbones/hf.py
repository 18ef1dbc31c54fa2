"""Text, image and speech models of Hugging Face transformers: `backbone: hf/distilbert-base-uncased` from the hub, or `hf/./FOLDER`.
Needs the extra: pip install 'fmeco[hf]'.

A name that begins with . or / is a folder; any other is a model of the hub. Code that comes with a model never runs. The
architecture is read from config.json, which a run writes into its own config, so that a checkpoint needs neither folder
nor hub. The network is the body of the library's classifier (of sequences, images or recordings), and tensors keep the
library's names. `pooled` is the input of that classifier's head: pooler_output if the body has one, else the first token,
or the last token of a causal model. A model of sentence-transformers is pooled as its modules.json says.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fmeco.backbones import _hf_image, _hf_speech, _hf_text
from fmeco.backbones._hf_body import Pooling
from fmeco.backbones._hf_config import library_config, parse_config
from fmeco.backbones._hf_published import licence, place, read_config, weight_files
from fmeco.backbones._hf_sentence import read_sentence
from fmeco.backbones._images import assumed as assumed
from fmeco.core import Backbone, ConfigError, DataSpec, Doc, FilePath, Published, Scalar, clean
from fmeco.errors import FmecoError

QUALIFIED = True
OPEN = True
FINETUNE_LR = 5e-5
MODELS = {
    "text": _hf_text,
    "image": _hf_image,
    "speech": _hf_speech,
}  # kind of data -> the module for its models


def build(
    spec: DataSpec,
    arch: str,
    *,
    weights: Annotated[
        FilePath | None, Doc("pretrained weights: DEFAULT = the model's own, or a file; null = random")
    ] = None,
    pooling: Annotated[
        Literal["model", "mean", "first", "last", "max"] | None,
        Doc(
            "vector of a sample: model = the input of the model's own classification head; mean or max = of its tokens; first or "
            "last = that token. null = as sentence-transformers does if the model has a modules.json, else model. Speech models "
            "always use the mean, and images know model and mean"
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        Doc(
            "divide a text's vector by its length; null = as sentence-transformers does if the model has a modules.json"
        ),
    ] = None,
    options: Annotated[dict[str, Scalar], Doc("keys of config.json to change, such as hidden_dropout_prob: 0")] = {},
    config: Annotated[
        str | None, Doc("content of config.json; null = read from the model, and filled in by the run")
    ] = None,
) -> Backbone:
    """Build the network with new weights. The caller loads `weights`. Raises ConfigError."""
    where = f"hf/{clean(arch)}"
    raw = parse_config(config, where) if config is not None else read_config(arch)
    made, kind = library_config(raw, options, where)
    try:
        backbone: Backbone = MODELS[kind].build(made, spec, Pooling(pooling or "model", bool(normalize)), where)
        return backbone
    except FmecoError:
        raise
    except Exception as error:  # architectures raise anything for config values that they do not support
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            raise  # the command line explains these
        shapes = ", ".join(f"{name} {described.shape}" for name, described in spec.inputs.items())
        raise ConfigError(f"{where} cannot be built for {shapes}: {type(error).__name__}: {clean(error)}") from None


def complete(arch: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Add the architecture (the content of config.json) and the pooling to the options of `build`, unless they have them."""
    if options["config"] is not None:
        return {**options, "pooling": options["pooling"] or "model", "normalize": bool(options["normalize"])}
    pooling, normalize = "model", False
    if (options["pooling"] is None or options["normalize"] is None) and (
        sentence := read_sentence(arch or "")
    ) is not None:
        pooling, normalize = sentence
    return {
        **options,
        "config": json.dumps(read_config(arch or "")),
        "pooling": options["pooling"] or pooling,
        "normalize": normalize if options["normalize"] is None else options["normalize"],
    }


def pretrained(arch: str, weights: str) -> Published:
    """Find a model's own weights, preprocessing and licence. Raises ConfigError for weights other than DEFAULT."""
    if weights != "DEFAULT":
        raise ConfigError(
            f"hf/{clean(arch)} has no weights '{clean(weights)}'; it has: DEFAULT",
            "name a file of weights by its path",
        )
    spec = preprocessing(arch)
    first, *rest = [place(arch, name) for name in weight_files(arch)]
    return Published(first, "", spec, licence(arch), tuple(rest))


def preprocessing(arch: str) -> DataSpec | None:
    """Read a model's preprocessing: tokenizer, image size and normalisation, or sample rate. None if it states none."""
    config, kind = library_config(read_config(arch), {}, f"hf/{clean(arch)}")
    spec: DataSpec | None = MODELS[kind].preprocessing(arch, config)
    return spec
