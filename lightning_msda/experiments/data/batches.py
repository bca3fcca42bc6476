"""Batches of texts: of similar length, padded to the longest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler, Sampler
from typing_extensions import override

from lightning_msda.experiments.data.vocabulary import PADDING

__all__ = ["SimilarLengths", "pad_pairs", "pad_tokens"]


class SimilarLengths(BatchSampler):
    """Batches of samples of similar length, others in each epoch.

    A hundred batches at a time are taken as the sampler draws them, sorted by length, and cut; the batch
    with the first drawn sample comes first. All randomness is the sampler's: where Lightning puts a
    distributed sampler in its place, each process sorts its own share and all have as many batches.

    Args:
        sampler: Draws samples.
        batch_size: Samples in a batch; the last batch of all may have fewer.
        drop_last: Whether to leave out the last batch if it has fewer.
        lengths: The lengths of all samples.
    """

    def __init__(
        self, sampler: Sampler[int], batch_size: int, drop_last: bool, lengths: Sequence[int]
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.lengths = lengths

    @override
    def __iter__(self) -> Iterator[list[int]]:
        pool: list[int] = []
        for index in self.sampler:
            pool.append(index)
            if len(pool) == 100 * self.batch_size:
                yield from self._cut(pool)
                pool = []
        yield from self._cut(pool)

    def _cut(self, pool: list[int]) -> list[list[int]]:
        size = self.batch_size
        kept = pool[: len(pool) // size * size] if self.drop_last else pool
        drawn = {index: place for place, index in reversed(list(enumerate(kept)))}
        ordered = sorted(kept, key=lambda index: self.lengths[index])
        batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        return sorted(batches, key=lambda batch: min(drawn[index] for index in batch))


def pad_pairs(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return words, shape ``(N, T)``, and labels of samples.

    Args:
        samples: Words and label of each.
    """
    words = pad_sequence([words for words, _ in samples], batch_first=True, padding_value=PADDING)
    return words.long(), torch.stack([label for _, label in samples])


def pad_tokens(samples: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return a batch as models of transformers take it: ``input_ids``, ``attention_mask`` and ``labels``.

    Args:
        samples: Tokens and label of each.
    """
    tokens, labels = pad_pairs(samples)
    real = pad_sequence([torch.ones(len(tokens)) for tokens, _ in samples], batch_first=True)
    return {"input_ids": tokens, "attention_mask": real.long(), "labels": labels}
