"""Build models of transformers that hear waveforms, and read how their recordings are prepared."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from fmeco.backbones._hf_body import Body
from fmeco.backbones._hf_config import network
from fmeco.backbones._hf_published import local_file, read_json
from fmeco.core import Backbone, ConfigError, DataSpec, Features, Inputs, InputSpec, clean, pad


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


def build(config: Any, spec: DataSpec, pooling: str, where: str) -> Backbone:
    """Build a model for the waveforms of a dataset; a sample's vector is the mean of its tokens, whatever `pooling` says."""
    if set(spec.inputs) != {"waveform"}:
        raise ConfigError(
            f"the backbone {where} takes waveforms; this dataset has {', '.join(spec.inputs)}",
            "dataset.input: waveform, where the dataset is audio",
        )
    # Of wavlm: the library hands torch masks of two types.
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask")
    made = Speech(network(config, "speech"))
    with torch.no_grad():  # some refuse a config only when they run
        made({"waveform": torch.zeros(1, made.shortest)})
    return made.train()


def preprocessing(arch: str, config: Any) -> DataSpec:
    """Read what the library's feature extractor says, alone or within a processor; without one these models hear 16 kHz."""
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
            raise ConfigError(f"{clean(path)}: not how recordings are prepared: {key} {clean(value)}")
    how = {"input": "waveform", "sample_rate": rate, "loudness": normal}
    return DataSpec("audio", {"waveform": InputSpec((rate,), ragged=True)}, {}, how, "audio")
