"""Reads a W&B run back from its ``.wandb`` file: a LevelDB log of protobuf records."""

from __future__ import annotations

import importlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_BLOCK = 32768
_FULL, _LAST = 1, 4  # a record in one piece, and the last piece of one


@dataclass
class Run:
    """What is in a run's file.

    Attributes:
        folder: The run's folder.
        name: Its name, empty if it was given none.
        group: Its group.
        tags: Its tags.
        config: The configuration, as it was updated last.
        history: What was logged, row by row.
        finished: Whether the run came to its end.
    """

    folder: Path
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False

    def logged(self, key: str) -> list[tuple[int, Any]]:
        """Return the steps and values of a key."""
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let W&B write its runs to files alone."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    end_service()


def end_service() -> None:
    """End the current run and wait for W&B's service to end."""
    import wandb

    wandb.finish()
    wandb.teardown()


def read_runs(folder: Path) -> list[Run]:
    """Return the runs below a folder, in order of their making, after W&B's service has ended."""
    end_service()
    files = [path for path in folder.rglob("run-*.wandb") if "latest-run" not in path.parts]
    return [_read_run(path) for path in sorted(files, key=lambda path: path.stat().st_mtime)]


def _read_run(path: Path) -> Run:
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    run = Run(path.parent)
    for payload in _records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.group = record.run.display_name, record.run.run_group
            run.tags = list(record.run.tags)
            _update(run.config, record.run.config.update)
        elif kind == "config":
            _update(run.config, record.config.update)
        elif kind == "history":
            run.history.append(_update({}, record.history.item))
        run.finished = run.finished or kind == "exit"
    return run


def _update(values: dict[str, Any], items: Iterable[Any]) -> dict[str, Any]:
    """Put items with keys or nested keys into a dict."""
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = values
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return values


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log: pieces with a checksum, none of which crosses the end of a block."""
    assert data.startswith(b":W&B")
    position, record = 7, b""
    while position + 7 <= len(data):
        if _BLOCK - position % _BLOCK < 7:
            position += _BLOCK - position % _BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + 7 : position + 7 + length]
        assert zlib.crc32(piece, zlib.crc32(bytes([kind]))) == checksum
        position, record = position + 7 + length, record + piece
        if kind in (_FULL, _LAST):
            yield record
            record = b""
