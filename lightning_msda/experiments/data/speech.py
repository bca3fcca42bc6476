"""What data modules of spoken words have in common: sounds, and their spectrograms in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_msda.experiments.data.audio import (
    LogMel,
    fitted,
    moved_in_time,
    read_wav,
    resample,
    spoken_faster,
    stretched,
)
from lightning_msda.experiments.data.base import DataModule
from lightning_msda.experiments.data.files import Source, kept

__all__ = ["Spectrograms", "SpokenWords"]


class SpokenWords(DataModule):
    """Log-mel spectrograms of one second of sound, shape ``(1, mels, 32)``, in [-0.5, 0.5].

    Args:
        root: The folder of all data sets; the data set is downloaded into it where it is missing.
        rate: Samples in a second that the sounds are resampled to.
        mels: Bands of the spectrograms.
        augment: Whether training sounds are changed at random.
        batch_size: Samples in a batch.
        workers: Processes that load the data.
        train_size: How many training samples are used, a fixed choice with even classes; None: all.
    """

    mean = (0.5,)  # 0 is the quietest that is shown, 1 the loudest
    std = (1.0,)
    source: Source

    def __init__(
        self,
        root: str,
        rate: int,
        mels: int,
        augment: bool,
        batch_size: int,
        workers: int,
        train_size: int | None,
    ) -> None:
        super().__init__(batch_size, workers, train_size)
        if rate < 1000 or mels < 1:
            raise ValueError(f"rate={rate} must be from 1000 and mels={mels} from 1.")
        self.root = root
        self.rate = rate
        self.mels = mels
        self.augment = augment

    @override
    def prepare_data(self) -> None:
        self.source.fetch(self.root)
        self.splits()

    def first_seconds(self, files: Sequence[Path]) -> Tensor:
        """Return the first second of each file at our rate, 16 bits, shape ``(files, rate)``."""

        def read() -> dict[str, Tensor]:
            return {"sounds": torch.stack([fitted(self._read(file), self.rate) for file in files])}

        return self._kept("words", files, read)

    def all_seconds(self, files: Sequence[Path]) -> Tensor:
        """Return all whole seconds of all files at our rate, 16 bits, shape ``(seconds, rate)``."""

        def read() -> dict[str, Tensor]:
            sounds = [torch.zeros(0, dtype=torch.int16), *(self._read(file) for file in files)]
            return {"sounds": torch.cat([s[: len(s) // self.rate * self.rate] for s in sounds])}

        return self._kept("noise", files, read).view(-1, self.rate)

    def _kept(self, name: str, files: Sequence[Path], read: Callable[[], dict[str, Tensor]]) -> Tensor:
        sounds: Tensor = kept(f"{name}-{self.rate}", self.source.find(self.root), files, read)["sounds"]
        return sounds

    def _read(self, file: Path) -> Tensor:
        return (resample(*read_wav(file), self.rate) * 2**15).round().clamp(-(2**15), 2**15 - 1).short()


class Spectrograms(Dataset[Any]):
    """Sounds of one second as spectrograms, from -0.5 to 0.5.

    Args:
        sounds: 16 bits, shape ``(n, rate)``.
        rows: Which of them the samples are.
        targets: The classes of the samples.
        log_mel: Makes the spectrograms.
        augment: Whether sounds are changed at random.
        noise: What is added then, in seconds as ``sounds``.
    """

    def __init__(
        self,
        sounds: Tensor,
        rows: Sequence[int],
        targets: Sequence[int],
        log_mel: LogMel,
        *,
        augment: bool = False,
        noise: Tensor | None = None,
    ) -> None:
        self.sounds = sounds
        self.rows = rows
        self.targets = targets
        self.log_mel = log_mel
        self.augment = augment
        self.noise = noise

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self.sounds[self.rows[index]].float() / 2**15
        magnitudes = self._changed(x) if self.augment else self.log_mel.magnitudes(x)
        return (self.log_mel.decibels(magnitudes)[None] + 40) / 80, self.targets[index]

    def _changed(self, x: Tensor) -> Tensor:
        """Change a sound as pytorch-speech-commands does, each way with probability 1/2.

        The ways are speed and pitch by up to 20 %, a shift by up to 8 steps, background noise of up to 45 %,
        and speed alone by up to 20 %. Loudness is left alone: 0 dB is each sample's loudest moment.
        """
        chosen = torch.rand(4) < 0.5
        speed, shift, amount, stretch = torch.rand(4).tolist()
        if chosen[0]:
            x = fitted(spoken_faster(x, 1 / (0.8 + 0.4 * speed)), len(x))
        if chosen[1]:
            x = moved_in_time(x, self.log_mel.hop * (int(17 * shift) - 8))
        if chosen[2] and self.noise is not None and len(self.noise):
            noise = self.noise[int(torch.randint(len(self.noise), ()))].float() / 2**15
            x = torch.lerp(x, noise, 0.45 * amount)
        magnitudes = self.log_mel.magnitudes(x)
        return stretched(magnitudes, 0.8 + 0.4 * stretch) if chosen[3] else magnitudes
