"""Networks that were trained apart, as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

__all__ = ["SideBySide"]


class SideBySide(nn.Module):
    """Several networks with the same inputs, the logits of each after those of the one before.

    So models that were trained apart are evaluated together: with one for each part of a grapheme, the
    accuracy of `Graphemes` is that of table IV of FMix (arXiv:2002.12047).

    Args:
        networks: The networks; each returns logits ``(N, its classes)``.
        checkpoints: Lightning's checkpoints of tasks whose ``network`` they are, one for each. Default:
            untrained.

    Raises:
        ValueError: If there are not as many checkpoints as networks.
    """

    def __init__(self, networks: Sequence[nn.Module], checkpoints: Sequence[str] | None = None) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        if checkpoints is None:
            return
        if len(checkpoints) != len(networks):
            raise ValueError(
                f"There are {len(checkpoints)} checkpoints for {len(networks)} networks: name one for each,"
                " in the same order."
            )
        for network, path in zip(networks, checkpoints, strict=True):
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            prefix = "network."
            network.load_state_dict(
                {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], 1)
