"""Valid bytes and a random generator -> bytes that are no longer quite valid.

Every function takes what it changes and a `random.Random`, and is deterministic in both.
"""

import io
import json
import pickletools
import re
import string
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
"""What a header's field is replaced by."""
STRINGS = (
    *(
        "",
        " ",
        "\x00",
        "\x1b[2J\x1b]0;owned\x07",
        "\x9b2J",
        "a\nb",
        "\u202egnp",
        "é",
        "é",
        "\ud800",
    ),
    *("nan", "inf", "-inf", "None", "null", "true", "[]", "{}", "~", "=1+1", "@SUM(A1)", "-", "+1"),
    *("0", "-1", "1e-5", "1.7e308", "1e400", "9" * 400, "0x10", "1_000", "1,5", "٣", "00:00:01.5"),
    *("..", "../../etc/passwd", "/dev/zero", "/proc/self/mem", "a\\b.wav", "~/a.wav", "C:\\a.wav"),
    *("http://127.0.0.1:9/a.wav", "x" * 300, "x" * 100_000, "%s%n", "${HOME}", "a;b", "a|b", '"'),
    *("train", "Test", "label", "path", "['a', 'b']", '["a"]', "{'a': 1}", "<script>", "'"),
)
"""What a cell, a name or a text value is replaced by."""


# ---- any bytes


