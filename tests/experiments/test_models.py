"""The networks: sizes as published, shapes, gradients to every parameter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_msda.drawn_layer import find_stages
from lightning_msda.experiments.models import (
    BERT,
    VGG11,
    BiLSTM,
    DenseNet121,
    DenseNetBC,
    LeNet,
    PointNet,
    PreActResNet18,
    PreActResNet18In2D,
    PreActResNet34,
    PreActResNet50,
    PyramidNet,
    ResNet50,
    ResNet101,
    ResNeXt101,
    SEResNeXt50,
    SideBySide,
    SmallCNN,
    TextCNN,
    VoxelPointNet,
    WideResNet,
)
from lightning_msda.experiments.models.pointnet import VoxelsToPoints
from lightning_msda.experiments.models.shakedrop import ShakeDrop


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def has_module(name: str) -> bool:
    """Tell whether a package is there, which only some of the networks need."""
    try:
        __import__(name)
    except ModuleNotFoundError:
        return False
    return True


needs_timm = pytest.mark.skipif(not has_module("timm"), reason="needs timm")
needs_transformers = pytest.mark.skipif(not has_module("transformers"), reason="needs transformers")

# --- sizes --------------------------------------------------------------------------------------------------

PYTORCHCV = "github.com/osmr/pytorchcv"
KUANGLIU = "github.com/kuangliu/pytorch-cifar"
TORCHVISION = "docs.pytorch.org/vision/stable/models.html"

PUBLISHED: list[Any] = [
    # to the last parameter
    pytest.param(WideResNet, {}, 36_479_194, id=f"WRN-28-10, CIFAR-10: {PYTORCHCV}"),
    pytest.param(WideResNet, {"num_classes": 100}, 36_536_884, id=f"WRN-28-10, CIFAR-100: {PYTORCHCV}"),
    pytest.param(DenseNetBC, {}, 25_624_430, id=f"DenseNet-BC-190-40, CIFAR-10: {PYTORCHCV}"),
    pytest.param(
        DenseNetBC, {"num_classes": 100}, 25_821_620, id=f"DenseNet-BC-190-40, CIFAR-100: {PYTORCHCV}"
    ),
    pytest.param(
        DenseNetBC, {"depth": 100, "growth": 12}, 769_162, id=f"DenseNet-BC-100-12, CIFAR-10: {PYTORCHCV}"
    ),
    pytest.param(PyramidNet, {}, 26_210_842, id=f"PyramidNet-272-200, CIFAR-10: {PYTORCHCV}"),
    pytest.param(
        PyramidNet, {"num_classes": 100}, 26_288_692, id=f"PyramidNet-272-200, CIFAR-100: {PYTORCHCV}"
    ),
    pytest.param(
        PyramidNet,
        {"num_classes": 100, "depth": 236, "alpha": 220},
        27_054_096,
        id=f"PyramidNet-236-220, CIFAR-100: {PYTORCHCV}",
    ),
    pytest.param(LeNet, {}, 62_006, id=f"LeNet-5, CIFAR-10: {KUANGLIU}"),
    pytest.param(
        ResNet50, {"num_classes": 10, "small": True}, 23_520_842, id=f"ResNet-50, CIFAR: {KUANGLIU}"
    ),
    pytest.param(
        DenseNet121, {"num_classes": 10, "small": True}, 6_956_298, id=f"DenseNet-121, CIFAR: {KUANGLIU}"
    ),
    pytest.param(
        VGG11,
        {"num_classes": 10, "small": True, "batch_norm": True},
        9_231_114,
        id=f"VGG-11, CIFAR: {KUANGLIU}",
    ),
    pytest.param(ResNet50, {}, 25_557_032, id=f"ResNet-50: {TORCHVISION}"),
    pytest.param(ResNet101, {}, 44_549_160, id=f"ResNet-101: {TORCHVISION}"),
    pytest.param(ResNeXt101, {}, 44_177_704, id="ResNeXt-101 32x4d: arXiv:1905.04899, table 3: 44.1M"),
    pytest.param(DenseNet121, {}, 7_978_856, id=f"DenseNet-121: {TORCHVISION}"),
    pytest.param(VGG11, {}, 132_863_336, id=f"VGG-11: {TORCHVISION}"),
    pytest.param(
        SEResNeXt50,
        {},
        27_559_896,
        marks=needs_timm,
        id="SE-ResNeXt-50: timm's results/model_metadata-in1k.csv",
    ),
    pytest.param(
        BERT,
        {},
        109_482_240 + 2 * (768 + 1),
        marks=needs_transformers,
        id="BERT-base uncased, 109.48M, with two classes: huggingface.co/bert-base-uncased",
    ),
]


@pytest.mark.parametrize(("kind", "arguments", "published"), PUBLISHED)
def test_a_network_has_as_many_parameters_as_published(
    kind: Callable[..., nn.Module], arguments: dict[str, Any], published: int
) -> None:
    with torch.device("meta"):
        assert count(kind(**arguments)) == published


# In millions, as the papers round them.
ROUNDED: list[Any] = [
    (WideResNet, {}, 36.5, "arXiv:1605.07146, table 5"),
    (DenseNetBC, {}, 25.6, "arXiv:1608.06993, table 2"),
    (PointNet, {"num_classes": 40}, 0.8, "arXiv:1612.00593, table 6, vanilla"),
    (PointNet, {"num_classes": 40, "align": True}, 3.5, "arXiv:1612.00593, table 6"),
    (ResNet101, {}, 44.5, "CutMix, arXiv:1905.04899, table 3: 44.6"),
]


@pytest.mark.parametrize(("kind", "arguments", "millions", "source"), ROUNDED)
def test_a_network_has_the_size_of_its_paper(
    kind: Callable[..., nn.Module], arguments: dict[str, Any], millions: float, source: str
) -> None:
    with torch.device("meta"):
        assert round(count(kind(**arguments)) / 1e6, 1) == millions


def test_pyramidnet_has_the_size_of_its_paper_but_for_how_widths_are_rounded() -> None:
    with torch.device("meta"):
        assert count(PyramidNet()) == pytest.approx(26.0e6, rel=0.01)  # arXiv:1610.02915, table 4


def test_preact_resnet_18_has_as_many_parameters_as_published() -> None:
    published = 11_171_146  # github.com/kuangliu/pytorch-cifar, which leaves out the last batch norm
    assert count(PreActResNet18()) == published + 2 * 512 == 11_172_170


def basic(before: int, width: int) -> int:
    """Return the parameters of a basic block, of the paper's figure 4."""
    norms, convolutions = 2 * before + 2 * width, 9 * before * width + 9 * width * width
    return norms + convolutions + (before * width if before != width else 0)


