"""Build speech models of transformers, which read waveforms, and read their preprocessing."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from fmeco.backbones._hf_body import Body, Pooling
from fmeco.backbones._hf_config import network
from fmeco.backbones._hf_published import local_file, read_json
from fmeco.core import Backbone, ConfigError, DataSpec, Features, Inputs, InputSpec, clean, pad


class Speech(Body):
    """Compute features of waveforms (B, L), padded with 0 at the end: tokens (B, T, D) and mask (B, T).

    The features of a recording do not depend on the rest of its batch, nor on the padding. The network is a stack of
    convolutions, in which each time step covers a few milliseconds, and a transformer (https://arxiv.org/abs/2006.11477
    section 2).
    shortest: number of samples that one time step covers.
    alone: pass recordings through the convolutions one by one.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, Pooling("mean"))
        config: Any = net.config
        # The library's own masking uses random numbers that the run's seed does not set; fmeco's augmentation masks instead.
        self.class_layers = ("masked_spec_embed",)
        net._parameters.pop("masked_spec_embed", None)
        self.width = int(config.hidden_size)
        self.convolutions = [*zip(config.conv_kernel, config.conv_stride, strict=True)]
        self.shortest = 1
        for kernel, stride in reversed(self.convolutions):
            self.shortest = (self.shortest - 1) * stride + kernel
        # A group norm runs over time, so its statistics would include the padding.
        self.alone = config.feat_extract_norm == "group"

    def forward(self, inputs: Inputs) -> Features:
        wave = inputs["waveform"]
        wave = nn.functional.pad(wave, (0, max(0, self.shortest - wave.shape[1])))
        positions = torch.arange(1, wave.shape[1] + 1, device=wave.device)
        length = (wave.ne(0) * positions).amax(1).clamp_min(self.shortest)  # (B,)
        net: Any = self.net
        # One by one without gradients, too, to save memory: batches are large then, and the first map is by far the largest.
        if self.alone or not torch.is_grad_enabled():
            parts = [net.feature_extractor(w[None, :n])[0].T for w, n in zip(wave, length.tolist(), strict=True)]
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


def build(config: Any, spec: DataSpec, pooling: Pooling, where: str) -> Backbone:
    """Build a model for the waveforms of a dataset. The vector of a sample is always the mean of its tokens; `pooling` is ignored.

    Raises ConfigError for other inputs.
    """
    if set(spec.seen) != {"waveform"}:
        raise ConfigError(
            f"the backbone {where} takes waveforms; this dataset has {', '.join(spec.seen)}",
            "for a dataset of recordings, set dataset.input: waveform",
        )
    # The library's wavlm passes torch two masks of different types.
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask")
    made = Speech(network(config, "speech"))
    with torch.no_grad():  # some models reject a config only when they run
        made({"waveform": torch.zeros(1, made.shortest)})
    return made.train()


def preprocessing(arch: str, config: Any) -> DataSpec:
    """Read sample rate and normalisation from the library's feature extractor or processor config; 16 kHz without one.

    Raises ConfigError for invalid values.
    """
    raw: dict[str, Any] = {}
    path = local_file(arch, "preprocessor_config.json") or local_file(arch, "processor_config.json")
    if path is not None:
        raw = read_json(path)
        raw = inner if isinstance(inner := raw.get("feature_extractor"), dict) else raw
    rate, normal = raw.get("sampling_rate", 16_000), raw.get("do_normalize", True)
    for key, value, valid in (
        ("sampling_rate", rate, isinstance(rate, int) and 1_000 <= rate <= 768_000),
        ("do_normalize", normal, isinstance(normal, bool)),
    ):
        if not valid:
            raise ConfigError(f"{clean(path)}: not a valid audio preprocessing: {key} {clean(value)}")
    preparation = {"input": "waveform", "sample_rate": rate, "loudness": normal}
    return DataSpec("audio", {"waveform": InputSpec((rate,), ragged=True)}, {}, preparation, "audio")
