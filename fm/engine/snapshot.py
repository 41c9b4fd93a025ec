"""What one rank contributes to a checkpoint: copies in host memory, written as files or handed out as bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Snapshot:
    """What one rank writes: copies in host memory, by file name."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        """Copy tensors to host memory, to be written as one safetensors file."""
        self.tensors[name] = {
            key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for key, value in tensors.items()
        }
        self.metadata[name] = metadata or {}

    def write(self, folder: Path) -> None:
        """Write the files and make them durable: another machine cannot do that for this one's."""
        for name, tensors in self.tensors.items():
            save_file(tensors, folder / name, self.metadata[name])
            _sync(folder / name)
        for name, text in self.texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
            _sync(folder / name)

    def payloads(self) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each file; one at a time, so that no more than the largest is in memory once more."""
        for name, tensors in self.tensors.items():
            yield name, save(tensors, self.metadata[name])
        for name, text in self.texts.items():
            yield name, text.encode()


def _sync(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