def bottleneck(before: int, width: int) -> int:
    """Return the parameters of a bottleneck block."""
    norms = 2 * before + 2 * width + 2 * width
    convolutions = before * width + 9 * width * width + 4 * width * width
    return norms + convolutions + (before * 4 * width if before != 4 * width else 0)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize(
    ("kind", "depths", "block", "expansion", "layers"),
    [
        (PreActResNet18, [2, 2, 2, 2], basic, 1, 18),
        (PreActResNet34, [3, 4, 6, 3], basic, 1, 34),
        (PreActResNet50, [3, 4, 6, 3], bottleneck, 4, 50),
    ],
)
def test_preact_resnets_have_the_layers_of_the_paper(
    kind: Callable[..., nn.Module],
    depths: list[int],
    block: Callable[[int, int], int],
    expansion: int,
    layers: int,
    classes: int,
) -> None:
    wanted, before = 27 * 64, 64
    for depth, width in zip(depths, (64, 128, 256, 512), strict=True):
        for _ in range(depth):
            wanted += block(before, width)
            before = expansion * width
    wanted += 2 * before + (before + 1) * classes
    with torch.device("meta"):
        network = kind(classes)
    assert count(network) == wanted
    convolutions = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    assert sum(not name.endswith("shortcut") for name in convolutions) + 1 == layers
    assert all(convolution.bias is None for convolution in convolutions.values())


