"""Networks for text, on word vectors (FMix, arXiv:2002.12047, section V.D)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from typing_extensions import override

__all__ = ["BiLSTM", "TextCNN", "load_vectors"]


class _TextNetwork(nn.Module):
    """Word vectors, an encoder, the mean, largest and last of its features, and three linear layers.

    A text ends with its last vector that is not zero, as only that of id 0 is. So the ends of texts that are
    mixed at ``embedding`` are those of the mixture.
    """

    def __init__(
        self, num_classes: int, tokens: int, size: int, features: int, vectors: str | None, words: str | None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, size, padding_idx=0)
        if vectors is not None:
            load_vectors(self.embedding, vectors, words)
        self.head = nn.Sequential(
            nn.Linear(3 * features, features),
            nn.ReLU(),
            nn.Linear(features, features),
            nn.ReLU(),
            nn.Linear(features, num_classes),
        )

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        places = torch.arange(x.shape[1], device=x.device)
        lengths = ((x != 0).any(2) * (places + 1)).amax(1).clamp(min=1)
        inside = (places < lengths[:, None])[..., None]
        x = self.encode(x, lengths, inside)
        mean = (x * inside).sum(1) / lengths[:, None]
        largest = x.masked_fill(~inside, -torch.inf).amax(1)
        last = x[torch.arange(len(x), device=x.device), lengths - 1]
        logits: Tensor = self.head(torch.cat([mean, largest, last], 1))
        return logits

    def encode(self, x: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
        """Return features ``(N, T, F)``.

        Args:
            x: Word vectors, shape ``(N, T, E)``.
            lengths: Lengths of the texts, shape ``(N,)``.
            inside: Whether a place is inside of its text, shape ``(N, T, 1)``.
        """
        raise NotImplementedError


class TextCNN(_TextNetwork):
    """Three convolutions over word vectors, for token ids ``(N, T)``, 0 for padding at the end.

    Args:
        num_classes: Number of classes.
        tokens: Number of tokens that are known.
        vectors: File of trained word vectors in FastText's text format, such as ``crawl-300d-2M.vec``.
            Default: untrained.
        words: File of the tokens' words, each on a line, in the order of their ids; needed with ``vectors``.
        size: Size of a word vector.
        width: Channels of the convolutions.
    """

    def __init__(
        self,
        num_classes: int = 2,
        tokens: int = 30_000,
        vectors: str | None = None,
        words: str | None = None,
        size: int = 300,
        width: int = 128,
    ) -> None:
        super().__init__(num_classes, tokens, size, width, vectors, words)
        self.layer1 = nn.Conv1d(size, width, 3, padding=1)
        self.layer2 = nn.Conv1d(width, width, 3, padding=1)
        self.layer3 = nn.Conv1d(width, width, 3, padding=1)

    @override
    def encode(self, x: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer((x * inside).transpose(1, 2)).relu().transpose(1, 2)
        return x


class BiLSTM(_TextNetwork):
    """Two bidirectional LSTM layers over word vectors, for token ids ``(N, T)``, 0 for padding at the end.

    Args:
        num_classes: Number of classes.
        tokens: Number of tokens that are known.
        vectors: File of trained word vectors in FastText's text format, such as ``crawl-300d-2M.vec``.
            Default: untrained.
        words: File of the tokens' words, each on a line, in the order of their ids; needed with ``vectors``.
        size: Size of a word vector.
        width: Size of the hidden state of a direction.
    """

    def __init__(
        self,
        num_classes: int = 2,
        tokens: int = 30_000,
        vectors: str | None = None,
        words: str | None = None,
        size: int = 300,
        width: int = 128,
    ) -> None:
        super().__init__(num_classes, tokens, size, 2 * width, vectors, words)
        self.lstm = nn.LSTM(size, width, num_layers=2, bidirectional=True, batch_first=True)

    @override
    def encode(self, x: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        features, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return features


def load_vectors(embedding: nn.Embedding, vectors: str, words: str | None) -> None:
    """Write trained word vectors into an embedding.

    Words without a vector are drawn from a normal law with the standard deviation of the others; the vector
    of id 0, the padding, stays zero.

    Args:
        embedding: The embedding, changed in place.
        vectors: File with a line for each word, the word and its numbers, after a line with their counts, if
            any.
        words: File of the words of the ids, each on a line.

    Raises:
        ValueError: If the files do not fit each other or the embedding.
    """
    if words is None:
        raise ValueError(
            f"vectors={vectors!r} are those of words, and words=None does not tell which word an id stands"
            " for: name a file with the words, each on a line, in the order of their ids."
        )
    ids = {word: i for i, word in enumerate(Path(words).read_text(encoding="utf-8").splitlines()) if i > 0}
    tokens, size = embedding.weight.shape
    if len(ids) > tokens - 1:
        raise ValueError(
            f"The words of {words} have ids up to {len(ids)}, and the embedding has {tokens} rows: write"
            f" tokens={len(ids) + 1}."
        )
    found: dict[int, list[float]] = {}
    with Path(vectors).open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            word, *numbers = line.rstrip().split(" ")
            if len(numbers) <= 1 or word not in ids:  # the line with the counts, or of no use
                continue
            if len(numbers) != size:
                raise ValueError(
                    f"{vectors} has {len(numbers)} numbers for the word {word!r}, and the embedding takes"
                    f" {size}: write size={len(numbers)}."
                )
            found[ids[word]] = [float(number) for number in numbers]
    if not found:
        raise ValueError(f"{vectors} has none of the words of {words}: are they in the same language?")
    rows = torch.tensor(list(found.values()))
    with torch.no_grad():
        embedding.weight[1:].normal_(std=float(rows.std()))
        embedding.weight[list(found)] = rows
