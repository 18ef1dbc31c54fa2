"""Models of transformers that read text, images or speech: `backbone: hf/distilbert-base-uncased` of the hub, or `hf/./FOLDER`.
Needs the extra: pip install 'fmeco[hf]'.

A name that begins with . or / is a folder, and no other is. Code that comes with a model never runs. The architecture
is that of config.json, which a run writes into its own config, so that a checkpoint needs neither folder nor hub.
The network is the body of the library's own classifier (of sequences, images or recordings), and tensors keep its names.
`pooled` is what that classifier reads: pooler_output where the body has one, else the first token, of a causal model the last.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from fmeco.core import (
    BLANK,
    HIDDEN,
    Backbone,
    ConfigError,
    DataSpec,
    Doc,
    Features,
    FilePath,
    Inputs,
    InputSpec,
    Published,
    Scalar,
    Tokens,
    clean,
    listing,
    nearest,
    pad,
)
from fmeco.errors import FmecoError, ResourceError
from fmeco.nn.ids import numbering
from fmeco.nn.layers import fit_channels, image_input

QUALIFIED = True
OPEN = True
HUB = "https://huggingface.co/{}/resolve/main/{}"
LIMIT, KEPT = 4 << 20, 64 << 10  # bytes of a JSON file, which may name thousands of classes, and of what is kept of it
LENGTH = 128  # most tokens of a text, where the config does not say
# What a config must not say, and why.
REFUSED = {
    "auto_map": "it names code of its own, which fmeco does not run",
    "trust_remote_code": "it asks to run code of its own",
    "quantization_config": "its weights are quantised",
    "backbone": "it is made of several models",
    "backbone_config": "it is made of several models",
    "use_pretrained_backbone": "it is made of several models",
}
# What is another's to say, or about a class layer.
DROPPED = (
    *("architectures", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict"),
    *("attn_implementation", "experts_implementation", "output_attentions", "output_hidden_states", "torchscript"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task"),
)
# What hears waveforms, through convolutions without padding: a step of time then depends on real samples alone.
SPEECH = ("hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm")
FOREIGN = ("timm_wrapper", "timm_backbone")  # they ask another library for an architecture, which may come from a hub
Kind = Literal["text", "image", "speech"]
CLASSIFIERS: dict[Kind, str] = {"text": "Sequence", "image": "Image", "speech": "Audio"}
# Of Pillow's numbers; Lanczos is nearest to bicubic.
INTERPOLATIONS = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}


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
    raw = _checked(config, where) if config is not None else _read_config(arch)
    made, kind = _config(raw, options, where)
    try:
        if kind == "text":
            return _text(made, spec, pooling, where)
        if kind == "speech":
            return _speech(made, spec, where)
        name, shape = image_input(spec, where)
        if hasattr(made, "num_channels"):
            made.num_channels = shape[0]
        return _image(_network(made, kind), name, shape, pooling, where)
    except FmecoError:
        raise
    except Exception as error:  # a config may say anything, and each architecture refuses in its own way
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            raise  # explained elsewhere
        said = ", ".join(f"{name} {one.shape}" for name, one in spec.inputs.items())
        raise ConfigError(f"{where} cannot be built for {said}: {type(error).__name__}: {clean(error)}") from None


def complete(arch: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options of `build` with the architecture itself among them."""
    return options if options["config"] is not None else {**options, "config": json.dumps(_read_config(arch or ""))}


# ---------------------------------------------------------------- the architecture


def _transformers() -> Any:
    """transformers, imported late: it takes seconds."""
    try:
        found = importlib.import_module("transformers")
        importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError(f"backbones of transformers need transformers: {error}", "pip install 'fmeco[hf]'") from None
    found.logging.set_verbosity_error()
    return found


def _is_folder(arch: str) -> bool:
    return arch.startswith((".", "/"))


