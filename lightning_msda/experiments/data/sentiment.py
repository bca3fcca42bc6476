"""Reviews and comments: IMDb, Yelp, sentences of film reviews, Toxic Comments."""

from __future__ import annotations

import csv
from pathlib import Path

from typing_extensions import override

from lightning_msda.experiments.data.files import Source, damaged
from lightning_msda.experiments.data.subsets import folds
from lightning_msda.experiments.data.text import Labelled, TextData

__all__ = ["IMDbData", "RTPolarityData", "ToxicCommentsData", "YelpFullData", "YelpPolarityData"]

TOXIC = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")


class IMDbData(TextData):
    """IMDb, 25,000 film reviews to train on and 25,000 to test on, bad or good (Maas et al. 2011).

    Takes what `TextData` takes.
    """

    classes = ("negative", "positive")
    source = Source(
        name="IMDb",
        folder="aclImdb",
        fetch_by_hand="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        urls=("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",),
        md5="7c2ac02c03563afcf9b574c7e56c153a",
    )

    @override
    def read(self) -> tuple[Labelled, Labelled]:
        return self._part("train"), self._part("test")

    def _part(self, part: str) -> Labelled:
        texts: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(("neg", "pos")):
            for file in sorted(self.source.find(self.root, part, name).glob("*_*.txt")):
                texts.append(_text(file, "utf8"))
                labels.append(label)
        return Labelled(texts, labels)


class YelpPolarityData(TextData):
    """Yelp reviews, 560,000 to train on and 38,000 to test on, bad or good (Zhang et al. 2015).

    Takes what `TextData` takes.
    """

    classes: tuple[str, ...] = ("negative", "positive")
    source = Source(
        name="Yelp Review Polarity",
        folder="yelp_review_polarity_csv",
        fetch_by_hand="https://s3.amazonaws.com/fast-ai-nlp/yelp_review_polarity_csv.tgz",
        urls=("https://s3.amazonaws.com/fast-ai-nlp/yelp_review_polarity_csv.tgz",),
    )

    @override
    def read(self) -> tuple[Labelled, Labelled]:
        return self._part("train"), self._part("test")

    def _part(self, part: str) -> Labelled:
        table = self.source.find(self.root, f"{part}.csv")
        texts: list[str] = []
        labels: list[int] = []
        for row in _rows(table):
            if len(row) != 2 or not row[0].isdigit() or not 1 <= int(row[0]) <= len(self.classes):
                raise damaged(table, f"row {len(texts) + 1} is not a class from 1 and a text")
            labels.append(int(row[0]) - 1)
            texts.append(row[1].replace("\\n", " "))
        return Labelled(texts, labels)


class YelpFullData(YelpPolarityData):
    """Yelp reviews, 650,000 to train on and 50,000 to test on, of one to five stars (Zhang et al. 2015).

    Takes what `TextData` takes.
    """

    classes = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
    source = Source(
        name="Yelp Review Full",
        folder="yelp_review_full_csv",
        fetch_by_hand="https://s3.amazonaws.com/fast-ai-nlp/yelp_review_full_csv.tgz",
        urls=("https://s3.amazonaws.com/fast-ai-nlp/yelp_review_full_csv.tgz",),
    )


class RTPolarityData(TextData):
    """Sentences of film reviews, 5,331 bad and 5,331 good ones (Pang & Lee 2005).

    A tenth of them, drawn once and for all, is validated and tested on. Takes what `TextData` takes.
    """

    classes = ("negative", "positive")
    source = Source(
        name="rt-polarity",
        folder="rt-polaritydata",
        fetch_by_hand="https://www.cs.cornell.edu/people/pabo/movie-review-data/rt-polaritydata.tar.gz",
        urls=("https://www.cs.cornell.edu/people/pabo/movie-review-data/rt-polaritydata.tar.gz",),
    )

    @override
    def read(self) -> tuple[Labelled, Labelled]:
        texts: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(("neg", "pos")):
            lines = _text(self.source.find(self.root, f"rt-polarity.{name}"), "cp1252").split("\n")
            found = [line.strip() for line in lines if line.strip()]
            texts += found
            labels += [label] * len(found)
        held_out = set(folds(len(texts), 10)[0])
        train, test = (
            Labelled([texts[i] for i in rows], [labels[i] for i in rows])
            for rows in (
                [i for i in range(len(texts)) if (i in held_out) == wanted] for wanted in (False, True)
            )
        )
        return train, test


class ToxicCommentsData(TextData):
    """Comments of Wikipedia, each with six labels that are 0 or 1, from toxic to identity hate (Jigsaw 2018).

    Labels are floating-point numbers, shape ``(N, 6)``. Test comments that were not scored are left out.
    Takes what `TextData` takes.
    """

    classes = TOXIC
    source = Source(
        name="Toxic Comments",
        folder="jigsaw-toxic-comment-classification-challenge",
        fetch_by_hand=(
            "train.csv, test.csv and test_labels.csv from "
            "https://www.kaggle.com/c/jigsaw-toxic-comment-classification-challenge (with an account)"
        ),
    )

    @override
    def read(self) -> tuple[Labelled, Labelled]:
        train = self._table("train.csv", "comment_text", *TOXIC)
        texts = {name: text for name, text, *_ in self._table("test.csv", "comment_text")}
        scores = [row for row in self._table("test_labels.csv", *TOXIC) if "-1" not in row]
        missing = [name for name, *_ in scores if name not in texts]
        if missing:
            raise damaged(self.source.find(self.root, "test.csv"), f"it has no comment {missing[0]}")
        return (
            Labelled(
                [text for _, text, *_ in train], [[float(v) for v in values] for _, _, *values in train]
            ),
            Labelled(
                [texts[name] for name, *_ in scores], [[float(v) for v in values] for _, *values in scores]
            ),
        )

    def _table(self, name: str, *columns: str) -> list[list[str]]:
        """Return the ids of a table and its columns."""
        path = self.source.find(self.root, name)
        head, *rows = [*_rows(path)] or [[]]
        if set(head) != {"id", *head} | set(columns):
            raise damaged(path, f"it has no columns id, {', '.join(columns)}")
        places = [head.index(column) for column in ("id", *columns)]
        for number, row in enumerate(rows, 2):
            if len(row) != len(head):
                raise damaged(path, f"row {number} has {len(row)} of {len(head)} columns")
        return [[row[place] for place in places] for row in rows]


def _text(file: Path, encoding: str) -> str:
    try:
        return file.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise damaged(file, error) from error


def _rows(table: Path) -> list[list[str]]:
    try:
        with table.open(encoding="utf8", newline="") as file:
            return list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise damaged(table, error) from error
