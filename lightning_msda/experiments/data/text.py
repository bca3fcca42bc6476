"""What data modules of texts have in common: words or tokens, and batches of similar length."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset
from typing_extensions import override

from lightning_msda.experiments.data.base import DataModule, Splits
from lightning_msda.experiments.data.batches import SimilarLengths, pad_pairs, pad_tokens
from lightning_msda.experiments.data.files import Source, needs_extra
from lightning_msda.experiments.data.vocabulary import Vocabulary, read_vectors

__all__ = ["Labelled", "TextData"]


class Labelled(NamedTuple):
    """Texts and their labels: classes, or for each text its values of several labels."""

    texts: list[str]
    labels: Sequence[Any]


class TextData(DataModule):
    """Texts, in training in batches of similar length, padded to the longest.

    A batch is a pair ``(words, labels)``, or with ``tokenizer`` a dict of ``input_ids``, ``attention_mask``
    and ``labels``. Words are numbers below ``words``: 0 is padding, 1 a word that is not among the most
    frequent ones of the training set. It is validated and tested on the published test set.

    Args:
        root: The folder of all data sets.
        words: How many numbers of words there are at most, ``num_embeddings`` of an embedding.
        vectors: A file of FastText vectors; ``data.vectors`` has those of the words, shape
            ``(words, dimensions)``. None: an embedding is learned.
        tokenizer: A tokenizer of transformers, by name or folder, such as ``bert-base-uncased``; None: words.
        max_length: How many words or tokens of a text are kept.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.

    Raises:
        FileNotFoundError: If the data set is missing and cannot be downloaded.
        ModuleNotFoundError: If a tokenizer is asked for and transformers is not installed.
        ValueError: If an argument is out of range, or a file is damaged.
    """

    source: Source

    def __init__(
        self,
        root: str = "data",
        words: int = 30000,
        vectors: str | None = None,
        tokenizer: str | None = None,
        max_length: int = 400,
        batch_size: int = 64,
        workers: int = 0,
        train_size: int | None = None,
    ) -> None:
        super().__init__(batch_size, workers, train_size)
        if words < 3 or max_length < 1:
            raise ValueError(f"words={words} must be from 3 and max_length={max_length} from 1.")
        if vectors and tokenizer:
            raise ValueError(
                f"vectors={vectors!r} belong to words: leave out tokenizer={tokenizer!r}, or them."
            )
        self.root = root
        self.words = words
        self.vectors_file = vectors
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vectors: Tensor | None = None

    @abstractmethod
    def read(self) -> tuple[Labelled, Labelled]:
        """Read the training and the test set."""

    @override
    def prepare_data(self) -> None:
        self.source.fetch(self.root)
        self.read()

    @override
    def splits(self) -> Splits:
        train, test = self.read()
        encode = self._tokens() if self.tokenizer else self._numbers(train.texts)
        parts = [Texts(encode(part.texts), torch.tensor(part.labels)) for part in (train, test)]
        return Splits(parts[0], parts[1], parts[1])

    def _numbers(self, texts: list[str]) -> Any:
        self.vocabulary = Vocabulary(texts, self.words)
        if self.vectors_file:
            self.vectors = read_vectors(Path(self.vectors_file), self.vocabulary)
        return lambda texts: [self.vocabulary.encode(text, self.max_length) for text in texts]

    def _tokens(self) -> Any:
        try:
            from transformers import AutoTokenizer
        except ModuleNotFoundError as error:
            raise needs_extra(f"tokenizer={self.tokenizer!r}", "transformers") from error
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)

        def encode(texts: list[str]) -> list[Tensor]:
            found = tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
            return [torch.tensor(tokens, dtype=torch.int32) for tokens in found]

        return encode

    @override
    def loader(self, data: Any, **options: Any) -> DataLoader[Any]:
        collate = pad_tokens if self.tokenizer else pad_pairs
        return super().loader(data, collate_fn=collate, **options)

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        batches = SimilarLengths(
            RandomSampler(self.train),
            batch_size=self.batch_size,
            drop_last=False,
            lengths=_lengths(self.train),
        )
        return self.loader(self.train, batch_sampler=batches)


class Texts(Dataset[Any]):
    """Encoded texts and their labels.

    Args:
        texts: Numbers of words or tokens of each.
        targets: Classes, shape ``(n,)``, or values of several labels, ``(n, k)``.
    """

    def __init__(self, texts: list[Tensor], targets: Tensor) -> None:
        self.texts = texts
        self.targets = targets

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.texts[index], self.targets[index]


def _lengths(data: Any) -> list[int]:
    if isinstance(data, Subset):
        return [len(data.dataset.texts[i]) for i in data.indices]  # type: ignore[attr-defined]
    return [len(text) for text in data.texts]
