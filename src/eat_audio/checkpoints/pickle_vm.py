"""Interpret pickles without importing or calling anything.

Python's machine imports what a pickle names and calls it. In this one a name stays a name, and a
call becomes an inert object with its arguments. Tensors are described, not made: see `torch_file`.
The work is linear in the length of the program: what is compared, hashed or copied is bounded.
"""

import pickletools
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from eat_audio.errors import CheckpointError
from eat_audio.text import shortened

INSTRUCTIONS = 500_000
"""The longest program; one of 4,000 tensors, as many as are read, has 160,000."""
DIMENSIONS = 8
LARGEST = 2**62
"""No size, stride, offset or count is larger."""
NUMBER_BITS = 4_096
"""The longest number that settings hold."""
NAME = 128
"""The longest name of a module, a class, or a part of a file."""
KEY = 1_000
"""The longest key of a dict: equal ones are compared character by character."""
VALUES = {
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
"""Instructions with a value as argument."""
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
LARGEST_KEY = 2**60
"""Larger numbers can be made to collide in a dict, many at a time."""

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MAPPINGS = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict"}
PLAIN = {
    *("argparse", "collections", "copyreg", "datetime", "enum", "pathlib", "types", "typing"),
    *("uuid", "_codecs"),
}
"""Modules of Python whose objects settings contain."""
PLAIN_BUILTINS = {
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int"),
    *("list", "long", "object", "range", "set", "slice", "str", "tuple", "type", "unicode"),
    "xrange",
}
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}
"""Modules by their names in Python 2, which torch writes."""
PLAIN_OF_TORCH = {"_rebuild_tensor_v2", "_rebuild_parameter", "Size", "device", *STORAGES} | {
    str(dtype).removeprefix("torch.") for dtype in STORAGES.values()
}


def run(program: bytes) -> Any:
    """Return the value of a pickle as dicts, lists, tuples, views and inert objects."""
    machine = _Machine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, about odd escapes in a text
        for number, (code, argument, _) in enumerate(pickletools.genops(program)):
            if code.name == "STOP":
                return machine.stack.pop()
            if number > INSTRUCTIONS:
                raise CheckpointError(f"describes itself in more than {INSTRUCTIONS:_} steps")
            machine.step(code.name, argument)
    raise CheckpointError("ends in the middle")


@dataclass(frozen=True, slots=True)
class Name:
    """A name in a pickle, "posix.system"; it is never imported."""

    text: str


