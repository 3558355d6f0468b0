"""Reading a torch file runs nothing of it, takes no more memory than it holds, and always ends."""

import argparse
import os
import subprocess
import sys
import time
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED

import pytest
import torch
from torch_files import LONGEST, SENTINEL, SHAPES, members, program, rewrite, tiny

from conftest import DATA, needs_data
from eat_audio.checkpoints.convert import read_pickled
from eat_audio.checkpoints.load import load_model
from eat_audio.errors import CheckpointError
from eat_audio.models import METHODS

pytestmark = pytest.mark.usefixtures("called")


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as told:
        read_pickled(path)
    sentence = str(told.value)
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence
    return sentence.removeprefix(f"{path}: ")


def foreign(module: str, name: str, monkeypatch: pytest.MonkeyPatch, base: type = object) -> Any:
    """A class of a package that is not installed, as long as a file is being written."""
    made = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), types.ModuleType(module))
    setattr(sys.modules[module], name, made)
    return made


def of(kind: Any, **state: Any) -> Any:
    thing = kind.__new__(kind)
    thing.__dict__.update(state)
    return thing


def with_program(path: Path, change: Callable[[bytes], bytes]) -> Path:
    held = members(path)
    name = program(path)
    return rewrite(path, held | {name: change(held[name])})


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.save({"w": torch.arange(6.0).view(2, 3)}, tmp_path / "plain.pt")
    return tmp_path / "plain.pt"


