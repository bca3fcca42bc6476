"""The networks: sizes as published, shapes, gradients to every parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_msda.experiments.models import PreActResNet18, SmallCNN


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_preact_resnet_18_has_as_many_parameters_as_published() -> None:
    published = 11_171_146  # github.com/kuangliu/pytorch-cifar, which leaves out the last batch norm
    assert count(PreActResNet18()) == published + 2 * 512 == 11_172_170


def test_preact_resnet_18_has_the_layers_of_the_paper() -> None:
    def block(before: int, width: int) -> int:
        norms, convolutions = 2 * before + 2 * width, 9 * before * width + 9 * width * width
        return norms + convolutions + (before * width if before != width else 0)

    stages = [(64, 64), (64, 128), (128, 256), (256, 512)]
    blocks = sum(block(before, width) + block(width, width) for before, width in stages)
    for classes in (10, 100):
        assert count(PreActResNet18(classes)) == 27 * 64 + blocks + 2 * 512 + (512 + 1) * classes
    network = PreActResNet18()
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 17
    assert sum(isinstance(m, nn.Conv2d) and m.bias is not None for m in network.modules()) == 0


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


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (9, 13)], ids=str)
@pytest.mark.parametrize("kind", [SmallCNN, PreActResNet18])
def test_logits_have_a_row_for_each_sample(
    kind: type[SmallCNN | PreActResNet18], size: tuple[int, int]
) -> None:
    network = kind(7, 2, 4)
    logits = network(torch.rand(3, 2, *size))
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("kind", [SmallCNN, PreActResNet18])
def test_every_parameter_gets_a_gradient(kind: type[SmallCNN | PreActResNet18]) -> None:
    network = kind(5, 3, 4)
    network(torch.rand(4, 3, 16, 16)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize("kind", [SmallCNN, PreActResNet18])
def test_in_evaluation_samples_do_not_see_each_other(kind: type[SmallCNN | PreActResNet18]) -> None:
    network = kind(5, 3, 4).eval()
    x = torch.rand(4, 3, 16, 16)
    alone = torch.cat([network(image[None]) for image in x])
    torch.testing.assert_close(network(x), alone)
