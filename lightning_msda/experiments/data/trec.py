"""TREC, questions by what they ask for (Li & Roth 2002)."""

from __future__ import annotations

from typing_extensions import override

from lightning_msda.experiments.data.files import Source, damaged
from lightning_msda.experiments.data.text import Labelled, TextData

__all__ = ["TRECData"]


class TRECData(TextData):
    """TREC, 5,452 questions to train on and 500 to test on, of six classes such as numbers and places.

    Takes what `TextData` takes.
    """

    classes = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    source = Source(
        name="TREC",
        folder="trec",
        fetch_by_hand="train_5500.label and TREC_10.label from https://cogcomp.seas.upenn.edu/Data/QA/QC",
        urls=(
            "https://cogcomp.seas.upenn.edu/Data/QA/QC/train_5500.label",
            "https://cogcomp.seas.upenn.edu/Data/QA/QC/TREC_10.label",
        ),
        inside="",
    )

    @override
    def read(self) -> tuple[Labelled, Labelled]:
        return self._part("train_5500.label"), self._part("TREC_10.label")

    def _part(self, name: str) -> Labelled:
        path = self.source.find(self.root, name)
        texts, labels = [], []
        for number, line in enumerate(path.read_text(encoding="latin1").rstrip("\n").split("\n"), 1):
            kind, _, text = line.partition(" ")
            coarse, colon, _ = kind.partition(":")
            if coarse not in self.classes or not colon or not text.strip():
                raise damaged(path, f"line {number} is not CLASS:detail and a question")
            texts.append(text.strip())
            labels.append(self.classes.index(coarse))
        return Labelled(texts, labels)
