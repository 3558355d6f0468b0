"""A `.pt`, `.pth` or `.bin` file -> plain settings and tensors, without running anything in it.

Such a file is a zip of a pickle and of one member per tensor. The pickle is a program that may
import and call anything; `machine` runs it without ever doing so. So settings written by programs
that are not installed (omegaconf, argparse, fairseq) can be read, too. Files from before torch 1.6
are refused.

Sizes are compared with the file's own before memory is taken; the work is linear in the file.
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
"""How files began before torch 1.6."""
OPTIMISERS = {"last_optimizer_state", "optimizer"}
"""Top-level entries that are not read: twice as large as the weights, of use to nobody else."""

DAMAGED = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(EOFError, RuntimeError, OSError, BadZipFile, struct.error),
)
"""What a damaged or hostile file makes its readers raise."""


def read_pickled(path: str | Path) -> dict[str, Any]:
    """Read a torch file: its dictionary, of plain settings and tensors on the CPU.

    Objects of classes that are not known here appear as what they keep: a dict of their
    attributes, or what they were made of. The state of an optimizer is left out.

    Raises:
        CheckpointError: It is no such file, is damaged, or asks for code to be run.
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
        told = str(error)
        raise CheckpointError(told if told.startswith(f"{path}") else f"{path}: {told}") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from None


class _Archive:
    """An open file whose directory has been checked, and what has been read from it."""

    def __init__(self, archive: ZipFile, size: int) -> None:
        self.archive = archive
        self.size = size
        self.tensors = self.claimed = 0
        self.storages: dict[str, Tensor] = {}
        self.settled: dict[int, Any] = {}
        self.weights: dict[int, int] = {}
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
        """The dictionary that the file is about."""
        if self.members[self.program].file_size > PICKLE_BYTES:
            raise CheckpointError(f"describes itself in more than {PICKLE_BYTES:_} bytes")
        order = self.root + "byteorder"
        known = self.members.get(order)
        if known and (known.file_size > LONGEST_ROOT or self.archive.read(order) != b"little"):
            raise CheckpointError("was written on a big-endian machine, which is not read")
        told = run(self.archive.read(self.program))
        told = told.kept() if isinstance(told, Object) else told
        if not isinstance(told, dict):
            raise CheckpointError("holds no dictionary; expected a released checkpoint")
        told = {name: x for name, x in told.items() if name not in OPTIMISERS}
        return self._settle(told, 0)[0]

    def _settle(self, value: Any, depth: int) -> tuple[Any, int]:
        """Objects -> what they keep, views -> tensors, all the way down; how many values that is.

        What shares its parts may be small here and without an end to whoever walks through it, so
        it is counted as if written out.
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
        if id(value) not in self.settled:
            if depth > DEPTH:
                raise CheckpointError("is nested too deeply, or in itself")
            self.settled[id(value)], self.weights[id(value)] = self._settled(value, depth + 1)
        return self.settled[id(value)], self.weights[id(value)]

    def _settled(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, View):
            return self._tensor(value), 1
        if isinstance(value, Object):
            return self._settle(value.kept(), depth)
        parts = list(value.values()) if isinstance(value, dict) else value
        settled, written_out = [], 1
        for part in parts:
            made, weight = self._settle(part, depth)
            settled.append(made)
            written_out += weight
            if written_out > WRITTEN_OUT:
                raise CheckpointError("has settings that multiply if they are written out")
        if isinstance(value, dict):
            written_out += sum(len(name) for name in value if isinstance(name, str)) // CHARACTERS
            return dict(zip(value, settled, strict=True)), written_out
        return type(value)(settled), written_out

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
            there = self.members[name].file_size if name in self.members else 0
            if there != storage.count * storage.dtype.itemsize:
                raise CheckpointError(
                    f"holds {there} bytes as {name}; expected {storage.count} of {storage.dtype}"
                )
            content = bytearray(self.archive.read(name)) if there else bytearray(1)
            raw = torch.frombuffer(content, dtype=torch.uint8)[:there]
            self.storages[name] = raw.view(storage.dtype)
        return self.storages[name]