def test_the_two_dimensional_form_has_the_layers_of_lamix() -> None:
    wanted = (512 + 1) * 2 + (2 + 1) * 100 + (100 + 1) * 512
    assert count(PreActResNet18In2D()) == count(PreActResNet18()) + wanted
    network = PreActResNet18In2D(width=2)
    plane = []
    network.get_submodule("plane").register_forward_hook(lambda module, args, output: plane.append(output))
    network(torch.rand(3, 3, 32, 32))
    assert plane[0].shape == (3, 2) and bool((plane[0].abs() < 1).all())


def test_preact_resnet_18_halves_the_image_three_times() -> None:
    network = PreActResNet18(width=4)
    sizes = {}
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: sizes.update({name: tuple(output.shape[1:])})
        )
    network(torch.rand(2, 3, 32, 32))
    assert sizes == {
        "conv1": (4, 32, 32),
        "layer1": (4, 32, 32),
        "layer2": (8, 16, 16),
        "layer3": (16, 8, 8),
        "layer4": (32, 4, 4),
    }


def test_small_cnn_has_three_convolutions_and_a_head() -> None:
    for classes, channels, width in ((10, 1, 16), (7, 3, 5)):
        wanted = sum(
            9 * before * after + 2 * after
            for before, after in ((channels, width), (width, 2 * width), (2 * width, 4 * width))
        )
        assert count(SmallCNN(classes, channels, width)) == wanted + (4 * width + 1) * classes


def test_the_text_networks_have_the_layers_of_fmix() -> None:
    with torch.device("meta"):
        head = 3 * 128 * 128 + 128 + 128 * 128 + 128 + 128 * 6 + 6
        convolutions = 3 * 300 * 128 + 128 + 2 * (3 * 128 * 128 + 128)
        assert count(TextCNN(6, tokens=1000)) == 1000 * 300 + convolutions + head
        head = 3 * 256 * 256 + 256 + 256 * 256 + 256 + 256 * 6 + 6
        lstm = sum(2 * 4 * 128 * (before + 128 + 2) for before in (300, 256))
        assert count(BiLSTM(6, tokens=1000)) == 1000 * 300 + lstm + head


def test_lenet_as_in_lamix_has_its_first_linear_layer() -> None:
    network = LeNet(100, padded=True)  # 576 features: github.com/facebookresearch/mixup-cifar10
    assert [m.in_features for m in network.modules() if isinstance(m, nn.Linear)] == [576, 120, 84]


# --- what all have in common --------------------------------------------------------------------------------