@dataclass(eq=False, slots=True)
class Object:
    """An object of a pickle: the call that would make it, and its state."""

    function: object
    arguments: object
    state: object = None

    def content(self) -> object:
        """Return its attributes, of omegaconf's nodes the value, else its arguments."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:  # an object with slots
            state = state[0] or state[1]
        if isinstance(state, dict):
            for name in ("_content", "_val"):
                if name in state:
                    return state[name]
            return state
        if isinstance(self.arguments, tuple) and len(self.arguments) == 1:
            return self.arguments[0]
        return self.arguments if state is None else state


@dataclass(frozen=True, slots=True)
class Storage:
    """A member of the file with the numbers of tensors."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """A tensor as a view of its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Machine:
    """A stack machine that only assembles data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[tuple[str, str], Name] = {}

    def step(self, code: str, argument: Any) -> None:
        """Run one instruction, by its name in `pickletools`."""
        if code in VALUES:
            if isinstance(argument, int) and argument.bit_length() > NUMBER_BITS:
                raise CheckpointError(f"holds {shortened(argument)}; no setting is as large")
            self.stack.append(argument)
        elif code in CONSTANTS:
            self.stack.append(CONSTANTS[code])
        elif code in EMPTY:
            self.stack.append(EMPTY[code]())
        elif code in TUPLES:
            reverse = [self.stack.pop() for _ in range(TUPLES[code])]
            self.stack.append(tuple(reverse[::-1]))
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        else:
            self._step_of_objects(code, argument)

    def _step_of_objects(self, code: str, argument: Any) -> None:
        stack = self.stack
        match code:
            case "PROTO" | "FRAME":
                pass
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "POP":
                stack.pop()
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "POP_MARK":
                self._since_mark()
            case "TUPLE":
                items = self._since_mark()
                self.stack.append(tuple(items))
            case "LIST" | "FROZENSET":
                items = self._since_mark()
                self.stack.append(items)
            case "DICT":
                items = self._since_mark()
                self.stack.append(_entered({}, items))
            case "APPEND":
                added = stack.pop()
                _extended(stack[-1], [added])
            case "APPENDS" | "ADDITEMS":
                items = self._since_mark()
                _extended(self.stack[-1], items)
            case "SETITEM":
                value, name = stack.pop(), stack.pop()
                _entered(stack[-1], [name, value])
            case "SETITEMS":
                items = self._since_mark()
                _entered(self.stack[-1], items)
            case "GLOBAL":
                stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self._named(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "NEWOBJ_EX":
                named, arguments, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(Object(function, arguments, named))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Object):  # attributes of a dict are no settings
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case _:
                raise CheckpointError(f"is not written as torch writes ({code})")

    def _named(self, module: Any, name: Any) -> Name:
        """Return one object per name, however often a program has it."""
        if not _is_name(module) or not _is_name(name):
            raise CheckpointError(
                f"names {shortened(module)}, {shortened(name)}; expected a module and a class"
            )
        if (module, name) not in self.names:
            self.names[module, name] = _allowed(module, name)
        return self.names[module, name]

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items


def _extended(collection: Any, items: list[Any]) -> None:
    """Add items to a list; those of an inert object are dropped."""
    if isinstance(collection, list):
        collection.extend(items)


def _entered(mapping: Any, items: list[Any]) -> Any:
    """Add [name, value, name, value, ...] to a dict; those of an inert object are dropped."""
    if isinstance(mapping, dict):
        for name, value in zip(items[::2], items[1::2], strict=True):
            # other keys might take long to compare, and no settings have them
            if isinstance(name, str) and len(name) > KEY:
                raise CheckpointError(f"has a key of {len(name):_} characters")
            if isinstance(name, str) or (isinstance(name, int) and abs(name) < LARGEST_KEY):
                mapping[name] = value
    return mapping


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= NAME


def _allowed(module: str, name: str) -> Name:
    """Return a name unless it is one of code of Python or torch; others are inert anyway."""
    module = OLD_NAMES.get(module, module)
    package = module.partition(".")[0]
    harmless = {"builtins": name in PLAIN_BUILTINS, "torch": name in PLAIN_OF_TORCH}
    allowed = harmless.get(package, package in PLAIN or package not in sys.stdlib_module_names)
    if not allowed:
        raise CheckpointError(f"refused, since it asks for code to be run ({module}.{name})")
    return Name(f"{module}.{name}")


def _call(function: Any, arguments: Any) -> Any:
    """Return the result of a call: a tensor, a dict, else an inert object."""
    name = function.text if isinstance(function, Name) else ""
    if name in MAPPINGS and (not arguments or name == "collections.defaultdict"):
        return {}
    if name == "torch.Size":
        return _numbers("size", _argument(arguments, 0))
    if name.startswith("torch._utils._rebuild_parameter"):
        return _argument(arguments, 0)
    if name.startswith("torch._utils._rebuild_tensor"):
        storage, offset, size, stride = (_argument(arguments, index) for index in range(4))
        size, stride = _numbers("size", size), _numbers("strides", stride)
        if not isinstance(storage, Storage) or len(size) != len(stride):
            raise CheckpointError("has a tensor that is none")
        (offset,) = _numbers("offset", (offset,))
        return View(storage, offset, size, stride)
    return Object(function, arguments)


def _argument(arguments: object, index: int) -> Any:
    if not isinstance(arguments, tuple) or len(arguments) <= index:
        raise CheckpointError("has a tensor that is none")
    return arguments[index]


def _numbers(what: str, value: object) -> tuple[int, ...]:
    """Return a size or strides: a few whole numbers, none below 0."""
    if (
        not isinstance(value, tuple | list)
        or len(value) > DIMENSIONS
        or not all(type(n) is int and 0 <= n < LARGEST for n in value)
    ):
        raise CheckpointError(f"has a tensor of {what} {shortened(value)}")
    return tuple(value)


def _storage(value: Any) -> Storage:
    """Return the storage of ("storage", torch.FloatStorage, "12", "cuda:0", 768)."""
    if not isinstance(value, tuple) or len(value) != 5:
        raise CheckpointError("holds memory of an unknown kind")
    kind, storage, key, _, count = value
    name = storage.text if isinstance(storage, Name) else shortened(storage)
    dtype = STORAGES.get(name.rpartition(".")[2]) if isinstance(storage, Name) else None
    fits = _is_name(kind) and kind == "storage" and _is_name(key)
    if not fits or dtype is None or type(count) is not int or not 0 <= count < LARGEST:
        raise CheckpointError(f"holds memory of an unknown kind ({name})")
    return Storage(key, dtype, count)
