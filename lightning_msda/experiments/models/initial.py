"""How weights begin."""

from __future__ import annotations

from torch import nn

__all__ = ["he_normal"]


def he_normal(network: nn.Module) -> None:
    """Draw the weights of all 2-D convolutions from N(0, 2 / fan-out) (He et al., ICCV 2015).

    Args:
        network: The network, changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
