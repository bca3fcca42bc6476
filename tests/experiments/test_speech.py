"""Spoken words: WAV files as they are published, their spectrograms by a formula, splits by the lists."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from lightning_msda.experiments.data import FSDDData, SpeechCommandsData
from lightning_msda.experiments.data.audio import LogMel, read_wav, resample, spoken_faster, stretched
from lightning_msda.experiments.data.speech import Spectrograms
from tests.experiments.tools import made, real, refuse, unplugged, whole
from tests.tools import workplace as workplace


def write_wav(path: Path, samples: Sequence[int], rate: int = 16000, channels: int = 1) -> None:
    """Write a WAV file byte by byte: the chunk of the format, one that nobody reads, the samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = struct.pack(f"<{len(samples)}h", *samples)
    format_ = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    chunks = b"fmt " + struct.pack("<I", len(format_)) + format_
    chunks += b"LIST" + struct.pack("<I", 4) + b"none"
    chunks += b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def tone(frequency: float, seconds: float = 1.0, rate: int = 16000, height: int = 8000) -> list[int]:
    times = range(round(seconds * rate))
    return [round(height * math.sin(2 * math.pi * frequency * t / rate)) for t in times]


def formula(samples: Sequence[float], rate: int, mels: int) -> Any:
    """Return the log-mel spectrogram by its definition, in float64."""
    size, hop = round(0.128 * rate), round(0.032 * rate)
    padded = np.concatenate([np.zeros(size // 2), np.asarray(samples, float), np.zeros(size // 2)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    frames = [padded[start : start + size] * window for start in range(0, len(padded) - size + 1, hop)]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    top = next(m / 1000 for m in range(10**6) if hertz(m / 1000) >= rate / 2)
    edges = [hertz(top * i / (mels + 1)) for i in range(mels + 2)]
    bands = np.zeros((mels, size // 2 + 1))
    for band, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for i in range(size // 2 + 1):
            f = i * rate / size
            height = (f - low) / (middle - low) if f < middle else (high - f) / (high - middle)
            bands[band, i] = max(height, 0) * 2 / (high - low)
    energy = np.maximum(bands @ power.T, 1e-10)
    return np.maximum(10 * np.log10(energy / energy.max()), -80)


@pytest.mark.parametrize(("rate", "mels"), [(16000, 32), (8000, 20)])
def test_spectrograms_are_those_of_the_formula(rate: int, mels: int) -> None:
    noise = torch.rand(rate, generator=torch.Generator().manual_seed(0)) - 0.5
    x = noise * torch.linspace(0, 1, rate) + 0.3 * torch.tensor(tone(440, rate=rate)) / 2**15
    log_mel = LogMel(rate, mels)
    found = log_mel.decibels(log_mel.magnitudes(x))
    assert found.shape == (mels, 32)
    expected = torch.tensor(formula(x.tolist(), rate, mels))
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0)  # 0.02 of 80 decibels


def test_a_tone_is_brightest_in_its_band() -> None:
    log_mel = LogMel(16000)
    for frequency in (300, 1000, 3000, 6000):
        x = torch.tensor(tone(frequency)) / 2**15
        band = int(log_mel.decibels(log_mel.magnitudes(x)).mean(1).argmax())
        mel = (
            frequency * 3 / 200 if frequency < 1000 else 15 + 27 * math.log(frequency / 1000) / math.log(6.4)
        )
        top = 15 + 27 * math.log(8) / math.log(6.4)
        assert abs(band + 1 - mel / top * 33) <= 1


def test_resampling_is_that_of_fourier() -> None:
    from scipy.signal import resample as reference

    tones = torch.randn(700, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    x = torch.fft.irfft(tones, 4001, norm="forward")  # all rates can hold them
    for old, new in ((8000, 16000), (44100, 16000), (16000, 11025)):
        expected = torch.tensor(reference(x.double().numpy(), round(4001 * new / old)))
        torch.testing.assert_close(resample(x, old, new).double(), expected, atol=1e-3, rtol=0)
    slow = torch.tensor(tone(440, rate=8000)) / 2**15
    torch.testing.assert_close(
        resample(slow, 8000, 16000), torch.tensor(tone(440)) / 2**15, atol=1e-3, rtol=0
    )


def test_a_faster_sound_is_shorter_and_higher() -> None:
    x = torch.tensor(tone(440)) / 2**15
    fast = spoken_faster(x, 1.25)
    assert len(fast) == 12800
    torch.testing.assert_close(fast, torch.tensor(tone(550))[:12800] / 2**15, atol=5e-3, rtol=0)


def test_a_stretched_spectrogram_runs_faster_at_the_same_pitch() -> None:
    ramp = torch.arange(1.0, 11).expand(3, 10) * torch.tensor([[1.0], [2], [3]])
    fast = stretched(ramp, 1.5)
    expected = torch.tensor([1, 2.5, 4, 5.5, 7, 8.5, 10, 0, 0, 0])
    torch.testing.assert_close(fast, expected * torch.tensor([[1.0], [2], [3]]))
    torch.testing.assert_close(stretched(ramp, 0.5)[0], torch.arange(1, 6, 0.5))


def test_wav_files_are_read_and_channels_averaged(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", [0, 16384, -32768, 32767], rate=8000)
    samples, rate = read_wav(tmp_path / "a.wav")
    assert rate == 8000
    assert samples.tolist() == [0, 0.5, -1, 32767 / 32768]
    write_wav(tmp_path / "b.wav", [0, 16384, -16384, -16384], channels=2)
    assert read_wav(tmp_path / "b.wav")[0].tolist() == [0.25, -0.5]


@pytest.mark.parametrize("kept", [0, 10, 30, 60, -1])
def test_a_shortened_wav_file_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, list(range(100)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        read_wav(path)


def test_other_widths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, list(range(100)))
    content = bytearray(path.read_bytes())
    content[32:36] = struct.pack("<HH", 3, 24)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.wav has 24 bits in a sample where 16 are read"):
        read_wav(path)


SPOKEN = {"yes": 12, "go": 4, "bed": 6, "marvin": 4}


def write_commands(root: Path) -> Path:
    """Write Google Speech Commands: words, the lists of held-out recordings, long background noise."""
    folder = root / "speech_commands_v0.01"
    for word, count in SPOKEN.items():
        for i in range(count):
            samples = tone(200 + 50 * i + 1000 * (word == "go"), seconds=0.9 if i == 1 else 1.0)
            write_wav(folder / word / f"{i:08x}_nohash_0.wav", samples)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-3000, 3000, (40000,), generator=generator).tolist()
    write_wav(folder / "_background_noise_" / "pink_noise.wav", noise)
    (folder / "_background_noise_" / "README.md").write_text("noise")
    held_out = {"validation": ["yes/00000000", "bed/00000001", "go/00000000"], "testing": ["yes/00000002"]}
    for part, names in held_out.items():
        (folder / f"{part}_list.txt").write_text("".join(f"{name}_nohash_0.wav\n" for name in names))
    return folder


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    return write_commands(tmp_path)


def commands_data(folder: Path, **arguments: Any) -> Any:
    return SpeechCommandsData(root=str(folder.parent), workers=0, **arguments)


def test_the_lists_say_which_words_are_held_out(commands: Path) -> None:
    data = made(commands_data(commands))
    assert data.classes == (*"yes no up down left right on off stop go".split(), "unknown", "silence")
    assert Counter(data.train.targets) == {0: 10, 9: 3, 10: 9, 11: 2}
    assert Counter(data.val.targets) == {0: 1, 9: 1, 10: 1}
    assert Counter(data.test.targets) == {0: 1}
    x, y = whole(data.train_dataloader())
    assert x.shape == (24, 1, 32, 32)
    assert Counter(y.tolist()) == Counter(data.train.targets)


def test_validation_spectrograms_are_those_of_the_recordings(commands: Path) -> None:
    x, y = whole(made(commands_data(commands)).val_dataloader())
    assert y.tolist() == [10, 9, 0]
    for shown, samples in zip(x, (tone(250, seconds=0.9), tone(1200), tone(200)), strict=True):
        cut = [*samples, *[0] * (16000 - len(samples))]
        expected = torch.tensor(formula([s / 2**15 for s in cut], 16000, 32))
        found = shown[0].double() * 80 - 40
        assert float((found - expected).abs().max()) < 0.5  # far below the tone, rounding shows
        assert float((found - expected).abs().mean()) < 0.01


def test_silence_is_background_noise_and_the_same_every_time(commands: Path) -> None:
    first, second = (made(commands_data(commands, augment=False)) for _ in range(2))
    silent = [i for i, target in enumerate(first.train.targets) if target == 11]
    for i in silent:
        shown = first.train[i][0]
        assert torch.equal(shown, second.train[i][0])
        assert float(shown[0, 16:].mean()) > 0  # noise is bright in all bands, tones are dark in most
    assert not torch.equal(first.train[silent[0]][0], first.train[silent[1]][0])


def test_training_sounds_are_changed_and_others_are_not(commands: Path) -> None:
    seed_everything(0, verbose=False)
    data, plain = made(commands_data(commands)), made(commands_data(commands, augment=False))
    seen = torch.stack([data.train[0][0] for _ in range(40)])
    same = (seen - plain.train[0][0]).flatten(1).abs().amax(1) == 0
    assert 0 < int(same.sum()) < 10  # one in sixteen is left alone
    assert seen.min() >= -0.5 and seen.max() <= 0.5
    assert torch.equal(plain.train[0][0], plain.train[0][0])
    assert torch.equal(data.val[0][0], data.val[0][0])


def test_noise_is_added_to_half_of_the_sounds_and_pitch_is_changed_in_half() -> None:
    seed_everything(0, verbose=False)
    noise = torch.randint(-3000, 3000, (5, 16000)).short()
    silence = torch.zeros(1, 16000, dtype=torch.int16)
    heard = Spectrograms(silence, [0] * 200, [0] * 200, LogMel(16000), augment=True, noise=noise)
    assert 70 < sum(float(heard[i][0].min()) < 0.5 for i in range(200)) < 130  # silence is flat
    sound = torch.tensor([tone(2000)]).short()
    sung = Spectrograms(sound, [0] * 200, [0] * 200, LogMel(16000, mels=128), augment=True)
    bands = Counter(int(sung[i][0][0].mean(1).argmax()) for i in range(200))
    plain = Spectrograms(sound, [0], [0], LogMel(16000, mels=128))[0][0][0].mean(1).argmax()
    assert 70 < bands[int(plain)] < 150
    assert min(bands) < int(plain) - 5 and max(bands) > int(plain) + 5


def test_recordings_are_read_once(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = whole(made(commands_data(commands)).val_dataloader())
    monkeypatch.setattr("lightning_msda.experiments.data.speech.read_wav", refuse)
    assert torch.equal(whole(made(commands_data(commands)).val_dataloader())[0], x)
    with pytest.raises(AssertionError, match="a download"):  # at another rate they are read anew
        made(commands_data(commands, rate=8000))
    write_wav(commands / "yes" / "00000000_nohash_0.wav", tone(333))
    with pytest.raises(AssertionError, match="a download"):
        made(commands_data(commands))


def test_a_damaged_store_is_made_anew(commands: Path) -> None:
    x, _ = whole(made(commands_data(commands)).val_dataloader())
    (store,) = (commands / ".lightning_msda").glob("words*")
    for content in (store.read_bytes()[:100], b"", b"other"):
        store.write_bytes(content)
        assert torch.equal(whole(made(commands_data(commands)).val_dataloader())[0], x)


def test_sounds_at_another_rate_are_resampled(commands: Path) -> None:
    x, _ = whole(made(commands_data(commands, rate=8000, mels=16)).val_dataloader())
    assert x.shape == (3, 1, 16, 32)
    expected = torch.tensor(formula([s / 2**15 for s in tone(1200, rate=8000)], 8000, 16))
    bright = expected > -40
    found = x[1, 0].double() * 80 - 40
    torch.testing.assert_close(found[bright], expected[bright], atol=0.5, rtol=0)


def test_a_damaged_recording_stops_the_run_before_training(commands: Path) -> None:
    path = commands / "bed" / "00000003_nohash_0.wav"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=f"{path} is damaged: it has 30000 of 32000 bytes of sound"):
        commands_data(commands).prepare_data()


def test_a_recording_that_a_list_names_must_be_there(commands: Path) -> None:
    (commands / "yes" / "00000002_nohash_0.wav").unlink()
    with pytest.raises(ValueError, match="00000002_nohash_0.wav is damaged: it is named in testing_list.txt"):
        commands_data(commands).prepare_data()


def test_commands_without_noise_have_no_silence(commands: Path) -> None:
    (commands / "_background_noise_" / "pink_noise.wav").unlink()
    data = made(commands_data(commands))
    assert 11 not in data.train.targets
    assert whole(data.train_dataloader())[0].shape == (22, 1, 32, 32)


def test_commands_that_are_missing_say_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", unplugged)
    with pytest.raises(FileNotFoundError, match="speech_commands_v0.01.* fetch http.*v0.01.tar.gz"):
        SpeechCommandsData().prepare_data()


@pytest.mark.parametrize("arguments", [{"rate": 100}, {"mels": 0}, {"batch_size": 0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        SpeechCommandsData(**arguments)


@pytest.fixture
def fsdd(tmp_path: Path) -> Path:
    """Write digits said by three people, seven times each, of different lengths."""
    folder = tmp_path / "fsdd" / "recordings"
    for digit in range(10):
        for i, speaker in enumerate(("george", "jackson", "theo")):
            for take in range(7):
                samples = tone(200 + 100 * digit + 30 * i, 0.3 + 0.2 * take, rate=8000)
                write_wav(folder / f"{digit}_{speaker}_{take}.wav", samples, rate=8000)
    return folder


def test_the_held_out_speaker_is_not_heard_in_training(fsdd: Path) -> None:
    data = made(FSDDData(root=str(fsdd.parents[1])))
    assert len(data.train) == 140 and len(data.test) == 70
    x, y = whole(data.test_dataloader())
    assert x.shape == (70, 1, 32, 32)
    assert Counter(y.tolist()) == dict.fromkeys(range(10), 7)
    samples = tone(200 + 100 * 3 + 60, 0.7, rate=8000)  # digit 3 of theo, take 2
    cut = [s / 2**15 for s in [*samples, *[0] * (8000 - len(samples))]]
    expected = torch.tensor(formula(cut, 8000, 32))
    assert float((x[3 * 7 + 2, 0].double() * 80 - 40 - expected).abs().mean()) < 0.02
    assert y[3 * 7 + 2] == 3


def test_the_published_split_holds_out_the_first_five_takes(fsdd: Path) -> None:
    data = made(FSDDData(root=str(fsdd.parents[1]), speaker=None))
    assert len(data.train) == 60 and len(data.test) == 150


def test_unknown_speakers_and_names_are_refused(fsdd: Path) -> None:
    root = str(fsdd.parents[1])
    with pytest.raises(ValueError, match="speaker='ann' is none of the speakers: george, jackson, theo"):
        made(FSDDData(root=root, speaker="ann"))
    write_wav(fsdd / "noise.wav", tone(100, 0.1))
    with pytest.raises(ValueError, match="noise.wav is not named as a recording"):
        made(FSDDData(root=root))


def test_real_digits_are_read(tmp_path: Path) -> None:
    load = real("fsdd")
    with np.load(Path(load.__code__.co_filename).parent / "fsdd" / "fsdd.npz") as arrays:
        waves, offsets, digits = arrays["wave"], arrays["offsets"], arrays["y"]
        takes, speakers, names = arrays["take"], arrays["speaker"], [str(n) for n in arrays["speakers"]]
    picked = [i for i in range(len(digits)) if takes[i] < 2]
    for i in picked:
        path = tmp_path / "fsdd" / "recordings" / f"{digits[i]}_{names[speakers[i]]}_{takes[i]}.wav"
        write_wav(path, waves[offsets[i] : offsets[i + 1]].tolist(), rate=8000)
    data = made(FSDDData(root=str(tmp_path), speaker="theo"))
    assert len(data.train) + len(data.test) == len(picked) == 120
    assert Counter(y for _, y in data.test) == dict.fromkeys(range(10), 2)
    x = whole(data.train_dataloader())[0]
    assert -0.5 <= float(x.min()) < -0.4 and float(x.max()) == 0.5


def test_real_commands_are_read(tmp_path: Path) -> None:
    x, y, _, _, classes = real("speech_commands_mini")()
    folder = tmp_path / "speech_commands_v0.01"
    for i in range(30):
        write_wav(folder / classes[y[i]] / f"{i:08x}_nohash_0.wav", x[i].tolist())
    listed = [f"{classes[y[i]]}/{i:08x}_nohash_0.wav" for i in range(10)]
    (folder / "validation_list.txt").write_text("\n".join(listed[:5]))
    (folder / "testing_list.txt").write_text("\n".join(listed[5:]))
    data = made(commands_data(folder))
    shown: Tensor = whole(data.val_dataloader())[0]
    order = sorted(range(5), key=lambda i: listed[i])
    for row, i in enumerate(order):
        expected = torch.tensor(formula(x[i] / 2**15, 16000, 32))
        assert float((shown[row, 0].double() * 80 - 40 - expected).abs().max()) < 0.1
    assert len(data.train) == 20
