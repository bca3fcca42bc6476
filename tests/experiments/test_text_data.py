"""Texts: read from files of their original formats, as words or tokens, in batches of similar length."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.utils.data import RandomSampler, SequentialSampler

from lightning_msda import CutMix
from lightning_msda.experiments.data import (
    IMDbData,
    RTPolarityData,
    ToxicCommentsData,
    TRECData,
    YelpFullData,
    YelpPolarityData,
)
from lightning_msda.experiments.data.batches import SimilarLengths
from lightning_msda.experiments.data.text import TextData
from lightning_msda.experiments.data.vocabulary import Vocabulary, read_vectors
from tests.experiments.tools import made, real, unplugged
from tests.tools import workplace as workplace

WORDS = "bad film good the a was very not film film".split()
COLUMNS = "toxic severe_toxic obscene threat insult identity_hate".split()


def text(number: int) -> str:
    """Return a text that says by its words and its length who it is."""
    return " ".join([f"Text{number},", *(WORDS[i % 10] for i in range(number % 13 + 1))]) + "."


def write_imdb(root: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for part, count in (("train", 10), ("test", 4)):
        for label, (folder, rating) in enumerate((("neg", 2), ("pos", 9))):
            place = root / "aclImdb" / part / folder
            place.mkdir(parents=True)
            for i in range(count):
                content = text(i + 20 * label) + "<br />Ça va."
                (place / f"{i}_{rating}.txt").write_text(content, encoding="utf8")
                parts[part].append((content, label))
        (root / "aclImdb" / part / "urls_pos.txt").write_text("http")
    unlabelled = root / "aclImdb" / "train" / "unsup"
    unlabelled.mkdir()
    (unlabelled / "0_0.txt").write_text("unlabelled")
    return parts["train"], parts["test"]


def write_yelp(root: Path, folder: str, classes: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    (root / folder).mkdir(parents=True)
    parts = []
    for part, count in (("train", 20), ("test", 7)):
        rows = [(f'{text(i)} "so", they say', i % classes) for i in range(count)]
        lines = ['"{}","{}\\n"'.format(y + 1, x.replace('"', '""')) for x, y in rows]
        (root / folder / f"{part}.csv").write_text("\n".join(lines) + "\n", encoding="utf8")
        parts.append([(f"{x} ", y) for x, y in rows])
    return parts[0], parts[1]


def write_toxic(root: Path) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    folder = root / "jigsaw-toxic-comment-classification-challenge"
    folder.mkdir(parents=True)
    train = [(f'{text(i)}\n"quoted", é', [int(i % (k + 2) == 0) for k in range(6)]) for i in range(20)]
    test = [(text(i), [int(i == k) for k in range(6)] if i % 2 else [-1] * 6) for i in range(8)]
    with (folder / "train.csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["id", "comment_text", *COLUMNS])
        writer.writerows([f"{i:016x}", x, *y] for i, (x, y) in enumerate(train))
    with (folder / "test.csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "comment_text"])
        writer.writerows([f"{i:016x}", x] for i, (x, _) in enumerate(test))
    with (folder / "test_labels.csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *COLUMNS])
        writer.writerows([f"{i:016x}", *y] for i, (_, y) in enumerate(test))
    return train, [(x, y) for x, y in test if -1 not in y]


def write_trec(root: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    (root / "trec").mkdir(parents=True)
    parts = []
    for name, count in (("train_5500.label", 18), ("TREC_10.label", 6)):
        rows = [(f"What is {text(i)} caf\u00e9 ?", i % 6) for i in range(count)]
        lines = [f"{TRECData.classes[y]}:detail {x}\n" for x, y in rows]
        (root / "trec" / name).write_bytes("".join(lines).encode("latin1"))
        parts.append(rows)
    return parts[0], parts[1]


SETS: dict[type[TextData], Callable[[Path], Any]] = {
    IMDbData: write_imdb,
    YelpPolarityData: lambda root: write_yelp(root, "yelp_review_polarity_csv", 2),
    YelpFullData: lambda root: write_yelp(root, "yelp_review_full_csv", 5),
    ToxicCommentsData: write_toxic,
    TRECData: write_trec,
}


@pytest.mark.parametrize("kind", SETS)
def test_texts_and_labels_are_those_of_the_files(kind: Any, tmp_path: Path) -> None:
    expected = SETS[kind](tmp_path)
    data = kind(root=str(tmp_path))
    for part, pairs in zip(data.read(), expected, strict=True):
        assert sorted(zip(part.texts, map(str, part.labels), strict=True)) == sorted(
            (x, str([float(v) for v in y] if isinstance(y, list) else y)) for x, y in pairs
        )
    data = made(data)
    assert len(data.train) == len(expected[0]) and len(data.test) == len(expected[1])
    x, y = next(iter(data.train_dataloader()))
    assert x.dtype == torch.int64 and x.dim() == 2
    assert y.dtype == (torch.float32 if kind is ToxicCommentsData else torch.int64)
    assert y.shape[1:] == ((6,) if kind is ToxicCommentsData else ())
    assert len(data.classes) == (6 if kind is ToxicCommentsData else int(y.max()) + 1)


def write_rt(root: Path, bad: list[str], good: list[str]) -> None:
    folder = root / "rt-polaritydata"
    folder.mkdir(parents=True)
    for name, sentences in (("neg", bad), ("pos", good)):
        content = "".join(f"{sentence} \n" for sentence in sentences)
        (folder / f"rt-polarity.{name}").write_bytes(content.encode("cp1252"))


def test_a_tenth_of_the_sentences_is_held_out(tmp_path: Path) -> None:
    bad, good = [text(i) + " caf\u00e9 \u2014" for i in range(30)], [text(i) for i in range(30, 60)]
    write_rt(tmp_path, bad, good)
    train, test = RTPolarityData(root=str(tmp_path)).read()
    assert len(test.texts) == 6 and len(train.texts) == 54
    assert sorted(train.texts + test.texts) == sorted(bad + good)
    for part in (train, test):
        assert [int(x in good) for x in part.texts] == list(part.labels)
    assert RTPolarityData(root=str(tmp_path)).read() == (train, test)


def imdb(tmp_path: Path, **arguments: Any) -> Any:
    if not (tmp_path / "aclImdb").exists():
        write_imdb(tmp_path)
    return made(IMDbData(root=str(tmp_path), **{"batch_size": 4, **arguments}))


def test_words_are_numbered_by_how_often_training_texts_have_them(tmp_path: Path) -> None:
    data = imdb(tmp_path)
    assert data.vocabulary.words[:2] == ["<padding>", "<unknown>"]
    counts = Counter(word for x in data.read()[0].texts for word in x.lower().split())
    assert counts["film"] > counts["good"]
    assert data.vocabulary.number_of["film"] < data.vocabulary.number_of["good"]
    decoded = [data.vocabulary.words[i] for i in data.train.texts[1].tolist()]
    assert " ".join(decoded) == "text1 , bad film . < br / > ça va ."


def test_rare_and_new_words_are_unknown_and_texts_cut(tmp_path: Path) -> None:
    data = imdb(tmp_path, words=5, max_length=3)
    assert len(data.vocabulary) == 5
    assert max(int(x.max()) for x, _ in data.train) == 4
    assert max(len(x) for x, _ in data.train) == 3
    assert Vocabulary(["a b a"], 10).encode("a c b d", 9).tolist() == [2, 1, 3, 1]
    assert Vocabulary(["a"], 10).encode("", 9).tolist() == [1]


def test_vectors_are_those_of_the_words(tmp_path: Path) -> None:
    path = tmp_path / "wiki.simple.vec"
    path.write_text("3 2\nfilm 0.5 -1\nnew york 1 1\nunseen 9 9\n", encoding="utf8")
    data = imdb(tmp_path, vectors=str(path))
    assert data.vectors.shape == (len(data.vocabulary), 2)
    film = data.vocabulary.number_of["film"]
    assert data.vectors[film].tolist() == [0.5, -1]
    assert float(data.vectors.abs().sum()) == 1.5
    path.write_text("3 2\nfilm 0.5 -1\n")
    with pytest.raises(ValueError, match=f"{path} is damaged: it has 1 of 3 vectors"):
        read_vectors(path, data.vocabulary)
    path.write_text("film 0.5 -1\n")
    with pytest.raises(ValueError, match=f"{path} is damaged: it is no text file of vectors"):
        read_vectors(path, data.vocabulary)
    with pytest.raises(FileNotFoundError, match=r"none.vec is missing. Fetch a .vec file from https"):
        read_vectors(Path("none.vec"), data.vocabulary)


def write_tokenizer(root: Path) -> str:
    """Write a tokenizer of BERT's kind, as a folder of transformers."""
    folder = root / "bert"
    folder.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ",",
        ".",
        "bad",
        "film",
        "good",
        "the",
        "##s",
        "text",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return str(folder)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    return write_tokenizer(tmp_path)


