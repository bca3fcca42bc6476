"""Word vectors that the data module read, in the embedding of the network."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

__all__ = ["take_word_vectors"]


def take_word_vectors(task: LightningModule) -> None:
    """Write the data module's ``vectors``, if it has any, into ``network.embedding`` of a task.

    Words without a vector are drawn from a normal law with the standard deviation of the others; the vector
    of id 0, the padding, stays zero. A checkpoint that is loaded later has its own.

    Args:
        task: The task, which is attached to a trainer; its network is changed in place.

    Raises:
        ValueError: If they do not fit the embedding.
    """
    vectors: Tensor | None = getattr(task.trainer.datamodule, "vectors", None)  # type: ignore[attr-defined]
    if vectors is None:
        return
    weight = task.get_submodule("network.embedding").weight
    assert isinstance(weight, Tensor)
    if len(vectors) > len(weight) or vectors.shape[1] != weight.shape[1]:
        raise ValueError(
            f"The data module has vectors {tuple(vectors.shape)}, and the network's embedding is"
            f" {tuple(weight.shape)}: write size={vectors.shape[1]} and tokens={len(vectors)} for it."
        )
    found = vectors.any(1)
    with torch.no_grad():
        weight[1:].normal_(std=float(vectors[found].std()))
        weight[: len(vectors)][found] = vectors[found].to(weight)
