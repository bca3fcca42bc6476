"""The networks for text: padding, ends of mixed texts, word vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_msda.experiments.models import BERT, BiLSTM, TextCNN


def make(kind: Callable[..., nn.Module]) -> nn.Module:
    """Return a small network in evaluation."""
    if kind is BERT:
        pytest.importorskip("transformers")
        return BERT(5, tokens=20, layers=2, heads=2, width=8).eval()
    return kind(5, tokens=20, size=4, width=6).eval()


@pytest.mark.parametrize("kind", [TextCNN, BiLSTM, BERT])
def test_longer_padding_changes_nothing(kind: Callable[..., nn.Module]) -> None:
    network = make(kind)
    texts = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 0, 0, 0]])
    logits = network(texts)
    padded = network(torch.cat([texts, torch.zeros(3, 5, dtype=torch.int64)], 1))
    torch.testing.assert_close(padded, logits)
    torch.testing.assert_close(network(texts[1:2, :2]), logits[1:2])
    assert bool(network(torch.zeros(1, 3, dtype=torch.int64)).isfinite().all())


@pytest.mark.parametrize("kind", [TextCNN, BiLSTM])
def test_a_text_that_is_mixed_at_the_embedding_is_as_long_as_the_longer(
    kind: Callable[..., nn.Module],
) -> None:
    network = make(kind)
    texts = torch.tensor([[3, 4, 0, 0, 0], [5, 6, 7, 8, 0]])
    vectors: list[Tensor] = []

    def mix(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        vectors.append(0.5 * output + 0.5 * output.flip(0))
        return vectors[-1]

    handle = network.get_submodule("embedding").register_forward_hook(mix)
    logits = network(texts)
    handle.remove()
    torch.testing.assert_close(logits[0], logits[1])  # halves of both: the one's end is not the other's
    network.get_submodule("embedding").register_forward_hook(lambda m, args, output: vectors[0][:, :4])
    torch.testing.assert_close(network(texts), logits)


def write(folder: Path, vectors: str, words: str = "<pad>\nle\nété\nx y\nchat\n") -> dict[str, str]:
    (folder / "words.txt").write_text(words, encoding="utf-8")
    (folder / "some.vec").write_text(vectors, encoding="utf-8")
    return {"words": str(folder / "words.txt"), "vectors": str(folder / "some.vec")}


@pytest.mark.parametrize("header", ["3 2\n", ""])
@pytest.mark.parametrize("kind", [TextCNN, BiLSTM])
def test_word_vectors_are_read(kind: Callable[..., nn.Module], header: str, tmp_path: Path) -> None:
    files = write(tmp_path, f"{header}chat 1.5 -2 \nchien 7 7\nété 0.25 1e-1\n")
    weight = kind(tokens=8, size=2, **files).get_submodule("embedding").get_parameter("weight")
    torch.testing.assert_close(weight[4], torch.tensor([1.5, -2.0]))
    torch.testing.assert_close(weight[2], torch.tensor([0.25, 0.1]))
    assert torch.equal(weight[0], torch.zeros(2))
    assert bool((weight[[1, 3, 5, 6, 7]] != 0).all())


def test_words_without_a_vector_are_drawn_as_wide_as_the_others(tmp_path: Path) -> None:
    rows = 0.01 * torch.randn(50, 20)
    lines = [f"w{i} " + " ".join(f"{value:.6f}" for value in row) for i, row in enumerate(rows.tolist())]
    files = write(tmp_path, "\n".join(lines), "\n".join(["<pad>", *(f"w{i}" for i in range(500))]))
    weight = TextCNN(tokens=501, size=20, vectors=files["vectors"], words=files["words"]).embedding.weight
    assert float(weight[51:].detach().std()) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        (
            "chat 1 2",
            {"size": 3},
            "has 2 numbers for the word 'chat', and the embedding takes 3: write size=2",
        ),
        ("chien 1 2", {"size": 2}, "has none of the words of"),
        (
            "chat 1 2",
            {"size": 2, "tokens": 3},
            "ids up to 4, and the embedding has 3 rows: write tokens=5",
        ),
        ("chat 1 2", {"size": 2, "words": None}, "words=None does not tell which word an id stands for"),
    ],
)
def test_word_vectors_that_do_not_fit_are_refused(
    vectors: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"tokens": 8, **write(tmp_path, vectors), **options}
    with pytest.raises(ValueError, match=message):
        TextCNN(**arguments)