def images(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.rand(n, *shape)


def tokens(n: int) -> Tensor:
    return torch.randint(1, 20, (n, 6))


def voxels(n: int) -> Tensor:
    return (torch.rand(n, 1, 6, 6, 6) < 0.3).float()


# Each with 5 classes, small, and the inputs of n samples.
SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "SmallCNN": (lambda: SmallCNN(5, 3, 4), images(3, 16, 16)),
    "PreActResNet18": (lambda: PreActResNet18(5, 3, 4), images(3, 16, 16)),
    "PreActResNet18, odd": (lambda: PreActResNet18(5, 2, 4), images(2, 9, 13)),
    "PreActResNet18, spectrograms": (lambda: PreActResNet18(5, 1, 4), images(1, 32, 32)),
    "PreActResNet18, dropout": (lambda: PreActResNet18(5, 3, 4, dropout=0.3), images(3, 16, 16)),
    "PreActResNet18In2D": (lambda: PreActResNet18In2D(5, 3, 4), images(3, 16, 16)),
    "PreActResNet34": (lambda: PreActResNet34(5, 3, 2), images(3, 16, 16)),
    "PreActResNet50": (lambda: PreActResNet50(5, 3, 2), images(3, 16, 16)),
    "WideResNet": (lambda: WideResNet(5, 3, depth=10, widen=1), images(3, 16, 16)),
    "DenseNetBC": (lambda: DenseNetBC(5, 3, depth=10, growth=4), images(3, 16, 16)),
    "DenseNetBC, memory": (
        lambda: DenseNetBC(5, 3, depth=10, growth=4, memory_efficient=True),
        images(3, 16, 16),
    ),
    "DenseNet121": (lambda: DenseNet121(5, 3, small=True, growth=2), images(3, 32, 32)),
    "DenseNet121, large": (lambda: DenseNet121(5, 1, growth=2), images(1, 64, 64)),
    "PyramidNet": (lambda: PyramidNet(5, 3, depth=20, alpha=8, drop=0), images(3, 16, 16)),
    "PyramidNet, odd": (lambda: PyramidNet(5, 1, depth=11, alpha=8, drop=0), images(1, 9, 13)),
    "LeNet": (lambda: LeNet(5), images(3, 32, 32)),
    "LeNet, spectrograms": (lambda: LeNet(5, 1, (28, 20), padded=True), images(1, 28, 20)),
    "ResNet50": (lambda: ResNet50(5, 1, small=True), images(1, 16, 16)),
    "VGG11": (lambda: VGG11(5, 1, small=True, batch_norm=True), images(1, 32, 32)),
    "PointNet": (lambda: PointNet(5, dropout=0, width=32), images(3, 9)),
    "PointNet, aligned": (lambda: PointNet(5, align=True, dropout=0, width=32), images(3, 9)),
    "VoxelPointNet": (lambda: VoxelPointNet(5, points=50, dropout=0, width=32), voxels),
    "TextCNN": (lambda: TextCNN(5, tokens=20, size=4, width=6), tokens),
    "BiLSTM": (lambda: BiLSTM(5, tokens=20, size=4, width=6), tokens),
    "SideBySide": (lambda: SideBySide([SmallCNN(2, 3, 4), SmallCNN(3, 3, 4)]), images(3, 16, 16)),
}
LIBRARIES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "SEResNeXt50": (lambda: SEResNeXt50(5, 1), images(1, 32, 32)),
    "BERT": (lambda: BERT(5, tokens=20, layers=2, heads=2, width=8), tokens),
}
ALL = [
    *SMALL,
    pytest.param("SEResNeXt50", marks=needs_timm),
    pytest.param("BERT", marks=needs_transformers),
]


@pytest.mark.parametrize("name", ALL)
def test_logits_have_a_row_for_each_sample_and_gradients_reach_every_parameter(name: str) -> None:
    make, draw = {**SMALL, **LIBRARIES}[name]
    network = make()
    logits = network(draw(8))
    assert logits.shape == (8, 5) and logits.dtype == torch.float32
    (logits * torch.randn(8, 5)).sum().backward()
    for part, parameter in network.named_parameters():
        assert parameter.grad is not None, part
        assert bool(parameter.grad.isfinite().all()), part


# Behind batch norm without an affine part of its own, or a ReLU that is shut, a gradient may be exactly 0.
@pytest.mark.parametrize("name", ["PreActResNet18", "SmallCNN", "WideResNet", "DenseNetBC", "PyramidNet"])
def test_no_gradient_is_zero(name: str) -> None:
    make, draw = SMALL[name]
    network = make()
    (network(draw(8)) * torch.randn(8, 5)).sum().backward()
    for part, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), part


