"""Mutated files of every method load, or are refused within bounds of time and memory."""

import pickletools
import random
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import LONGEST, SHAPES, many, members, rewrite, tiny

from eat_audio.checkpoints.load import load_model
from eat_audio.errors import CheckpointError
from eat_audio.models import METHODS, save

pytestmark = pytest.mark.usefixtures("called")

MOST = 16 * 2**20
"""Bytes that reading one file may take at most; the files are a hundredth of it."""


@pytest.fixture(scope="module")
def released() -> dict[str, dict[str, bytes]]:
    """By method: the members of a tiny file as released."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in SHAPES:
            model, path = tiny(method), Path(folder) / f"{method}.pt"
            torch.save(
                METHODS[method].converter("to_released")(
                    model, METHODS[method].feature_extractor()
                ),
                path,
            )
            load_model(path)  # as it is, it loads
            found[method] = members(path)
    return found


HOSTILE = [
    b"ceat_sentinel\ncall\n(tR",
    b"ceat_sentinel\ncall\n)\x81}b",
    b"\x8c\x0ceat_sentinel\x8c\x04call\x93)R",
    b"(ieat_sentinel\ncall\n",
    b"cposix\nsystem\n(X\x05\x00\x00\x00falsetR",
    b"cbuiltins\ngetattr\nceat_sentinel\ncall\nX\x08\x00\x00\x00__call__\x86R)R",
    b"r\xff\xff\xff\xff",
    b"\x96\xff\xff\xff\xff\xff\x00\x00\x00",
    b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00",
    b"\x8d\xff\xff\xff\xff\xff\x00\x00\x00",
    b"\x8b\xff\xff\xff\x7f",
    b"\x95\xff\xff\xff\xff\xff\x00\x00\x00",
    b"S'\\q'\n",
    b"2" * 64,
    b"(" * 64,
    b"1" * 8,
    b"I" + b"9" * 5000 + b"\n",
]
"""Instructions that a file may be made of: calls, and sizes that are not there."""


def mutated(content: bytes, seed: int) -> bytes:
    """The same with a few bytes changed, dropped, repeated, or with something hostile put in."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        end = at + chance.choice([1, 1, 2, 4, 16, 300])
        part = content[at:end]
        part = chance.choice(
            [
                bytes(chance.randrange(256) for _ in part),
                b"",
                part + part,
                chance.choice(HOSTILE) + part,
                bytes([chance.choice(b"\x00\x01\x7f\x80\xff")]) * len(part),
            ]
        )
        content = content[:at] + part + content[end:]
    return content


def spliced(program: bytes, seed: int) -> bytes:
    """The same with something hostile between two instructions, and what it leaves taken away."""
    chance = random.Random(seed)
    at = chance.choice([position for _, _, position in pickletools.genops(program)])
    return program[:at] + chance.choice(HOSTILE) + b"0" + program[at:]


def hostile_pickled(held: dict[str, bytes], path: Path, seed: int) -> Path:
    """A torch file that is changed in its program, in a tensor, in its names, or anywhere."""
    chance = random.Random(seed)
    names = list(held)
    program = next(name for name in names if name.endswith("/data.pkl"))
    match chance.choice(["splice", "splice", "program", "program", "member", "names", "file"]):
        case "splice":
            return rewrite(path, held | {program: spliced(held[program], seed)})
        case "program":
            return rewrite(path, held | {program: mutated(held[program], seed)})
        case "member":
            name = chance.choice(names)
            return rewrite(path, held | {name: mutated(held[name], seed)})
        case "names":
            one, other = chance.sample(names, 2)
            return rewrite(path, held | {one: held[other]})
    path.write_bytes(mutated(rewrite(path, held).read_bytes(), seed))
    return path


def survives(place: Path, file: Path) -> None:
    """It loads or is refused in one sentence, soon, and without much memory."""
    began = time.perf_counter()
    tracemalloc.start()
    try:
        load_model(place)
    except CheckpointError as error:
        assert str(place) in str(error) or str(file.parent) in str(error)
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert time.perf_counter() - began < LONGEST
    assert most < MOST


def check_pickled(released: dict[str, dict[str, bytes]], method: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = hostile_pickled(released[method], Path(folder) / "a.pt", seed)
        survives(path, path)


def check_safetensors(method: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny(method)
        save(model, METHODS[method].feature_extractor(), folder)
        file = folder / "model.safetensors"
        if seed % 4:  # in its header, where nearly all is decided
            content = file.read_bytes()
            length = 8 + int.from_bytes(content[:8], "little")
            header = mutated(content[8:length], seed)
            size = len(header) if seed % 2 else length - 8
            file.write_bytes(size.to_bytes(8, "little") + header + content[length:])
        else:
            file.write_bytes(mutated(file.read_bytes(), seed))
        survives(folder, file)


seeds = st.integers(0, 2**32 - 1)


some = settings(max_examples=60, deadline=None, derandomize=True, database=None)


methods = st.sampled_from(sorted(SHAPES))


def test_any_torch_file_loads_or_is_refused(released: Any) -> None:
    @some
    @given(methods, seeds)
    def check(method: str, seed: int) -> None:
        check_pickled(released, method, seed)

    check()


def test_any_safetensors_file_loads_or_is_refused() -> None:
    some(given(methods, seeds)(check_safetensors))()


@pytest.mark.slow
def test_many_more_torch_files_load_or_are_refused(released: Any) -> None:
    @many
    @given(methods, seeds)
    def check(method: str, seed: int) -> None:
        check_pickled(released, method, seed)

    check()


@pytest.mark.slow
def test_many_more_safetensors_files_load_or_are_refused() -> None:
    many(given(methods, seeds)(check_safetensors))()