def _place(arch: str, name: str) -> str:
    """Where a file of a model is: a path, or an address on the hub."""
    return os.path.join(arch, name) if _is_folder(arch) else HUB.format(arch, name)


def _file(arch: str, name: str) -> Path | None:
    """A file of a model on this machine, fetched if need be; None where the model has none of this name."""
    from fmeco.download import NotPublished, fetch

    where = _place(arch, name)
    if _is_folder(arch):
        return Path(where) if os.path.isfile(where) else None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", arch):
        raise ConfigError(f"hf/{clean(arch)}: no name of the hub", "a folder is written hf/./FOLDER or hf//FOLDER")
    try:
        return fetch(where)
    except NotPublished:
        return None


def _json(path: Path) -> dict[str, Any]:
    """An object of a JSON file. Raises ConfigError that names the file."""
    try:
        with open(path, "rb") as file:
            body = file.read(LIMIT + 1)
        if len(body) > LIMIT:
            raise ValueError(f"larger than {LIMIT >> 20} MB")
        found = json.loads(body)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{clean(path)} cannot be read as JSON: {clean(error)}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{clean(path)} holds no object, as in {{...}}")
    return found


def _read_config(arch: str) -> dict[str, Any]:
    """What config.json of a model says of its architecture. Raises ConfigError that names the file."""
    where = _place(arch, "config.json")
    if _is_folder(arch) and not os.path.isdir(arch):
        raise ConfigError(f"hf/{clean(arch)}: no such folder")
    try:
        path = _file(arch, "config.json")
    except ResourceError as error:
        folder = f"the folder {clean(arch)} is written hf/./{clean(arch)}" if os.path.isdir(arch) else ""
        raise ResourceError(error.message, *error.hints, folder) from None
    if path is None:
        raise ConfigError(
            f"{clean(where)}: no such file", "a model is a folder, or name of the hub, with a config.json"
        )
    return _cleaned(_json(path), clean(where))


