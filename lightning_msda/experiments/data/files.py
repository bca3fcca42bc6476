"""Files of data sets: fetched, found missing, found damaged, and kept in the form that training reads."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.datasets import utils

__all__ = ["Source", "check_images", "damaged", "kept", "needs_extra"]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and where it is put.

    Args:
        name: What people call it.
        folder: Its folder inside the root.
        fetch_by_hand: What to fetch and from where, as the end of a sentence.
        urls: Archives, or files of the folder, that anyone may download; none: an account is needed.
        md5: The archive's sum, where it is known.
        inside: The folder's name inside the archive, ``""`` where it holds the content alone; None: the same.
    """

    name: str
    folder: str
    fetch_by_hand: str
    urls: tuple[str, ...] = ()
    md5: str | None = None
    inside: str | None = None

    def find(self, root: str, *parts: str) -> Path:
        """Return the path of a file or folder of the data set.

        Args:
            root: The folder of all data sets.
            parts: Where it is inside the data set's own folder.

        Raises:
            FileNotFoundError: If it is not there.
        """
        path = Path(root, self.folder, *parts)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing. {self._by_hand(root)}")
        return path

    def fetch(self, root: str) -> None:
        """Download and unpack the data set, unless its folder is there; half an archive leaves no folder.

        Args:
            root: The folder of all data sets.

        Raises:
            FileNotFoundError: If it is not there and cannot be downloaded.
        """
        target = Path(root, self.folder)
        if target.exists():
            return
        if not self.urls:
            self.find(root)
        half = target.with_name(f"{target.name}.partial")
        try:
            for url in self.urls:
                if url.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
                    utils.download_and_extract_archive(url, root, str(half), md5=self.md5)
                else:
                    utils.download_url(url, str(half))
            (half / (self.folder if self.inside is None else self.inside)).rename(target)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{target} is missing and could not be downloaded ({error}). {self._by_hand(root)}"
            ) from error
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def _by_hand(self, root: str) -> str:
        folder = Path(root, self.folder)
        return f"For {self.name}, fetch {self.fetch_by_hand}, and unpack it so that {folder} exists."


def damaged(path: Path | str, reason: object) -> ValueError:
    """Return the error that names a file which cannot be read.

    Args:
        path: The file.
        reason: What is wrong with it.
    """
    return ValueError(f"{path} is damaged: {reason}. Delete it and fetch it again.")


def needs_extra(what: str, package: str) -> ModuleNotFoundError:
    """Return the error that says how to get a package which not everyone needs.

    Args:
        what: Who needs it.
        package: Its name.
    """
    return ModuleNotFoundError(f"{what} needs {package}: pip install 'lightning-msda[experiments]'.")


def kept(
    name: str, folder: Path, files: Sequence[Path], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what is made of files: made once, then read from disk, until a file comes, goes or changes.

    It is kept in ``folder/.lightning_msda``, or not at all where nothing can be written.

    Args:
        name: The name of what is made, with all settings that it depends on.
        folder: The data set's folder.
        files: What it is made of.
        make: Makes it: tensors and plain values.
    """
    place = folder / ".lightning_msda" / f"{name}.pt"
    key = _fingerprint(folder, files)
    try:
        found = torch.load(place, mmap=True, weights_only=True)
        if found["key"] == key:
            return dict(found["made"])
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError):
        pass  # nothing is kept yet, or only half of it
    made = make()
    half = place.with_suffix(f".{os.getpid()}")
    try:
        place.parent.mkdir(exist_ok=True)
        torch.save({"key": key, "made": made}, half)
        half.replace(place)
    except (OSError, RuntimeError):
        with suppress(OSError):
            half.unlink()
    return made


def check_images(name: str, folder: Path, files: Sequence[Path]) -> None:
    """Name the first file that is no whole image.

    The beginning and the end of each file are read, not the pixels: minutes for the 1.3 million images of
    ImageNet, once, for the result is kept. A file that looks wrong is decoded before it is called damaged.

    Args:
        name: A name for this set of files.
        folder: The data set's folder.
        files: Images.

    Raises:
        ValueError: If a file is damaged.
    """

    def check() -> dict[str, Any]:
        with ThreadPoolExecutor(16) as threads:
            for path, reason in zip(files, threads.map(_fault, files), strict=True):
                if reason:
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise damaged(path, reason)
        return {}

    kept(f"checked-{name}", folder, files, check)


def _fault(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(-min(path.stat().st_size, 32), os.SEEK_END)
        tail = file.read()
    whole = (head[:2] == b"\xff\xd8" and b"\xff\xd9" in tail) or (head[1:4] == b"PNG" and b"IEND" in tail)
    if not whole:
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError) as error:
            return str(error)
    return None


def _fingerprint(folder: Path, files: Iterable[Path]) -> str:
    sums = hashlib.sha256()
    for file in files:
        state = file.stat()
        sums.update(f"{file.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return sums.hexdigest()
