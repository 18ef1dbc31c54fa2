"""Feature maps: the library's own values, of the widths, strides and sizes that a backbone announces."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from fmeco.config.check import choose
from fmeco.core import DataSpec, InputSpec

FOUR = (4, 8, 16, 32)


def build(name: str, size: tuple[int, int] = (64, 64), **options: Any) -> Any:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(3)
    image = InputSpec((3, *size), "uint8", 1 / 255, (0.5,) * 3, (0.25,) * 3)
    choice = choose("backbone", {"name": name, **options})
    return choice.plugin.build({"spec": DataSpec("image", {"image": image}), "arch": choice.arch}, choice.options)


def images(*size: int) -> dict[str, Tensor]:
    return {"image": torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize(
    ("name", "options", "widths", "strides"),
    [
        ("resnet18", {}, (64, 128, 256, 512), FOUR),
        ("resnet18", {"stem": "small"}, (256, 512), (4, 8)),
        ("densenet121", {}, (256, 512, 1024, 1024), FOUR),
        ("inception_v3", {}, (192, 288, 768, 2048), FOUR),  # convolutions without padding
        ("squeezenet1_1", {}, (128, 256, 512), FOUR[:3]),
        ("mobilenet_v3_small", {}, (16, 24, 48, 576), FOUR),
        ("swin_t", {}, (96, 192, 384, 768), FOUR),  # channels last
        ("timm/tf_efficientnet_lite0", {}, (24, 40, 112, 320), FOUR),
        ("timm/convnext_atto", {}, (40, 80, 160, 320), FOUR),
        ("timm/skresnet18", {}, (64, 128, 256, 512), FOUR),
        ("cnn", {}, (256, 256), (4, 8)),
        ("cnn", {"widths": [8]}, (8,), (2,)),
    ],
)
def test_widths_strides_and_sizes(
    name: str, options: dict[str, Any], widths: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """The sizes are rounded up, also where the network rounds down, and for images of other sizes than it was built for."""
    made = build(name, (96, 96), **options).eval()
    assert (made.map_widths, made.map_strides) == (widths, strides)
    for height, width in ((96, 96), (97, 131)):
        with torch.no_grad():
            found = [tuple(x.shape) for x in made.maps(images(height, width))]
        assert found == [(2, w, -(-height // s), -(-width // s)) for w, s in zip(widths, strides, strict=True)]


def test_maps_are_those_of_the_libraries_own_extractors() -> None:
    made, x = build("resnet18").eval(), images(64, 96)
    layers = IntermediateLayerGetter(made.net, {f"layer{i}": str(i) for i in range(1, 5)})
    with torch.no_grad():
        assert all(map(torch.equal, made.maps(x), layers(x["image"]).values()))
    timm = pytest.importorskip("timm")
    for arch, strides in (("test_efficientnet", FOUR), ("test_convnext", FOUR), ("test_resnet", FOUR)):
        made = build(f"timm/{arch}").eval()
        theirs = timm.create_model(arch, features_only=True).eval()
        state = made.library.state_dict()
        # features_only joins the names of nested modules by an underscore.
        names = {name.replace(".", "_"): name for name in state}
        theirs.load_state_dict({name: state[names[name.replace(".", "_")]] for name in theirs.state_dict()})
        kept = [i for i, stride in enumerate(theirs.feature_info.reduction()) if stride in strides]
        with torch.no_grad():
            wanted = theirs(x["image"])
            assert all(map(torch.equal, made.maps(x), [wanted[i] for i in kept])), arch


def test_one_grid_of_tokens_becomes_a_pyramid() -> None:
    """Class and register tokens are no part of it."""
    for name, size, side in (("vit_b_32", 96, 3), ("timm/test_vit", 64, 4), ("transformer", 64, 4)):
        made = build(name, (size, size), **({"patch": 16, "depth": 1} if name == "transformer" else {})).eval()
        patch = size // side
        assert made.map_strides == (FOUR if patch == 16 else FOUR[1:])
        assert made.map_widths == (made.width,) * len(made.map_strides)
        x = images(size, size)
        with torch.no_grad():
            maps = dict(zip(made.map_strides, made.maps(x), strict=True))
            if name == "timm/test_vit":
                tokens = made.net.forward_features(x["image"])[:, made.net.num_prefix_tokens :]
            else:
                tokens = made.mapped(x).tokens
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        assert torch.equal(maps[patch], grid)
        assert torch.equal(maps[8], F.interpolate(grid, (size // 8, size // 8), mode="bilinear"))
        if patch == 16:
            assert torch.equal(maps[32], F.avg_pool2d(grid, 2))
        # A cell of the grid answers for its own place: more than for another.
        other = x["image"].clone()
        other[:, :, :patch, :patch] = 3.0
        with torch.no_grad():
            change = (made.maps({"image": other})[0] - maps[made.map_strides[0]]).abs().sum(1)[0]
        assert change[0, 0] == change.max()


def test_what_has_no_maps_says_so() -> None:
    made = build("mlp", (8, 8))
    assert (made.map_widths, made.map_strides, made.unmapped) == ((), (), ())
    with pytest.raises(TypeError, match="MLP has no feature maps"):
        made.maps(images(8, 8))
    made.map_strides, made.map_widths = (4,), (made.width,)
    with pytest.raises(TypeError, match="no grid"):
        made.maps(images(8, 8))


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "timm/test_vit", "timm/test_efficientnet"])
def test_asking_changes_nothing_and_a_run_is_one_run(name: str) -> None:
    made, x = build(name).train(), images(64, 64)
    next(made.net.children()).eval()  # as of a frozen layer
    other = copy.deepcopy(made)
    modes = [module.training for module in made.modules()]
    assert "places" not in vars(made), "what nobody asks for is not looked for"
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert made.map_strides
    assert made.unmapped is not None
    assert torch.equal(torch.rand(1), drawn)
    assert [module.training for module in made.modules()] == modes
    for key, value in other.state_dict().items():
        assert torch.equal(made.state_dict()[key], value), key

    counts: list[dict[str, int]] = []
    for one, run in ((other, other.forward), (made, made.maps)):
        calls: dict[str, int] = {}
        for key, module in one.net.named_modules():
            module.register_forward_hook(lambda *_, key=key, calls=calls: calls.update({key: calls.get(key, 0) + 1}))
        torch.manual_seed(5)
        run(x)
        counts.append(calls)
    assert all(counts[1][key] <= counts[0].get(key, 0) for key in counts[1])
    for key, value in other.named_buffers():  # batch norm and its like have seen the batch once, as in `forward`
        passed = name != "timm/test_efficientnet" or not key.startswith("net.bn2")
        assert torch.equal(dict(made.named_buffers())[key], value) == passed, key
    assert all(len(module._forward_hooks) <= 1 and not module._forward_pre_hooks for module in made.net.modules())


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("resnet18", set()),
        ("timm/test_efficientnet", {"net.conv_head.weight", "net.bn2.weight", "net.bn2.bias"}),
        ("mobilenet_v3_small", {"net.classifier.0.weight", "net.classifier.0.bias"}),
        ("cnn", {"layers.37.weight", "layers.41.weight"}),
    ],
)
def test_gradients_reach_all_parameters_but_those_that_are_named(name: str, unused: set[str]) -> None:
    options = {"widths": [4] * 6} if name == "cnn" else {}
    made = build(name, (96, 96), **options).train()
    sum(x.square().mean() for x in made.maps(images(96, 96))).backward()  # type: ignore[union-attr]
    without = {key for key, p in made.named_parameters() if p.grad is None}
    assert set(made.unmapped) == without
    assert unused <= without


def test_copies_and_compiled_backbones_give_the_same_maps() -> None:
    made, x = build("resnet18").eval(), images(64, 64)
    with torch.no_grad():
        wanted = made.maps(x)
        twin = copy.deepcopy(made)
        for p in made.parameters():
            p.mul_(2)
        assert all(map(torch.equal, twin.maps(x), wanted)), "a copy uses its own weights"
        twin.compile(backend="eager")
        twin(x)  # compiled without hooks
        assert all(map(torch.equal, twin.maps(x), wanted))
        compiled = torch.compile(twin.maps, backend="eager")
        assert all(map(torch.equal, compiled(x), wanted))
        assert all(map(torch.equal, compiled(x), wanted))


class Branches(nn.Module):
    """Two stages: one halves its map first, the other last; both have wider layers inside, and the network has a head."""

    def __init__(self) -> None:
        super().__init__()
        convolution = lambda a, b, stride: nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.ReLU())  # noqa: E731
        self.stem = nn.Sequential(convolution(3, 4, 2), convolution(4, 4, 2))
        self.first = nn.Sequential(nn.Conv2d(4, 60, 1), nn.Conv2d(60, 6, 3, 2, 1), nn.Conv2d(6, 6, 1))
        self.second = nn.Sequential(convolution(6, 7, 1), nn.Conv2d(7, 8, 3, 2, 1))
        self.head = nn.Sequential(nn.Dropout(), nn.Conv2d(8, 9, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.second(self.first(self.stem(x))))
        return y


def test_the_trunk_is_found_in_a_network_of_a_strangers() -> None:
    maps = importlib.import_module("fmeco.backbones._maps")
    net, x = Branches().eval(), torch.zeros(2, 3, 512, 640)
    places = maps.offered(maps.find_places(net, lambda: net(x), x))
    assert [place.module for place in places] == ["stem", "second.0", "second"]
    assert [(place.width, place.stride) for place in places] == [(4, 4), (7, 8), (8, 16)]