def _checked(config: str, where: str) -> dict[str, Any]:
    """A config of a checkpoint, which may come from anyone, is held to the same rules."""
    try:
        raw = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: backbone.config is not JSON: {clean(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: backbone.config holds no object")
    return _cleaned(raw, f"{where}: backbone.config")


def _cleaned(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """What a config says of an architecture, and nothing else. Raises ConfigError for what fmeco does not run."""
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
    """Without the keys that begin with _: the library keeps its own there, such as which kernel to fetch."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items() if not key.startswith("_")}
    return [_public(inner) for inner in value] if isinstance(value, list) else value


def _config(raw: Mapping[str, Any], options: Mapping[str, Any], where: str) -> tuple[Any, Kind]:
    """transformers' own object for a config, and what the model reads. Raises ConfigError."""
    hf = _transformers()
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


def _network(config: Any, kind: Kind) -> nn.Module:
    """A new network, in evaluation mode: the body of the library's classifier."""
    hf = _transformers()
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


# ---------------------------------------------------------------- backbones


class Body(Backbone):
    """What text, images and speech share. class_layers: a pooler that the library's classifier goes without, and what the library
    itself ignores in its own older files."""

    input: str

    def __init__(self, net: nn.Module, pooling: str) -> None:
        super().__init__()
        self.net, self.pooling = net, pooling
        self.class_layers = () if any(name.startswith("pooler.") for name in net.state_dict()) else ("pooler.",)
        kept = net.state_dict()
        self.computed = {name for name, _ in net.named_buffers() if name not in kept}
        self.first: list[str] = []

    @property
    def library(self) -> nn.Module:
        return self.net

    def adapt(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Names of older files are the library's to translate. A first convolution for another number of channels is
        summed (to one) or spread (from one)."""
        own = self.net.state_dict()
        names = {name: name if name in own else _renamed(name, self.net) for name in state}
        # Two tensors with one name are not translated: what has no place is then refused by its own.
        once = [*names.values()]
        state = {(new if once.count(new) == 1 else old): state[old] for old, new in names.items()}
        ignored = tuple(getattr(self.net, "_keys_to_ignore_on_load_unexpected", None) or ())
        stale = (
            name
            for name in state
            if name not in own and (name in self.computed or any(re.search(one, name) for one in ignored))
        )
        self.class_layers = (*self.class_layers, *stale)
        changed = fit_channels(state, own, self.first)
        return {**state, **changed}, list(changed)


def _renamed(name: str, net: nn.Module) -> str:
    """A tensor's name of an older version of the library, as its own loading translates it."""
    mapping = importlib.import_module("transformers.conversion_mapping")
    loading = importlib.import_module("transformers.core_model_loading")
    for change in mapping.get_model_conversion_mapping(net):
        if isinstance(change, loading.WeightRenaming):
            name = change.rename_source_key(name)[0]
    return name


class Text(Body):
    """Ids (B, T), stored with an offset, 0 = padding -> tokens (B, T, D), mask (B, T), pooled (B, D)."""

    def __init__(self, net: nn.Module, pooling: str, offset: int, padding: int) -> None:
        super().__init__(net, pooling)
        self.width, self.offset, self.padding = int(net.config.hidden_size), offset, padding  # type: ignore[union-attr, arg-type]

    def forward(self, inputs: Inputs) -> Features:
        mask = inputs["tokens"].ne(0)  # (B, T)
        ids = torch.where(mask, inputs["tokens"] - self.offset, self.padding)
        given = {"input_ids": ids}
        if HIDDEN in inputs:
            x = self.net.get_input_embeddings()(ids)  # type: ignore[operator]  # (B, T, D)
            given = {"inputs_embeds": torch.where(inputs[HIDDEN].unsqueeze(-1), inputs[BLANK].to(x.dtype), x)}
        out = self.net(**given, attention_mask=mask.long())
        x = out.last_hidden_state
        if self.pooling == "mean":
            return Features(tokens=x, mask=mask)
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            last = mask.sum(1).sub(1).clamp_min(0)  # (B,)
            pooled = x[torch.arange(len(x), device=x.device), last] if self.causal else x[:, 0]
        return Features(pooled=pooled, tokens=x, mask=mask)

    def tokenize(self, inputs: Inputs) -> Tokens:
        return Tokens(inputs["tokens"].ne(0), ids=inputs["tokens"])

    def scores(self, tokens: Tensor) -> Tensor:
        found = nn.functional.linear(tokens, self.net.get_input_embeddings().weight)  # type: ignore[operator]
        return nn.functional.pad(found, (self.offset, 0))  # padding is never to be guessed


def _text(config: Any, spec: DataSpec, pooling: str, where: str) -> Backbone:
    """A model for the texts of a dataset. Raises ConfigError for a tokenizer that is not the model's."""
    if "tokens" not in spec.inputs or spec.modality == "events":
        what = "events" if spec.modality == "events" else ", ".join(spec.inputs)
        raise ConfigError(f"the backbone {where} takes text; this dataset has {what}")
    one, count = spec.inputs["tokens"], int(spec.preprocessing["ids"])
    if count - one.offset != config.vocab_size:
        raise ConfigError(
            f"{where} has embeddings of {config.vocab_size} ids, and the tokenizer has {count - one.offset}",
            "backbone.weights: DEFAULT brings the model's own tokenizer, dataset.tokenizer: FILE another",
            f"to train from scratch with this one: backbone.options: {{vocab_size: {count - one.offset}}}",
        )
    blank = getattr(config, "pad_token_id", None)
    padding = blank if isinstance(blank, int) and 0 <= blank < config.vocab_size else 0
    made = Text(_network(config, "text"), pooling, one.offset, padding)
    with torch.no_grad():
        made({"tokens": torch.full((1, one.shape[0]), count - 1)})  # some refuse a length only when they run
        ids = 1 + torch.arange(min(8, one.shape[0]))[None] % (count - 1)  # (1, T)
        other = torch.cat([ids[:, :-1], 1 + ids[:, -1:] % (count - 1)], 1)
        x, y = (made({"tokens": tokens}).tokens for tokens in (ids, other))
        assert x is not None and y is not None
        made.causal = torch.equal(x[:, :-1], y[:, :-1])
        # A width of embeddings that is not that of tokens has no room for what is shown in place of a hidden one.
        if made.net.get_input_embeddings().weight.shape[1] == made.width:  # type: ignore[operator]
            made.vocabulary = count
    return made.train()


class Image(Body):
    """Images (B, C, H, W) -> pooled (B, D), tokens (B, T, D), and their grid where they are patches or cells of one."""

    def __init__(self, net: nn.Module, pooling: str, name: str, shape: tuple[int, int, int]) -> None:
        super().__init__(net, pooling)
        self.input = name
        config: Any = net.config
        convolutions = (key for key, one in net.named_modules() if isinstance(one, nn.Conv2d))
        self.first = [f"{key}.weight" for key in list(convolutions)[:1]]
        patch = getattr(config, "patch_size", None)
        self.cells: tuple[int, int] | None = None
        if patch is not None:
            high, wide = (patch, patch) if isinstance(patch, int) else tuple(patch)
            self.cells = (shape[1] // high, shape[2] // wide)
        size = getattr(config, "image_size", None)
        known = (size, size) if isinstance(size, int) else tuple(size or ())
        resized = known != shape[1:] and "interpolate_pos_encoding" in inspect.signature(net.forward).parameters
        self.given = {"interpolate_pos_encoding": True} if resized else {}

    def forward(self, inputs: Inputs) -> Features:
        out = self.net(pixel_values=inputs[self.input], **self.given)
        x, pooled, grid, before = out.last_hidden_state, getattr(out, "pooler_output", None), None, 0
        if x.ndim == 4:  # (B, D, h, w)
            grid, x = (x.shape[2], x.shape[3]), x.flatten(2).transpose(1, 2)
        elif self.cells is not None:
            before = x.shape[1] - self.cells[0] * self.cells[1]  # class and register tokens
            if before >= 0:
                grid = self.cells
        if self.pooling == "mean":
            pooled = None
        elif pooled is not None:
            pooled = pooled.flatten(1)
        elif before > 0:
            pooled = x[:, 0]
        return Features(pooled=pooled, tokens=x[:, max(before, 0) :], grid=grid)


def _image(net: nn.Module, name: str, shape: tuple[int, int, int], pooling: str, where: str) -> Backbone:
    made = Image(net, pooling, name, shape)
    with torch.no_grad():  # some refuse a size only when they run
        vector = made({name: torch.zeros(1, *shape)}).vector
    if vector.ndim != 2:
        raise ConfigError(f"{where} does not give one vector per image")
    made.width = vector.shape[1]
    return made.train()


class Speech(Body):
    """Waveforms (B, L), filled up with 0 at the end -> tokens (B, T, D), and mask (B, T). What a recording gives does not depend
    on those beside it, nor on how its batch is filled up.

    https://arxiv.org/abs/2006.11477 section 2: convolutions, of which each step of time sees a few milliseconds, and a
    transformer.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, "mean")
        config: Any = net.config
        # Its own masks are drawn from numbers that no seed of a run reaches: fmeco's augmentation masks instead.
        self.class_layers = ("masked_spec_embed",)
        net._parameters.pop("masked_spec_embed", None)
        self.width = int(config.hidden_size)
        self.convolutions = [*zip(config.conv_kernel, config.conv_stride, strict=True)]
        self.shortest = 1  # samples that a first step of time sees
        for kernel, stride in reversed(self.convolutions):
            self.shortest = (self.shortest - 1) * stride + kernel
        # A norm over time would count what a batch is filled up with.
        self.alone = config.feat_extract_norm == "group"

    def forward(self, inputs: Inputs) -> Features:
        wave = inputs["waveform"]
        wave = nn.functional.pad(wave, (0, max(0, self.shortest - wave.shape[1])))
        places = torch.arange(1, wave.shape[1] + 1, device=wave.device)
        length = (wave.ne(0) * places).amax(1).clamp_min(self.shortest)  # (B,)
        net: Any = self.net
        # Without gradients batches are large, and the first map of each is by far the largest.
        if self.alone or not torch.is_grad_enabled():
            parts = [net.feature_extractor(one[None, :n])[0].T for one, n in zip(wave, length.tolist(), strict=True)]
            x = pad(parts)  # (B, T, C)
        else:
            x = net.feature_extractor(wave[:, : int(length.max())]).transpose(1, 2)
        steps = length
        for kernel, stride in self.convolutions:
            steps = (steps - kernel).div(stride, rounding_mode="floor") + 1
        mask = torch.arange(x.shape[1], device=x.device) < steps[:, None]
        x = net.feature_projection(x)
        x = net.encoder(x[0] if isinstance(x, tuple) else x, attention_mask=mask).last_hidden_state
        return Features(tokens=x, mask=mask)


def _speech(config: Any, spec: DataSpec, where: str) -> Backbone:
    if set(spec.inputs) != {"waveform"}:
        raise ConfigError(
            f"the backbone {where} takes waveforms; this dataset has {', '.join(spec.inputs)}",
            "dataset.input: waveform, where the dataset is audio",
        )
    # Of wavlm: the library hands torch masks of two types.
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask")
    made = Speech(_network(config, "speech"))
    with torch.no_grad():  # some refuse a config only when they run
        made({"waveform": torch.zeros(1, made.shortest)})
    return made.train()


# ---------------------------------------------------------------- what is published


def pretrained(arch: str, weights: str) -> Published:
    """Where the model's own weights are, and how its inputs are made. Raises ConfigError where there are none."""
    if weights != "DEFAULT":
        raise ConfigError(
            f"hf/{clean(arch)} has no weights '{clean(weights)}'; it has: DEFAULT",
            "a file with weights is named by its path",
        )
    spec = preprocessing(arch)
    first, *rest = [_place(arch, name) for name in _weight_files(arch)]
    return Published(first, "", spec, _licence(arch), tuple(rest))


def _weight_files(arch: str) -> list[str]:
    if _file(arch, "model.safetensors") is not None:
        return ["model.safetensors"]
    index = _file(arch, "model.safetensors.index.json")
    if index is not None:
        files = _json(index).get("weight_map")
        names = sorted(set(files.values())) if isinstance(files, dict) else []
        if not names or not all(
            isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in names
        ):
            raise ConfigError(f"{clean(index)} names no files of weights in this folder")
        return names
    if _file(arch, "pytorch_model.bin") is not None:
        return ["pytorch_model.bin"]
    raise ConfigError(f"{clean(_place(arch, 'model.safetensors'))}: no such file, and no pytorch_model.bin")


def _licence(arch: str) -> str | None:
    """What the model's card says, in its first lines."""
    path = _file(arch, "README.md")
    if path is None:
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        head = re.match(r"---\n(.*?)\n---", file.read(LIMIT), re.DOTALL)
    found = re.search(r"^license:[ \t]*([\w.-]+)[ \t]*$", head[1], re.MULTILINE) if head else None
    return found[1] if found else None


def preprocessing(arch: str) -> DataSpec | None:
    """How the model's inputs are made: its tokenizer, the size and colours of its images, or the sample rate of its waveforms.
    None where it does not say."""
    config, kind = _config(_read_config(arch), {}, f"hf/{clean(arch)}")
    return _tokenizer(arch, config) if kind == "text" else _waves(arch) if kind == "speech" else _pixels(arch)


def _tokenizer(arch: str, config: Any) -> DataSpec:
    path = _file(arch, "tokenizer.json")
    if path is None:  # then the dataset names one
        return DataSpec("text", {}, reader="text")
    where = clean(_place(arch, "tokenizer.json"))
    try:
        described = path.read_text("utf-8")
        count, offset = numbering(importlib.import_module("tokenizers").Tokenizer.from_str(described))
    except Exception as error:  # the library raises nothing more special
        raise ConfigError(f"{where}: not a tokenizer of the package tokenizers: {clean(error)}") from None
    if count > config.vocab_size:
        raise ConfigError(f"{where} has {count} ids, and the model has embeddings of {config.vocab_size}")
    how = {
        "tokenizer": described,
        "ids": config.vocab_size + offset,  # some models have more embeddings than words, for round numbers
        "vocabulary": None,
        "lowercase": None,
        "length": min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH),
    }
    return DataSpec(
        "text", {"tokens": InputSpec((how["length"],), "int64", ragged=True, offset=offset)}, {}, how, "text"
    )


def _pixels(arch: str) -> DataSpec | None:
    """preprocessor_config.json in fmeco's terms: the shorter side is resized, and the middle is cut out."""
    path = _file(arch, "preprocessor_config.json")
    if path is None:
        return None
    raw = {"size": 224, "crop_size": None, "crop_pct": None, "resample": 2, "rescale_factor": 1 / 255} | _json(path)
    try:
        short = _side(raw["size"])
        size = _side(raw["crop_size"]) if raw["crop_size"] and raw.get("do_center_crop") else short
        if raw["crop_pct"] and size == short:
            short = int(short / float(raw["crop_pct"]))
        scale = float(raw["rescale_factor"]) if raw.get("do_rescale", True) else 1.0
        mean, std = (
            tuple(float(x) for x in raw[key]) if raw.get("do_normalize", True) else (default,) * 3
            for key, default in (("image_mean", 0.0), ("image_std", 1.0))
        )
        if not (0 < size <= short < 1 << 14 and len(mean) == len(std) == 3 and min(std) > 0 and scale > 0):
            raise ValueError("sizes or colours are out of range")
        interpolation = INTERPOLATIONS.get(raw["resample"], "bilinear")
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise ConfigError(f"{clean(path)}: not how images are prepared: {clean(error)}") from None
    return DataSpec(
        "image",
        {"image": InputSpec((3, size, size), "uint8", scale, mean, std)},
        preprocessing={"size": size, "resize": max(short, size), "interpolation": interpolation, "color": "rgb"},
        reader="image_folder",
    )


def _waves(arch: str) -> DataSpec:
    """What the library's feature extractor says, alone or within a processor; else what all these models hear, 16 kHz."""
    raw: dict[str, Any] = {}
    path = _file(arch, "preprocessor_config.json") or _file(arch, "processor_config.json")
    if path is not None:
        raw = _json(path)
        raw = inner if isinstance(inner := raw.get("feature_extractor"), dict) else raw
    rate, normal = raw.get("sampling_rate", 16_000), raw.get("do_normalize", True)
    for key, value, valid in (
        ("sampling_rate", rate, isinstance(rate, int) and 1_000 <= rate <= 768_000),
        ("do_normalize", normal, isinstance(normal, bool)),
    ):
        if not valid:
            raise ConfigError(f"{clean(path)}: not how recordings are prepared: {key} {clean(value)}")
    how = {"input": "waveform", "sample_rate": rate, "loudness": normal}
    return DataSpec("audio", {"waveform": InputSpec((rate,), ragged=True)}, {}, how, "audio")


def _side(size: Any) -> int:
    """224, {"height": 224, "width": 224} or {"shortest_edge": 224}. Images of fmeco's are square."""
    if isinstance(size, dict):
        size = size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"])
    return int(size)