def test_what_torch_writes_is_read_back(tmp_path: Path) -> None:
    storage = torch.arange(24.0)
    content = {
        "kinds": [storage.to(kind) for kind in (torch.float16, torch.bfloat16, torch.int64)],
        "views": (storage.view(4, 6).T, storage[3:7], storage[::5], storage[:0], storage[2]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "flags": torch.tensor([True, False]),
        "state": OrderedDict(a=1, b=-(2**70), c=0.1, d=None, e=True, f="ü", g={3: [1, (2,)]}),
    }
    torch.save(content, tmp_path / "a.pt")
    back = read_pickled(tmp_path / "a.pt")
    for name in ("kinds", "views"):
        assert all(torch.equal(x, y) for x, y in zip(content[name], back[name], strict=True))
        assert [x.dtype for x in content[name]] == [x.dtype for x in back[name]]
    assert torch.equal(back["parameter"], torch.ones(2))
    assert back["flags"].tolist() == [True, False]
    assert back["state"] == dict(content["state"])


def test_settings_of_programs_that_are_not_installed_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As omegaconf, argparse and fairseq keep them: nodes that know their parents, and enums."""
    dict_config = foreign("omegaconf.dictconfig", "DictConfig", monkeypatch)
    node = foreign("omegaconf.nodes", "AnyNode", monkeypatch)
    task = foreign("fairseq.tasks.audio", "AudioTask", monkeypatch)
    whole = of(dict_config, _metadata=None, _parent=None)
    whole._content = {"num_heads": of(node, _val=12, _parent=whole)}
    content = {
        "cfg": whole,
        "args": argparse.Namespace(lr=[0.1], inner=argparse.Namespace(x=1)),
        "task": of(task, name="a", where=Path("b"), count=defaultdict(int, c=2)),
    }
    torch.save(content, tmp_path / "a.pt")
    monkeypatch.undo()
    back = read_pickled(tmp_path / "a.pt")
    assert back["cfg"] == {"num_heads": 12}
    assert back["args"] == {"lr": [0.1], "inner": {"x": 1}}
    assert back["task"] == {"name": "a", "where": "b", "count": {"c": 2}}


def test_the_state_of_an_optimizer_is_left_out(tmp_path: Path) -> None:
    torch.save({"model": {}, "optimizer": {"state": torch.ones(9)}}, tmp_path / "a.pt")
    assert read_pickled(tmp_path / "a.pt") == {"model": {}}


class Calls:
    """Pickles as a call of something."""

    def __init__(self, what: Any, *arguments: Any) -> None:
        self.told = what, arguments

    def __reduce__(self) -> Any:
        return self.told


def test_a_foreign_call_stays_what_was_written(tmp_path: Path) -> None:
    call = sys.modules[SENTINEL].call
    call.__module__, call.__qualname__ = SENTINEL, "call"
    torch.save({"a": Calls(call, 1, 2)}, tmp_path / "a.pt")
    assert read_pickled(tmp_path / "a.pt") == {"a": (1, 2)}


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (eval, "builtins.eval"),
        (os.system, "posix.system"),
        (subprocess.Popen, "subprocess.Popen"),
        (torch.load, "torch.serialization.load"),
    ],
    ids=["eval", "system", "Popen", "torch.load"],
)
def test_a_file_that_asks_for_code_of_python_or_torch_is_refused(
    what: Any, name: str, tmp_path: Path
) -> None:
    torch.save({"a": Calls(what, "1")}, tmp_path / "a.pt")
    assert refused(tmp_path / "a.pt") == (f"refused, since it asks for code to be run ({name})")


@needs_data
def test_the_hostile_file_runs_nothing() -> None:
    marker = Path("/tmp/pwned_eat")
    marker.unlink(missing_ok=True)
    assert "posix.system" in refused(DATA / "nasty" / "checkpoints" / "runs_code.pt")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", bytes(1000)])
def test_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    assert "cannot be read as a checkpoint" in refused(tmp_path / "a.pt")


def test_the_format_of_before_torch_1_6_is_refused_with_a_remedy(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "weights_only=True" in refused(tmp_path / "a.pt")


def test_a_zip_file_of_other_things_is_refused(tmp_path: Path) -> None:
    assert "no data.pkl" in refused(rewrite(tmp_path / "a.pt", {"a/b.txt": b""}))


def test_what_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "a.pt")
    assert "no dictionary" in refused(tmp_path / "a.pt")


def test_compressed_members_are_not_unpacked(plain: Path) -> None:
    assert "compressed" in refused(rewrite(plain, members(plain), ZIP_DEFLATED))


def test_a_changed_byte_is_noticed(plain: Path) -> None:
    content = plain.read_bytes()
    at = content.index(torch.arange(6.0).numpy().tobytes())
    plain.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    assert "CRC" in refused(plain)


def test_memory_of_another_size_than_its_tensor_is_refused(plain: Path) -> None:
    held = members(plain)
    name = next(name for name in held if name.endswith("/data/0"))
    assert "holds 20 bytes" in refused(rewrite(plain, held | {name: held[name][:-4]}))
    del held[name]
    assert "holds 0 bytes" in refused(rewrite(plain, held))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"K\x02K\x03\x86", b"K\x02K\x04\x86", "reaches beyond its memory"),
        (b"K\x03K\x01\x86", b"K\x09K\x01\x86", "reaches beyond its memory"),
        (b"K\x02K\x03\x86", b"J\xff\xff\xff\x7fK\x03\x86", "length allows"),
        (b"K\x03K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86", "of strides"),
        (b"K\x03K\x01\x86", b"K\x01\x85", "a tensor that is none"),
        (b"FloatStorage", b"QUInt8Storage", "torch.QUInt8Storage"),
    ],
)
def test_a_tensor_that_is_not_all_there_is_refused(
    old: bytes, new: bytes, said: str, plain: Path
) -> None:
    assert said in refused(with_program(plain, lambda program: program.replace(old, new)))


def test_many_names_for_the_same_memory_are_refused(tmp_path: Path) -> None:
    x = torch.zeros(1000)
    torch.save({f"a{n}": x[:] for n in range(100)}, tmp_path / "a.pt")
    assert "more tensors than its length allows" in refused(tmp_path / "a.pt")


def test_what_is_nested_deeply_or_in_itself_is_refused(tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    for odd in (ring, deep):
        torch.save({"a": odd}, tmp_path / "a.pt")
        assert "nested too deeply" in refused(tmp_path / "a.pt")


def test_what_is_shared_is_read_as_shared(tmp_path: Path) -> None:
    many: list[Any] = []
    for _ in range(10):
        many = [many, many]
    torch.save({"a": many}, tmp_path / "a.pt")
    back = read_pickled(tmp_path / "a.pt")["a"]
    assert back[0] is back[1]


@pytest.mark.parametrize("kind", [list, tuple])
def test_what_doubles_with_every_level_is_refused_in_no_time(kind: type, tmp_path: Path) -> None:
    many = kind()
    for _ in range(60):
        many = kind([many, many])
    torch.save({"a": many}, tmp_path / "a.pt")
    assert "multiply" in refused(tmp_path / "a.pt")


def text(content: bytes) -> bytes:
    return b"X" + len(content).to_bytes(4, "little") + content


def number(bits: int) -> bytes:
    content = (1 << bits).to_bytes((bits + 1) // 8 + 1, "little", signed=True)
    return b"\x8b" + len(content).to_bytes(4, "little") + content


def doubling(kind: bytes, depth: int = 40) -> bytes:
    """Instructions that leave 2 ** depth times the same, tuples or lists, on the stack."""
    whole = (b"N\x85" if kind == b"t" else b"]") + b"q\x000"
    for level in range(depth):
        before, here = bytes([level]), bytes([level + 1])
        pair = b"(h" + before + b"h" + before + b"t" if kind == b"t" else b"]"
        filled = b"" if kind == b"t" else b"(h" + before + b"h" + before + b"e"
        whole += pair + filled + b"q" + here + b"0"
    return whole + b"h" + bytes([depth])


def a_tensor(size: bytes, strides: bytes, offset: bytes = b"K\x00", of: bytes = b"K\x04") -> bytes:
    memory = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + memory + of + b"tQ" + offset + size + strides
    ) + b"\x89ccollections\nOrderedDict\n)RtR"


ONE = b"K\x01\x85"
MULTIPLIED = {
    "a module of tuples": doubling(b"t") + text(b"x") + b"\x93",
    "a name of tuples": text(b"foo") + doubling(b"t") + b"\x93",
    "a name of lists": text(b"foo") + doubling(b"e") + b"\x93",
    "a size of tuples": a_tensor(doubling(b"t"), ONE),
    "a size of lists": a_tensor(doubling(b"e") + b"\x85", ONE),
    "strides of lists": a_tensor(ONE, doubling(b"e")),
    "an offset of lists": a_tensor(ONE, ONE, offset=doubling(b"e")),
    "a count of tuples": a_tensor(ONE, ONE, of=doubling(b"t")),
    "a key of tuples": doubling(b"t") + b"Q",
    "a torch.Size of lists": b"ctorch\nSize\n" + doubling(b"e") + b"\x85R",
    "a large size": a_tensor(number(2**20) + b"\x85", ONE),
    "a large stride": a_tensor(ONE, number(2**20) + b"\x85"),
    "a large offset": a_tensor(ONE, ONE, offset=number(2**20)),
    "a large count": a_tensor(ONE, ONE, of=number(2**20)),
    "a size beyond 2 ** 62": a_tensor(number(63) + b"\x85", ONE),
    "a size that is true": a_tensor(b"\x88\x85", ONE),
    "a long name": b"cos\n" + b"A" * 3_000_000 + b"\n",
    "a long name that is repeated": text(b"A" * 2_000_000)
    + b"q\x000"
    + b"h\x00h\x00\x930" * 200_000
    + b"N",
    "an escape in a name": b"cos\n\x1b]0;owned\x07\x1b[2Jx\n",
    "a long key of a dict": b"}" + text(b"A" * 2_000_000) + b"Ns",
    "many marks": b"(" * 3_900_000,
    "many dicts": b"}" * 3_900_000,
    "many lists": b"]" * 3_900_000,
    "many objects": b"N)R" * 1_300_000,
}
"""By what is wrong: instructions that leave something on the stack."""


@pytest.mark.parametrize("instructions", MULTIPLIED.values(), ids=MULTIPLIED)
def test_what_multiplies_is_refused_soon_and_in_a_short_sentence(
    instructions: bytes, tmp_path: Path
) -> None:
    torch.save({"w": None}, tmp_path / "a.pt")
    path = with_program(
        tmp_path / "a.pt", lambda _: b"\x80\x02}" + text(b"w") + instructions + b"s."
    )
    began = time.process_time()
    sentence = refused(path)
    assert time.process_time() - began < LONGEST
    assert len(sentence) < 480 and sentence.isprintable()


@pytest.mark.parametrize("method", sorted(SHAPES))
def test_settings_of_released_files_are_shown_in_short(method: str, tmp_path: Path) -> None:
    model = tiny(method)
    content = METHODS[method].converter("to_released")(model, METHODS[method].feature_extractor())
    many: list[Any] = []
    for _ in range(15):
        many = [many, many]
    odd = {"num_heads": many, "encoder_layers": many, "prediction_mode": many, "norm_eps": many}
    for name in ("cfg", "args"):
        if name in content:
            inner = content[name].get("model", content[name])
            inner |= odd
    torch.save(content, tmp_path / "a.pt")
    try:
        load_model(tmp_path / "a.pt")
    except CheckpointError as error:
        assert len(str(error)) < 480


def test_numbers_that_share_their_places_in_a_dict_take_no_time(tmp_path: Path) -> None:
    """A dict of whole numbers can be made to compare every one with all others."""
    keys = b"".join(
        b"\x8a\x0a" + ((2**61 - 1) * n).to_bytes(10, "little") + b"N" for n in range(1, 50_000)
    )
    torch.save({"w": None}, tmp_path / "a.pt")
    path = with_program(tmp_path / "a.pt", lambda _: b"\x80\x02}(" + keys + b"u.")
    began = time.perf_counter()
    assert read_pickled(path) == {}
    assert time.perf_counter() - began < LONGEST


def test_a_program_that_is_too_long_is_refused(plain: Path) -> None:
    path = with_program(plain, lambda program: b"\x80\x02" + b"N0" * 2**22 + program[2:])
    assert "describes itself in more than" in refused(path)


def test_a_big_endian_file_is_refused(plain: Path) -> None:
    held = members(plain)
    name = next(name for name in held if name.endswith("/byteorder"))
    assert "big-endian" in refused(rewrite(plain, held | {name: b"big"}))
