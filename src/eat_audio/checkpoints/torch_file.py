"""Read `.pt`, `.pth` and `.bin` files as plain settings and tensors, without running their code.

Such a file is a zip of a pickle and of one member per storage. `pickle_vm` interprets the pickle
without importing anything, so that settings of packages that are not installed (omegaconf,
argparse, fairseq) can be read, too. Files from before torch 1.6 are refused.

Sizes are compared with the file's length before memory is taken; the work is linear in it.
"""

import re
import struct
from math import prod
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from eat_audio.checkpoints.pickle_vm import Name, Object, Storage, View, run
from eat_audio.errors import CheckpointError

PICKLE_BYTES = 4 * 2**20
"""The longest program; a recorded checkpoint of 90 tensors and all settings has 26 KB."""
MEMBERS = 20_000
"""The most parts of a file, those of its optimizer included."""
TENSORS = 4_000
"""The most tensors of a model and its teacher; large ones have 600."""
DEPTH = 64
"""How deep settings may be nested."""
WRITTEN_OUT = 2_000_000
"""The most values that settings have if those that share their parts are written out."""
CHARACTERS = 16
"""So many characters of a text count as one value."""
LONGEST_ROOT = 255
"""Characters of the folder that all members of a file are in."""
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of files from before torch 1.6."""
OPTIMIZERS = {"last_optimizer_state", "optimizer"}
"""Top-level entries that are not read: they are twice as large as the weights."""

DAMAGED = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(EOFError, RuntimeError, OSError, BadZipFile, struct.error),
)
"""Errors that reading a damaged or hostile file raises."""


def read_pickled(path: str | Path) -> dict[str, Any]:
    """Read the dictionary of a torch file: plain settings, and tensors on the CPU.

    Objects of other classes become dicts of their attributes, or the arguments they were made
    with. The state of an optimizer is left out.

    Raises:
        CheckpointError: It is no such file, is damaged, or needs code to be run.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(LEGACY)) == LEGACY:
                raise CheckpointError(
                    f"{path}: is in torch's format of before version 1.6, which is not read; "
                    "torch.save(torch.load(OLD, weights_only=True), NEW) in a newer torch writes "
                    "it anew"
                )
        with ZipFile(path) as archive:
            return _Archive(archive, Path(path).stat().st_size).content()
    except CheckpointError as error:
        message = str(error)
        prefix = "" if message.startswith(f"{path}") else f"{path}: "
        raise CheckpointError(prefix + message) from None
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from None


class _Archive:
    """An open file with a checked directory, and what has been read from it."""

    def __init__(self, archive: ZipFile, size: int) -> None:
        self.archive = archive
        self.size = size
        self.tensors = self.claimed = 0
        self.storages: dict[str, Tensor] = {}
        self.converted: dict[int, tuple[Any, int]] = {}
        members = archive.infolist()
        self.members = {member.filename: member for member in members}
        programs = [name for name in self.members if re.fullmatch("[^/]+/data.pkl", name)]
        if len(programs) != 1:
            raise CheckpointError("is a zip file, but not one of torch's (no data.pkl)")
        if len(members) > MEMBERS or len(self.members) < len(members):
            raise CheckpointError(f"has {len(members)} members; expected distinct ones, a few")
        if any(
            m.compress_type != ZIP_STORED or m.flag_bits & 1 or m.file_size != m.compress_size
            for m in members
        ):
            raise CheckpointError("is compressed or encrypted, which torch's files are not")
        if sum(member.file_size for member in members) > size:
            raise CheckpointError("claims to hold more than its length")
        self.program = programs[0]
        self.root = self.program.removesuffix("data.pkl")
        if len(self.root) > LONGEST_ROOT:
            raise CheckpointError(f"has members whose names have {len(self.root):_} characters")

    def content(self) -> dict[str, Any]:
        """Return the dictionary of the file."""
        if self.members[self.program].file_size > PICKLE_BYTES:
            raise CheckpointError(f"describes itself in more than {PICKLE_BYTES:_} bytes")
        order = self.root + "byteorder"
        member = self.members.get(order)
        if member and (member.file_size > LONGEST_ROOT or self.archive.read(order) != b"little"):
            raise CheckpointError("was written on a big-endian machine, which is not read")
        content = run(self.archive.read(self.program))
        content = content.content() if isinstance(content, Object) else content
        if not isinstance(content, dict):
            raise CheckpointError("holds no dictionary; expected a released checkpoint")
        content = {name: x for name, x in content.items() if name not in OPTIMIZERS}
        return self._plain(content, 0)[0]

    def _plain(self, value: Any, depth: int) -> tuple[Any, int]:
        """Replace objects by their content and views by tensors; also return a number of values.

        Shared values may be few and endless for a reader that walks through them, so they are
        counted as if written out.
        """
        if isinstance(value, View):
            self.tensors += 1
            self.claimed += prod(value.size) * value.storage.dtype.itemsize
            # twice, as a released file names some tensors twice
            if self.tensors > TENSORS or self.claimed > 2 * self.size:
                raise CheckpointError("claims to hold more tensors than its length allows")
        elif isinstance(value, Name):
            return value.text, 1 + len(value.text) // CHARACTERS
        elif isinstance(value, str | bytes):
            return value, 1 + len(value) // CHARACTERS
        elif not isinstance(value, dict | list | tuple | Object):
            return value, 1
        if id(value) not in self.converted:
            if depth > DEPTH:
                raise CheckpointError("is nested too deeply, or in itself")
            self.converted[id(value)] = self._convert(value, depth + 1)
        return self.converted[id(value)]

    def _convert(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, View):
            return self._tensor(value), 1
        if isinstance(value, Object):
            return self._plain(value.content(), depth)
        parts = list(value.values()) if isinstance(value, dict) else value
        converted, written_out = [], 1
        for part in parts:
            plain, count = self._plain(part, depth)
            converted.append(plain)
            written_out += count
            if written_out > WRITTEN_OUT:
                raise CheckpointError("has settings that multiply if they are written out")
        if isinstance(value, dict):
            written_out += sum(len(name) for name in value if isinstance(name, str)) // CHARACTERS
            return dict(zip(value, converted, strict=True)), written_out
        return type(value)(converted), written_out

    def _tensor(self, view: View) -> Tensor:
        last = view.offset + sum(
            (count - 1) * step for count, step in zip(view.size, view.stride, strict=True)
        )
        count = prod(view.size)
        if count and not (last < view.storage.count and count <= view.storage.count):
            raise CheckpointError(f"has a tensor {view.size} that reaches beyond its memory")
        flat = self._memory(view.storage)
        return (
            flat.as_strided(view.size, view.stride, view.offset)
            if count
            else flat.new_empty(view.size)
        )

    def _memory(self, storage: Storage) -> Tensor:
        name = f"{self.root}data/{storage.key}"
        if name not in self.storages:
            size = self.members[name].file_size if name in self.members else 0
            if size != storage.count * storage.dtype.itemsize:
                raise CheckpointError(
                    f"holds {size} bytes as {name}; expected {storage.count} of {storage.dtype}"
                )
            content = bytearray(self.archive.read(name)) if size else bytearray(1)
            raw = torch.frombuffer(content, dtype=torch.uint8)[:size]
            self.storages[name] = raw.view(storage.dtype)
        return self.storages[name]