def flip(data: bytes, random: Random) -> bytes:
    """Some bytes set to others."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16, 64))):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def flip_head(data: bytes, random: Random) -> bytes:
    """Some bytes among the first set to others."""
    size = random.choice((16, 64, 256, 1024))
    return flip(data[:size], random) + data[size:]


def field(data: bytes, random: Random) -> bytes:
    """A number of 2, 4 or 8 bytes among the first, or anywhere, set to an extreme."""
    width = random.choice((2, 4, 4, 8))
    reach = min(len(data), random.choice((48, 128, 1024, len(data) or 1)))
    place = random.randrange(max(1, reach - width))
    value = (random.choice(NUMBERS) & (1 << 8 * width) - 1).to_bytes(
        width, random.choice(("little", "big"))
    )
    return data[:place] + value + data[place + width :]


def truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def insert(data: bytes, random: Random) -> bytes:
    """Bytes of one kind put in."""
    place = random.randrange(len(data) + 1)
    size = random.choice((1, 3, 16, 500, 5_000))
    kind = random.randrange(3)
    fresh = bytes(size) if kind == 0 else b"\xff" * size if kind == 1 else random.randbytes(size)
    return data[:place] + fresh + data[place:]


def remove(data: bytes, random: Random) -> bytes:
    start, end = _piece(data, random)
    return data[:start] + data[end:]


def duplicate(data: bytes, random: Random) -> bytes:
    start, end = _piece(data, random)
    times = random.choice((1, 1, 2, 8))
    return data[:end] + data[start:end] * times + data[end:]


def move(data: bytes, random: Random) -> bytes:
    start, end = _piece(data, random)
    rest = data[:start] + data[end:]
    place = random.randrange(len(rest) + 1)
    return rest[:place] + data[start:end] + rest[place:]


def zeroed(data: bytes, random: Random) -> bytes:
    """A stretch of zeros, as a lost sector leaves it."""
    start, end = _piece(data, random)
    return data[:start] + bytes(end - start) + data[end:]


def _piece(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 4, 30, 300, 3_000, len(data))))


BYTES: tuple[Mutation, ...] = (
    *(flip, flip, flip_head, field, field, truncate, insert, remove, duplicate, move, zeroed),
)


# ---- JSON


def json_tree(data: bytes, random: Random) -> bytes:
    """One value, key or branch of the wrong kind."""
    tree = json.loads(data)
    places = list(_places(tree))
    if not places:
        return data
    holder, key = random.choice(places)
    kind = random.randrange(9)
    mark, raw = "@@here@@", ""
    if kind == 0 and isinstance(holder, dict):
        holder[random.choice(STRINGS)] = holder.pop(key)
    elif kind == 1:
        del holder[key]
    elif kind == 2:
        holder[key], raw = mark, _deep(random)
    elif kind == 3:
        holder[key], raw = (
            mark,
            random.choice(
                (
                    "NaN",
                    "Infinity",
                    "1e999",
                    "9" * 5_000,
                    "-1",
                    "-0.0",
                    "1E400",
                    "10000000000000000000",
                )
            ),
        )
    elif kind == 4:
        holder[key] = random.choice(STRINGS)
    elif kind == 5:
        holder[key] = [holder[key]] * random.choice((1, 2, 10_000))
    elif kind == 6:
        holder[key] = {random.choice(STRINGS): holder[key]}
    elif kind == 7:
        other, name = random.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    else:
        holder[key] = random.choice((None, True, False, 0, -1, 0.5, 1e308, 10**30, [], {}, ""))
    text = json.dumps(tree)
    return text.replace(json.dumps(mark), raw, 1).encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Any:
    keys = (
        list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    )
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _deep(random: Random) -> str:
    depth = random.choice((60, 900, 5_000, 100_000))
    kind = random.randrange(3)
    if kind == 0:
        return "[" * depth + "]" * depth
    return '{"a":' * depth + "1" + "}" * depth if kind == 1 else "[" * depth


# ---- a torch file: a zip of a pickle and of tensors


def zip_members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_bytes(members: list[tuple[str, bytes]], compressed: frozenset[int] = frozenset()) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for number, (name, content) in enumerate(members):
            entry = zipfile.ZipInfo(name)
            if number in compressed:
                entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return written.getvalue()


def zip_structure(data: bytes, random: Random) -> bytes:
    """Members renamed, dropped, twice, of another size; a directory that lies."""
    members = list(zip_members(data).items())
    place = random.randrange(len(members))
    name, content = members[place]
    kind = random.randrange(9)
    compressed: frozenset[int] = frozenset()
    if kind == 0:
        members[place] = random.choice(STRINGS).encode("utf-8", "replace").decode(), content
    elif kind == 1:
        del members[place]
    elif kind == 2:
        members[place] = name, content[: random.randrange(len(content) + 1)]
    elif kind == 3:
        members[place] = name, content * random.choice((2, 3, 50))
    elif kind == 4:
        compressed = frozenset({place})
    elif kind == 5:
        members[place] = name, random.choice((b"", bytes(10), b"big", b"\xff" * 1_000))
    elif kind == 6:
        members += [(f"{name}{n}", b"") for n in range(random.choice((1, 100, 3_000)))]
    elif kind == 7:
        other = random.randrange(len(members))
        members[place], members[other] = (name, members[other][1]), (members[other][0], content)
    else:
        whole = zip_bytes(members)
        start = whole.rindex(b"PK\x05\x06") if random.random() < 0.3 else whole.index(b"PK\x01\x02")
        return whole[:start] + random.choice((flip, field, remove))(whole[start:], random)
    return zip_bytes(members, compressed)


def zip_pickle(data: bytes, random: Random) -> bytes:
    """The program of a torch file, changed by whole instructions or by bytes."""
    members = zip_members(data)
    (name,) = (name for name in members if name.endswith("data.pkl"))
    change = random.choice((instructions, instructions, instructions, flip, truncate, remove))
    members[name] = change(members[name], random)
    return zip_bytes(list(members.items()))


def instructions(data: bytes, random: Random) -> bytes:
    """Instructions of a pickle left out, doubled, exchanged, put in, or given another operand."""
    starts = [place for _, _, place in pickletools.genops(data) if place is not None]
    parts = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        place = random.randrange(len(parts))
        kind = random.randrange(8)
        if kind == 0:
            del parts[place]
        elif kind == 1:
            parts[place:place] = [parts[place]] * random.choice((1, 2, 1_000))
        elif kind == 2:
            other = random.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        elif kind == 3:
            parts.insert(place, random.choice(SNIPPETS))
        elif kind == 4:
            numbers = [n for n, part in enumerate(parts) if part[:1] in b"KMJ\x8a"] or [place]
            parts[random.choice(numbers)] = _number(random)
        elif kind == 5:
            texts = [n for n, part in enumerate(parts) if part[:1] in b"X\x8cU"] or [place]
            text = random.choice(STRINGS).encode("utf-8", "surrogatepass")
            parts[random.choice(texts)] = b"X" + len(text).to_bytes(4, "little") + text
        elif kind == 6:
            parts[place] = random.choice((_doubling_tuple, _doubling_list))(random)
        else:
            names = [n for n, part in enumerate(parts) if part[:1] == b"c"] or [place]
            parts[random.choice(names)] = random.choice(GLOBALS)
        if not parts:
            break
    return b"".join(parts)


def _number(random: Random) -> bytes:
    value = random.choice((0, 1, -1, 255, 2**31, 2**62, 2**63, -(2**63), 2**2000, 2**400_000))
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + len(raw).to_bytes(4, "little") + raw


def _doubling_tuple(random: Random) -> bytes:
    """A value whose parts are shared: twice as long with every instruction."""
    return b"N\x85" + b"2\x86" * random.choice((5, 26, 40, 400))


def _doubling_list(random: Random) -> bytes:
    depth = random.choice((5, 26, 40))
    put = [b"r" + (90_000 + n).to_bytes(4, "little") for n in range(depth + 1)]
    get = [b"j" + (90_000 + n).to_bytes(4, "little") for n in range(depth + 1)]
    steps = (b"]" + put[n + 1] + b"(" + get[n] * 2 + b"e0" for n in range(depth))
    return b"]" + put[0] + b"0" + b"".join(steps) + get[depth]


SNIPPETS = (
    *(b"0", b"1", b"2", b"(", b"]", b"}", b")", b"N", b"\x88", b"R", b"b", b"s", b"u", b"e", b"a"),
    *(
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"Q",
        b"\x93",
        b"\x92",
        b"\x81",
        b"\x94",
        b"h\x00",
        b"h\xff",
    ),
    *(b"]" * 5_000, b"(" * 5_000, b"\x85" * 500, b"2\x86" * 40, b"2a" * 20, b"K\x01K\x02\x86"),
    *(b"X\x03\x00\x00\x00abc", b"G\x7f\xf0" + bytes(6), b"G\x7f\xf8" + bytes(6), b"\x80\x05", b"."),
)
"""Instructions that are put in."""
GLOBALS = (
    *(b"ctorch\nFloatStorage\n", b"ctorch\nComplexDoubleStorage\n", b"ctorch\nno_such\n"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch.storage\nUntypedStorage\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n"),
    *(b"cpathlib\nPosixPath\n", b"ccollections\ndefaultdict\n", b"cargparse\nNamespace\n"),
    b"c" + b"A" * 70_000 + b"\nx\n",
    b"cos\n\x1b[2Jx\n",
)
"""Names that take the place of others."""


# ---- tables and recipes: text


def cell(data: bytes, random: Random) -> bytes:
    """One cell of a table set to something else."""
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    separator = max((b",", b"\t", b";", b" "), key=lines[0].count)
    cells = lines[place].split(separator)
    cells[random.randrange(len(cells))] = random.choice(STRINGS).encode("utf-8", "surrogatepass")
    lines[place] = separator.join(cells)
    return b"\n".join(lines)


def line(data: bytes, random: Random) -> bytes:
    """A line left out, doubled, moved, or put in."""
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    kind = random.randrange(4)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines[place:place] = [lines[place]] * random.choice((1, 2, 2_000))
    elif kind == 2:
        lines.insert(random.randrange(len(lines) + 1), lines.pop(place))
    else:
        text = random.choice(STRINGS).encode("utf-8", "surrogatepass")
        lines.insert(place, text)
    return b"\n".join(lines)


def header(data: bytes, random: Random) -> bytes:
    """The first line with other words, or without one."""
    words = (
        *("path", "label", "labels", "start", "end", "stop", "offset", "onset", "seconds", "fold"),
        *("duration", "split", "subset", "set", "Begin Time (s)", "End Time (s)", "category", "id"),
        *("file_name", "fname", "filename", "start_time", "end_time", "", "Path", "LABEL", "mids"),
    )
    first, _, rest = data.partition(b"\n")
    cells = first.split(b",")
    for _ in range(random.choice((1, 1, 2))):
        cells[random.randrange(len(cells))] = random.choice(words).encode()
    return b",".join(cells) + b"\n" + rest


def encoding(data: bytes, random: Random) -> bytes:
    """The same text as another program writes it."""
    text = data.decode("utf-8", "replace")
    kind = random.randrange(8)
    if kind < 4:
        name = ("utf-16", "latin-1", "utf-8-sig", "utf-32")[kind]
        return text.encode(name, "replace")
    swaps = ((",", ";"), (",", "\t"), ("\n", "\r"), ("\n", "\r\n"))
    return text.replace(*swaps[kind - 4]).encode()


TEXT: tuple[Mutation, ...] = (cell, cell, cell, line, header, encoding, flip, insert, truncate)


def yaml_text(data: bytes, random: Random) -> bytes:
    """A recipe with aliases, depth, tags, kinds and keys that do not belong there."""
    lines = data.decode().splitlines()
    place = random.randrange(len(lines))
    key = re.split(r"[:{]", lines[place])[0] or "a"
    value = random.choice(
        (
            *("{}", "[]", "null", "true", "-1", ".nan", ".inf", "1e400", "9" * 500, "!!python/x y"),
            *("!!binary a", "2024-01-01", "0o7", "&a [*a]", "*b", "|\n  x", "{a: {a: {a: 1}}}"),
            *("[" * 3_000, "[" * 60 + "]" * 60, "{? [1, 2] : 3}", "{1: 2}", "<<: {a: 1}", "'", "%"),
            *("eat_base", "no_such_recipe", "../../../etc/passwd", "/dev/zero", "x" * 100_000),
            *('"\\x1b[2J"', "[1, 2, 3]", "{start: 1, end: 2, steps: 3}", "0", "1e9", "- a", "\t"),
        )
    )
    kind = random.randrange(6)
    if kind == 0:
        lines[place] = f"{key}: {value}"
    elif kind == 1:
        lines.append(f"{random.choice(string.ascii_letters)}: {value}")
    elif kind == 2:
        lines.insert(place, lines[place])
    elif kind == 3:
        names = string.ascii_lowercase[: random.choice((3, 12, 20))]
        lines.append("a: &a [x, x]")
        lines += [
            f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
            for a, b in zip(names, names[1:], strict=False)
        ]
    elif kind == 4:
        lines += [f"key{n}: {n}" for n in range(random.choice((30, 3_000)))]
    else:
        return random.choice((flip, truncate, insert, remove))(data, random)
    return "\n".join(lines).encode("utf-8", "surrogatepass")
