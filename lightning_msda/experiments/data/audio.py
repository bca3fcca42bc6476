"""Sound: WAV files, another rate, log-mel spectrograms, and what is done to speech in training."""

from __future__ import annotations

import math
import wave
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_msda.experiments.data.files import damaged

__all__ = ["LogMel", "fitted", "moved_in_time", "read_wav", "resample", "spoken_faster", "stretched"]


def read_wav(path: Path) -> tuple[Tensor, int]:
    """Read a WAV file of 16 bits; several channels are averaged.

    Args:
        path: The file.

    Returns:
        Samples in [-1, 1), shape ``(T,)``, and how many there are in a second.

    Raises:
        ValueError: If it is damaged or of another format.
    """
    try:
        with wave.open(str(path)) as file:
            channels, width, rate, count = file.getparams()[:4]
            content = bytearray(file.readframes(count))
    except (wave.Error, EOFError) as error:
        raise damaged(path, str(error) or "it ends too early") from error
    if width != 2:
        raise ValueError(f"{path} has {8 * width} bits in a sample where 16 are read. Convert it to 16 bits.")
    if len(content) != count * width * channels or not count:
        raise damaged(path, f"it has {len(content)} of {count * width * channels} bytes of sound")
    samples = torch.frombuffer(content, dtype=torch.int16).float() / 2**15
    return samples.view(-1, channels).mean(1), rate


def resample(x: Tensor, old: int, new: int) -> Tensor:
    """Return a sound at another rate, by its spectrum: exact for what the lower of both rates can hold.

    Args:
        x: Samples, shape ``(T,)``.
        old: How many of them are in a second.
        new: How many there shall be.
    """
    if old == new:
        return x
    count = round(len(x) * new / old)
    made: Tensor = torch.fft.irfft(torch.fft.rfft(x, norm="forward"), count, norm="forward")
    return made


def spoken_faster(x: Tensor, factor: float) -> Tensor:
    """Return a sound played faster, and so at a higher pitch; the samples between are interpolated.

    Args:
        x: Samples, shape ``(T,)``.
        factor: How many times as fast.
    """
    return _interpolate(x, torch.arange(0, len(x) - 1, factor))


def moved_in_time(x: Tensor, steps: int) -> Tensor:
    """Return what is shifted along its last axis, zeros coming in.

    Args:
        x: Shape ``(..., T)``.
        steps: How far it moves, to the right where positive.
    """
    return F.pad(x, (steps, -steps))


class LogMel:
    """Log-mel spectrograms in decibels, by librosa's defaults: Slaney's scale, 0 dB the loudest, 80 dB deep.

    Windows are 128 ms long and 32 ms apart, so that one second gives 32 steps.

    Args:
        rate: Samples in a second.
        mels: Bands.
    """

    def __init__(self, rate: int, mels: int = 32) -> None:
        self.size = round(rate * 0.128)
        self.hop = self.size // 4
        self.window = torch.hann_window(self.size)
        self.bands = _mel_bands(rate, self.size, mels)

    def magnitudes(self, x: Tensor) -> Tensor:
        """Return the spectrogram of a sound.

        Args:
            x: Samples, shape ``(T,)``.

        Returns:
            Magnitudes, shape ``(frequencies, steps)``.
        """
        spectrum = torch.stft(
            x, self.size, self.hop, window=self.window, pad_mode="constant", return_complex=True
        )
        return spectrum.abs()

    def decibels(self, magnitudes: Tensor) -> Tensor:
        """Return the log-mel spectrogram of a spectrogram.

        Args:
            magnitudes: As `magnitudes` returns them.

        Returns:
            Decibels from -80 to 0, shape ``(mels, steps)``.
        """
        power = (self.bands @ magnitudes.square()).clamp(min=1e-10)
        return (10 * (power / power.max()).log10()).clamp(min=-80)


def stretched(magnitudes: Tensor, factor: float) -> Tensor:
    """Return a spectrogram that runs faster at the same pitch: the magnitudes of a phase vocoder.

    Args:
        magnitudes: Shape ``(frequencies, steps)``.
        factor: How many times as fast; silence follows where it ends early.
    """
    steps = magnitudes.shape[1]
    ended = F.pad(magnitudes, (0, 1))
    return fitted(_interpolate(ended, torch.arange(0, steps, factor)), steps)


def fitted(x: Tensor, length: int) -> Tensor:
    """Return what is cut, or followed by zeros, so that its last axis has a length.

    Args:
        x: Shape ``(..., T)``.
        length: The length.
    """
    return F.pad(x, (0, length - x.shape[-1]))


def _mel_bands(rate: int, size: int, mels: int) -> Tensor:
    """Return triangular filters, evenly apart on Slaney's mel scale, each of area 1.

    Args:
        rate: Samples in a second.
        size: Samples in a window.
        mels: Filters.

    Returns:
        Weights, shape ``(mels, size // 2 + 1)``.
    """
    top = 15 + 27 * math.log(rate / 2000) / math.log(6.4)  # the scale is logarithmic from 1000 Hz = 15 mel
    steps = torch.linspace(0, top, mels + 2, dtype=torch.float64)
    edges = torch.where(steps < 15, steps * 200 / 3, 1000 * 6.4 ** ((steps - 15) / 27))[:, None]
    frequencies = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)
    rise = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return (torch.minimum(rise, fall).clamp(min=0) * 2 / (edges[2:] - edges[:-2])).float()


def _interpolate(x: Tensor, places: Tensor) -> Tensor:
    """Return values between the elements of the last axis."""
    left = places.long()
    share = places - left
    return x[..., left] * (1 - share) + x[..., left + 1] * share
