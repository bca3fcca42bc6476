"""The Free Spoken Digit Dataset (Jackson 2016)."""

from __future__ import annotations

import re

from typing_extensions import override

from lightning_msda.experiments.data.audio import LogMel
from lightning_msda.experiments.data.base import Splits
from lightning_msda.experiments.data.files import Source
from lightning_msda.experiments.data.speech import Spectrograms, SpokenWords

__all__ = ["FSDDData"]


class FSDDData(SpokenWords):
    """The Free Spoken Digit Dataset: ten digits, six speakers, 50 recordings of each (Jackson 2016).

    Samples are log-mel spectrograms of one second, shape ``(1, mels, 32)``, in [-0.5, 0.5]. It is validated
    and tested on a speaker that training does not hear, or on the published test recordings.

    Args:
        root: The folder that holds ``fsdd``; it is downloaded into it where it is missing.
        speaker: Who is held out for testing; None: the published split, the first five recordings of each.
        rate: Samples in a second that the sounds are resampled to.
        mels: Bands of the spectrograms.
        augment: Whether training sounds are changed at random, as `SpeechCommandsData` does.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.

    Raises:
        FileNotFoundError: If it is missing and cannot be downloaded.
        ValueError: If an argument is out of range, or a file is damaged.
    """

    classes = tuple("0123456789")
    source = Source(
        name="the Free Spoken Digit Dataset",
        folder="fsdd",
        fetch_by_hand="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip",
        urls=("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip",),
        inside="free-spoken-digit-dataset-1.0.10",
    )

    def __init__(
        self,
        root: str = "data",
        speaker: str | None = "theo",
        rate: int = 8000,
        mels: int = 32,
        augment: bool = True,
        batch_size: int = 64,
        workers: int = 0,
        train_size: int | None = None,
    ) -> None:
        super().__init__(root, rate, mels, augment, batch_size, workers, train_size)
        self.speaker = speaker

    @override
    def splits(self) -> Splits:
        files = sorted(self.source.find(self.root, "recordings").glob("*.wav"))
        names = [re.fullmatch(r"(\d)_(\w+)_(\d+)", file.stem) for file in files]
        for file, name in zip(files, names, strict=True):
            if name is None:
                raise ValueError(f"{file} is not named as a recording: rename it digit_speaker_number.wav.")
        said = [name.groups() for name in names if name]
        speakers = sorted({who for _, who, _ in said})
        if self.speaker is not None and self.speaker not in speakers:
            raise ValueError(f"speaker={self.speaker!r} is none of the speakers: {', '.join(speakers)}.")
        tested = [int(number) < 5 if self.speaker is None else who == self.speaker for _, who, number in said]
        targets = [int(digit) for digit, _, _ in said]
        sounds, log_mel = self.first_seconds(files), LogMel(self.rate, self.mels)
        train, test = (
            Spectrograms(
                sounds, rows, [targets[i] for i in rows], log_mel, augment=self.augment and not held_out
            )
            for held_out in (False, True)
            for rows in [[i for i, t in enumerate(tested) if t == held_out]]
        )
        return Splits(train, test, test)
