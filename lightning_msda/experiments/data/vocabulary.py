"""Words as numbers, and their FastText vectors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from lightning_msda.experiments.data.files import damaged

__all__ = ["PADDING", "UNKNOWN", "Vocabulary", "read_vectors", "words_of"]

PADDING, UNKNOWN = 0, 1


def words_of(text: str) -> list[str]:
    """Split a text into words and marks, in lower case.

    Args:
        text: The text.

    Example:
        >>> words_of("It's GOOD, very!")
        ["it's", 'good', ',', 'very', '!']
    """
    return re.findall(r"\w+(?:'\w+)*|[^\w\s]", text.lower())


class Vocabulary:
    """The most frequent words of a training set; 0 is padding and 1 any other word.

    Args:
        texts: The training set.
        size: How many numbers there are at most.
    """

    def __init__(self, texts: Iterable[str], size: int) -> None:
        counts = Counter(word for text in texts for word in words_of(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        self.words = ["<padding>", "<unknown>", *ranked[: size - 2]]
        self.number_of = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str, length: int) -> Tensor:
        """Return the numbers of a text's first words; of an empty text, one unknown word.

        Args:
            text: The text.
            length: How many words are kept.
        """
        numbers = [self.number_of.get(word, UNKNOWN) for word in words_of(text)[:length]]
        return torch.tensor(numbers or [UNKNOWN], dtype=torch.int32)


def read_vectors(path: Path, vocabulary: Vocabulary) -> Tensor:
    """Read the vectors of a vocabulary's words from a file of FastText's text format.

    Args:
        path: The file, such as ``wiki.simple.vec``.
        vocabulary: The words; a word without a vector gets zeros, as padding does.

    Returns:
        Shape ``(words, dimensions)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing. Fetch a .vec file from https://fasttext.cc/docs/en/pretrained-vectors.html, "
            "and say vectors=FILE."
        )
    with path.open(encoding="utf8", newline="\n") as file:
        try:
            count, dimensions = (int(number) for number in next(file).split())
            vectors, read = torch.zeros(len(vocabulary), dimensions), 0
            for line in file:
                word, *values = line.rstrip("\n ").rsplit(" ", dimensions)
                if word in vocabulary.number_of:
                    vectors[vocabulary.number_of[word]] = torch.tensor([float(value) for value in values])
                read += 1
        except (ValueError, RuntimeError, StopIteration) as error:
            raise damaged(
                path, "it is no text file of vectors that begins with their number and size"
            ) from error
    if read != count:
        raise damaged(path, f"it has {read} of {count} vectors")
    return vectors