@pytest.mark.parametrize("name", ALL)
def test_in_evaluation_samples_do_not_see_each_other_and_nothing_is_drawn(name: str) -> None:
    make, draw = {**SMALL, **LIBRARIES}[name]
    network, x = make().eval(), draw(3)
    with torch.no_grad():
        first = network(x)
        assert torch.equal(network(x), first)
        torch.testing.assert_close(torch.cat([network(one[None]) for one in x]), first, rtol=1e-3, atol=1e-4)


STAGES = {
    "PreActResNet18": [f"layer{i}" for i in range(1, 5)],
    "PreActResNet18In2D": [f"layer{i}" for i in range(1, 5)],
    "PreActResNet50": [f"layer{i}" for i in range(1, 5)],
    "WideResNet": [f"layer{i}" for i in range(1, 4)],
    "PyramidNet": [f"layer{i}" for i in range(1, 4)],
    "ResNet50": [f"layer{i}" for i in range(1, 5)],
    "DenseNet121": [f"features.denseblock{i}" for i in range(1, 5)],
    "DenseNetBC": [f"features.denseblock{i}" for i in range(1, 4)],
    "LeNet": ["layer1", "layer2"],
    "TextCNN": [f"layer{i}" for i in range(1, 4)],
    "PointNet": ["layer1", "layer2"],
}


@pytest.mark.parametrize("name", STAGES)
def test_the_stages_are_found(name: str) -> None:
    assert find_stages(SMALL[name][0]()) == STAGES[name]


@needs_timm
def test_the_stages_of_the_library_are_found() -> None:
    with torch.device("meta"):
        assert find_stages(SEResNeXt50()) == [f"backbone.layer{i}" for i in range(1, 5)]


@pytest.mark.parametrize("kind", [DenseNet121, ResNet50, VGG11])
def test_the_small_form_sees_more_of_a_small_image(kind: Callable[..., nn.Module]) -> None:
    """Its stem halves nothing."""
    sizes = []
    for small in (False, True):
        with torch.device("meta"):
            network = kind(10, small=small)
            last = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
            last.register_forward_hook(lambda module, args, output: sizes.append(output.shape[-1]))
            network.eval()(torch.rand(1, 3, 64, 64))
    assert sizes == ([4, 4] if kind is VGG11 else [2, 8])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WideResNet(depth=29), "depth=29 is not the depth of a Wide ResNet"),
        (lambda: DenseNetBC(depth=100 + 1), "depth=101 is not the depth of a DenseNet-BC"),
        (lambda: PyramidNet(depth=2), "depth=2 is not the depth of a PyramidNet"),
        (lambda: LeNet(size=(32, 12)), r"size=\(32, 12\) is too small for LeNet"),
        (lambda: ShakeDrop(1.5), r"keep=1\.5 is out of range"),
        (lambda: PointNet(width=100), "width=100 must be a multiple of 16"),
        (lambda: VoxelsToPoints(0), "points=0 is out of range"),
        (lambda: VoxelsToPoints()(torch.rand(2, 3, 8)), r"and these of \(2, 3, 8\)"),
        (lambda: SideBySide([SmallCNN()], []), "There are 0 checkpoints for 1 networks"),
    ],
)
def test_what_makes_no_network_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("kind", "package"), [(SEResNeXt50, "timm"), (BERT, "transformers")])
def test_what_is_not_installed_is_named(
    kind: Callable[[], nn.Module], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-msda\[experiments\]'"):
        kind()


def test_dropout_acts_between_the_convolutions_of_each_block() -> None:
    network = PreActResNet18(5, 3, 4, dropout=0.7)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.7] * 8
    shares = []
    for name, module in network.named_modules():
        if name.endswith("conv2"):
            module.register_forward_pre_hook(
                lambda module, args: shares.append((args[0] == 0).double().mean())
            )
    network(torch.rand(32, 3, 32, 32))
    assert len(shares) == 8
    # Batch norm and ReLU leave about a half of the features, of which three in ten stay.
    assert all(0.75 < share < 0.95 for share in shares)