def test_tokens_are_batches_as_transformers_models_take_them(tmp_path: Path, tokenizer: str) -> None:
    data = imdb(tmp_path, tokenizer=tokenizer, max_length=8)
    batch = next(iter(data.test_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    assert tokens.shape == mask.shape == (4, 8)
    assert batch["labels"].tolist() == [0, 0, 0, 0]
    for row, real_ in zip(tokens.tolist(), mask.tolist(), strict=True):
        length = sum(real_)
        assert real_ == [1] * length + [0] * (8 - length)
        assert row[0] == 2 and row[length - 1] == 3 and row[length:] == [0] * (8 - length)
    short = next(iter(imdb(tmp_path, tokenizer=tokenizer).train_dataloader()))
    assert {int(n) for n in short["attention_mask"].sum(1)} <= set(range(1, short["input_ids"].shape[1] + 1))


def test_tokens_need_transformers(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_imdb(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="needs transformers: pip install"):
        made(IMDbData(root=str(tmp_path), tokenizer=tokenizer))


def test_batches_are_of_similar_length_and_others_in_each_epoch() -> None:
    seed_everything(0, verbose=False)
    lengths = torch.randint(1, 500, (1000,)).tolist()
    sampler = SimilarLengths(RandomSampler(range(1000)), batch_size=16, drop_last=False, lengths=lengths)
    first, second = list(sampler), list(sampler)
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch) == list(range(1000))
        assert len(epoch) == len(sampler) == 63
        assert sum(len(batch) != 16 for batch in epoch) == 1
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in first]
    assert max(spread) < 30  # of 500: sixteen neighbours of a thousand
    means = [sum(lengths[i] for i in b) / len(b) for b in first]
    ranks = torch.tensor(means).argsort().argsort().double()
    trend = torch.corrcoef(torch.stack([ranks, torch.arange(63).double()]))[0, 1]
    assert abs(float(trend)) < 0.4  # lengths come in random order


def test_only_a_pool_of_batches_is_sorted() -> None:
    lengths = list(range(1000, 0, -1))
    batches = list(SimilarLengths(SequentialSampler(range(1000)), 2, drop_last=True, lengths=lengths))
    assert sorted(i for batch in batches[:100] for i in batch) == list(range(200))
    odd = SimilarLengths(SequentialSampler(range(7)), 2, drop_last=True, lengths=lengths)
    assert len(list(odd)) == len(odd) == 3


def test_samples_that_are_drawn_twice_are_in_two_batches_or_one() -> None:
    sampler = SimilarLengths([3, 3, 1, 0], 2, drop_last=False, lengths=[5, 1, 1, 9])  # type: ignore[arg-type]
    assert sorted(i for batch in sampler for i in batch) == [0, 1, 3, 3]


def test_padded_batches_hold_the_texts(tmp_path: Path) -> None:
    data = imdb(tmp_path, train_size=9)
    seen = []
    for x, y in data.train_dataloader():
        assert int((x[:, -1] != 0).sum()) > 0  # no longer than the longest
        seen += [(tuple(row[row != 0].tolist()), label) for row, label in zip(x, y.tolist(), strict=True)]
    assert sorted(seen) == sorted((tuple(x.tolist()), int(y)) for x, y in data.train)
    assert sorted(Counter(label for _, label in seen).values()) == [4, 5]


class Reader(LightningModule):
    """Classifies texts by the mean of their words' embeddings; keeps which samples it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 8, padding_idx=0)
        self.linear = torch.nn.Linear(8, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with Path(f"seen-{self.global_rank}").open("a") as file:
            file.writelines(f"{self.current_epoch} {row[0]} {len(row)}\n" for row in batch[0].tolist())
        return torch.nn.functional.cross_entropy(self.linear(self.embedding(batch[0]).mean(1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: Any, **options: Any) -> None:
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    ).fit(Reader(), datamodule=data)


def rows(rank: int) -> list[list[int]]:
    return [list(map(int, line.split())) for line in Path(f"seen-{rank}").read_text().splitlines()]


def test_texts_train_and_are_mixed_at_the_embedding(tmp_path: Path) -> None:
    method = CutMix(at="embedding", dims=(1,), seed=0)
    write_imdb(tmp_path)
    fit(IMDbData(root=str(tmp_path), batch_size=4), callbacks=[method])
    assert method.last_mix is not None
    assert len(rows(0)) == 40


def test_two_processes_share_the_texts_and_sort_each_their_own(tmp_path: Path) -> None:
    write_imdb(tmp_path)
    fit(IMDbData(root=str(tmp_path), batch_size=5), devices=2, strategy="ddp_fork")
    for epoch in range(2):
        shares = [[row[1] for row in rows(rank) if row[0] == epoch] for rank in range(2)]
        assert [len(share) for share in shares] == [10, 10]
        assert len({*shares[0], *shares[1]}) == 20  # the first word says who a text is
    assert {row[1] for row in rows(0) if row[0] == 0} != {row[1] for row in rows(0) if row[0] == 1}


@pytest.mark.parametrize(
    ("kind", "name", "content", "reason"),
    [
        (IMDbData, "aclImdb/test/pos/0_9.txt", b"\xff\xfe\xff", "0_9.txt is damaged: .*utf-8"),
        (
            YelpFullData,
            "yelp_review_full_csv/train.csv",
            b'"1","a"\n"2","cut',
            "train.csv is damaged: unexpected",
        ),
        (YelpFullData, "yelp_review_full_csv/test.csv", b'"1","a"\n"6","b"\n', "row 2 is not a class from 1"),
        (YelpPolarityData, "yelp_review_polarity_csv/test.csv", b'"1","a"\n"2"\n', "row 2 is not a class"),
        (
            TRECData,
            "trec/TREC_10.label",
            b"DESC:x What ?\nHUM\n",
            "line 2 is not CLASS:detail and a question",
        ),
        (
            ToxicCommentsData,
            "jigsaw-toxic-comment-classification-challenge/train.csv",
            b"id,comment_text\n0,a\n",
            "train.csv is damaged: it has no columns id, comment_text, toxic",
        ),
        (
            ToxicCommentsData,
            "jigsaw-toxic-comment-classification-challenge/test.csv",
            b"id,comment_text\n0,a\n1\n",
            "test.csv is damaged: row 3 has 1 of 2 columns",
        ),
        (
            ToxicCommentsData,
            "jigsaw-toxic-comment-classification-challenge/test.csv",
            b"id,comment_text\n0,a\n",
            "test.csv is damaged: it has no comment 0000000000000001",
        ),
    ],
)
def test_a_damaged_file_stops_the_run_before_training(
    kind: Any, name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    SETS[kind](tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        kind(root=str(tmp_path)).prepare_data()


@pytest.mark.parametrize("kind", [*SETS, RTPolarityData])
def test_a_set_that_is_missing_says_what_to_fetch(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", unplugged)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", unplugged)
    with pytest.raises(FileNotFoundError, match="is missing.* fetch .*https://.* so that data/.* exists"):
        kind().prepare_data()


@pytest.mark.parametrize("arguments", [{"words": 2}, {"max_length": 0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        TRECData(**arguments)
    with pytest.raises(ValueError, match="vectors='a.vec' belong to words"):
        TRECData(vectors="a.vec", tokenizer="bert")


def test_real_sentences_are_read(tmp_path: Path) -> None:
    x, y, *_ = real("rt_polarity")()
    sentences = [[t for t, c in zip(x, y, strict=True) if c == k and t.strip()][:200] for k in (0, 1)]
    printable = [[t.encode("cp1252", "ignore").decode("cp1252").strip() for t in part] for part in sentences]
    write_rt(tmp_path, *printable)
    data = made(RTPolarityData(root=str(tmp_path)))
    assert len(data.train) == 360 and len(data.test) == 40
    assert sorted(x for part in data.read() for x in part.texts) == sorted([*printable[0], *printable[1]])


def test_real_questions_are_read(tmp_path: Path) -> None:
    x, y, x_test, y_test, names = real("trec")()
    (tmp_path / "trec").mkdir()
    for name, texts, labels in (("train_5500.label", x, y), ("TREC_10.label", x_test, y_test)):
        lines = [f"{names[label]}:other {question}\n" for question, label in zip(texts, labels, strict=True)]
        (tmp_path / "trec" / name).write_bytes("".join(lines).encode("latin1", "replace"))
    data = made(TRECData(root=str(tmp_path)))
    assert len(data.train) == 5452 and len(data.test) == 500
    assert [data.classes[int(y)] for y in data.test.targets] == [names[label] for label in y_test]
    padded = sum(int((x == 0).sum()) for x, _ in data.train_dataloader())
    assert padded < 0.05 * sum(len(text) for text in data.train.texts)
