"""Google Speech Commands (Warden 2017, arXiv:1804.03209)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset
from typing_extensions import override

from lightning_msda.experiments.data.audio import LogMel
from lightning_msda.experiments.data.base import Splits
from lightning_msda.experiments.data.files import Source, damaged
from lightning_msda.experiments.data.speech import Spectrograms, SpokenWords

__all__ = ["SpeechCommandsData"]

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


class SpeechCommandsData(SpokenWords):
    """Google Speech Commands (Warden 2017) as in its Kaggle challenge: ten words, unknown, silence.

    Samples are log-mel spectrograms of one second, shape ``(1, mels, 32)``, in [-0.5, 0.5]. The published
    lists say which recordings are for validation and for testing. To each part a tenth of its size is added
    as silence: seconds of the background recordings, at a loudness drawn once and for all. In training the
    augmentations of FMix's experiments are applied.

    Args:
        root: The folder that holds ``speech_commands_v0.01``; it is downloaded into it where it is missing.
        rate: Samples in a second that the sounds are resampled to.
        mels: Bands of the spectrograms.
        augment: Whether training sounds are changed at random.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.

    Raises:
        FileNotFoundError: If it is missing and cannot be downloaded.
        ValueError: If an argument is out of range, or a file is damaged.
    """

    classes = (*WORDS, "unknown", "silence")
    source = Source(
        name="Google Speech Commands",
        folder="speech_commands_v0.01",
        fetch_by_hand="http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
        urls=("http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",),
        inside="",
    )

    def __init__(
        self,
        root: str = "data",
        rate: int = 16000,
        mels: int = 32,
        augment: bool = True,
        batch_size: int = 128,
        workers: int = 4,
        train_size: int | None = None,
    ) -> None:
        super().__init__(root, rate, mels, augment, batch_size, workers, train_size)

    @override
    def splits(self) -> Splits:
        folder = self.source.find(self.root)
        files = sorted(file for file in folder.glob("*/*.wav") if not file.parent.name.startswith("_"))
        of_name = {file.relative_to(folder).as_posix(): i for i, file in enumerate(files)}
        part_of = ["train"] * len(files)
        for part in ("validation", "testing"):
            names = self.source.find(self.root, f"{part}_list.txt")
            for name in names.read_text().split():
                if name not in of_name:
                    raise damaged(names.parent / name, f"it is named in {names.name} and is missing")
                part_of[of_name[name]] = part
        words, noise = (
            self.first_seconds(files),
            self.all_seconds(sorted(folder.glob("_background_noise_/*.wav"))),
        )
        targets = [WORDS.index(f.parent.name) if f.parent.name in WORDS else 10 for f in files]
        return Splits(
            *(
                self._part(
                    [i for i, of in enumerate(part_of) if of == part], words, targets, noise, part == "train"
                )
                for part in ("train", "validation", "testing")
            )
        )

    def _part(
        self, rows: list[int], words: Tensor, targets: list[int], noise: Tensor, train: bool
    ) -> ConcatDataset[Any]:
        """Return the words of a part, and its silence."""
        count = round(len(rows) / 10) if len(noise) else 0
        generator = Generator().manual_seed(len(rows))
        picked = torch.randint(max(len(noise), 1), (count,), generator=generator)
        silence = (noise[picked] * torch.rand(count, 1, generator=generator)).short()
        log_mel, augment = LogMel(self.rate, self.mels), train and self.augment
        both = [
            Spectrograms(words, rows, [targets[row] for row in rows], log_mel, augment=augment, noise=noise),
            Spectrograms(silence, range(count), [11] * count, log_mel, augment=augment, noise=noise),
        ]
        part: ConcatDataset[Any] = ConcatDataset(both)
        part.targets = [*both[0].targets, *both[1].targets]  # type: ignore[attr-defined]
        return part
