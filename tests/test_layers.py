"""Imports run one way, files and functions stay short, and nothing is written twice."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from eat_audio.models import METHODS

PACKAGE = Path(__file__).parent.parent / "src" / "eat_audio"

ORDER = [
    ("text",),
    ("errors",),
    ("writing",),
    ("lock",),
    ("yaml_text",),
    ("config",),
    ("progress",),
    ("audio",),
    ("rng",),
    ("masking",),
    ("data",),
    ("models",),
    ("checkpoints",),
    ("evaluation",),
    ("pretraining",),
    ("finetune", "inference"),
    ("pipeline",),
    ("integrations", "report", "demo", "search"),
    ("app",),
    ("__init__",),
    ("cli",),
    ("__main__",),
]
"""The rooms of the package from the ground up: each may import those before it and its own line."""

MAY_IMPORT = {
    room: {below for line in ORDER[: floor + 1] for below in line} | {"training"}
    for floor, line in enumerate(ORDER)
    for room in line
}
"""By room: which rooms its files may import."""

MAY_IMPORT["training"] = {"text", "errors", "writing", "lock", "config", "training"}
"""Training does not depend on sound or on methods."""

for room in (
    "text",
    "errors",
    "writing",
    "lock",
    "yaml_text",
    "config",
    "progress",
    "audio",
    "rng",
    "masking",
    "data",
    "models",
):
    MAY_IMPORT[room] -= {"training"}

HEAVY = {"torch", "transformers", "matplotlib", "jinja2"}
"""What `eat --help` must not wait for."""

FILE_LINES, FUNCTION_LINES, REPEATED_LINES = 500, 100, 10
"""The longest file, the longest function, and the longest code that may be in two places."""

PRIVATE_WORDS = re.compile(r"\b(told|heard|hear|hears|listener|ears)\b")
"""Pronouns and actors in place of names: a message, a waveform and a setting have one."""

TRAINER = ["training/*.py", "pretraining/run.py", "pretraining/method.py", "finetune.py"]
"""The files that train whatever method a recipe names."""

FOREIGN = {
    "fairseq",
    "lightning",
    "pytorch_lightning",
    "timm",
    "torchaudio",
    "torchcodec",
    "torchvision",
}
"""What no file imports: their wheels break beside some builds of torch."""


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path, package: Path = PACKAGE) -> str:
    """The first part of a file's place: `models` of models/eat.py, `cli` of cli.py."""
    return file.relative_to(package).with_suffix("").parts[0]


def imports(file: Path, *, top_only: bool = False, package: Path = PACKAGE) -> Iterator[str]:
    """Absolute names that a file imports; `from eat_audio import audio` is eat_audio.audio."""
    todo: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                here = ("eat_audio", *file.relative_to(package).parts)[: -node.level]
                origin = ".".join((*here, origin)).rstrip(".")
            if origin == "eat_audio":
                yield from (f"eat_audio.{alias.name}" for alias in node.names)
            else:
                yield origin
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (top_only and (later or for_types)):
            todo += ast.iter_child_nodes(node)


def breaches(file: Path, package: Path = PACKAGE) -> list[str]:
    """The imports of a file that go the wrong way."""
    room = room_of(file, package)
    wrong = []
    for name in imports(file, package=package):
        top, _, below = name.partition(".")
        # what is no room is a name from the package's own __init__
        met = below.partition(".")[0] if below.partition(".")[0] in MAY_IMPORT else "__init__"
        if top == "eat_audio" and met not in MAY_IMPORT[room]:
            wrong.append(f"{file.relative_to(package)} imports {name}")
    return wrong


def loaded_at_once(file: Path) -> set[str]:
    """The packages that importing a file imports, through our own files too."""
    found, todo, seen = set(), [file], set()
    while todo:
        file = todo.pop()
        seen.add(file)
        for name in imports(file, top_only=True):
            top, *parts = name.split(".")
            found.add(top)
            if top == "eat_audio":
                place = PACKAGE.joinpath(*parts)
                ours = {place.with_suffix(".py"), place / "__init__.py"}
                todo += [one for one in ours - seen if one.is_file()]
    return found


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_file_has_a_room(file):
    assert room_of(file) in MAY_IMPORT, f"give {room_of(file)} its place in ORDER"


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    assert breaches(file) == []


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_imports_what_breaks_beside_a_cpu_torch(file):
    assert FOREIGN.isdisjoint(name.partition(".")[0] for name in imports(file))


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}


def repeated(paths: list[Path]) -> list[list[str]]:
    """The places of every block of more than `REPEATED_LINES` lines that is in several.

    Lines are compared without indentation; empty ones, comments and imports do not count.
    """
    places = defaultdict(list)
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        stripped = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
        code = [(n, line) for n, line in stripped if line and not line.startswith(("#", "from "))]
        for first in range(len(code) - REPEATED_LINES):
            block = code[first : first + REPEATED_LINES + 1]
            places[tuple(line for _, line in block)].append(f"{path.name}:{block[0][0]}")
    return [where for where in places.values() if len(where) > 1]


def test_no_block_of_code_is_written_twice():
    assert repeated(files()) == []


def test_a_block_that_is_written_twice_is_named(tmp_path):
    block = "\n".join(f"x{n} = {n}" for n in range(REPEATED_LINES + 1))
    (tmp_path / "a.py").write_text(f"import re\n{block}", encoding="utf-8")
    (tmp_path / "b.py").write_text(f"if True:\n    y = 1\n{block}", encoding="utf-8")
    assert repeated(sorted(tmp_path.iterdir())) == [["a.py:2", "b.py:3"]]


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_speaks_of_actors(file):
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    assert [f"{number}: {line}" for number, line in lines if PRIVATE_WORDS.search(line)] == []


def methods_named(file: Path) -> list[str]:
    """The texts of a file that are the name of a method."""
    constants = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    texts = (node.value for node in constants if isinstance(node, ast.Constant))
    return [text for text in texts if isinstance(text, str) and text in METHODS]


def test_no_line_of_the_trainer_names_a_method(tmp_path):
    trainer = [file for pattern in TRAINER for file in sorted(PACKAGE.glob(pattern))]
    assert len(trainer) > len(TRAINER)
    assert {file.name: named for file in trainer if (named := methods_named(file))} == {}
    (tmp_path / "loop.py").write_text('"""Steps."""\nif kind == "bat":\n    pass\n')
    assert methods_named(tmp_path / "loop.py") == ["bat"]


@pytest.mark.parametrize("name", ["cli/__init__.py", "cli/train.py", "cli/data.py", "config.py"])
def test_words_are_understood_before_torch_is_loaded(name):
    assert HEAVY.isdisjoint(loaded_at_once(PACKAGE / name))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("errors.py", "import eat_audio.config"),
        ("audio.py", "from eat_audio.data.loader import batches"),
        ("masking.py", "from eat_audio import models"),
        ("models/eat.py", "from eat_audio.pretraining.eat import EATPretraining"),
        ("models/eat.py", "from ..pretraining import eat"),
        ("models/eat.py", "def late():\n    from .. import pretraining"),
        ("training/loop.py", "from eat_audio.models.eat.modeling import EATModel"),
        ("training/loop.py", "from eat_audio.audio import load_audio"),
        ("data/manifest.py", "from eat_audio import load_audio"),
        ("finetune.py", "import eat_audio"),
        ("demo.py", "from eat_audio.cli import main"),
        ("__init__.py", "from .cli import main"),
    ],
)
def test_an_import_that_goes_the_wrong_way_is_named(tmp_path, file, line):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line, encoding="utf-8")
    (breach,) = breaches(tmp_path / file, tmp_path)
    assert breach.startswith(f"{file} imports eat_audio")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/eat.py", "from eat_audio.models.common.layers import Block"),
        ("models/eat.py", "from .layers import Block"),
        ("models/eat.py", "from ..masking import Masks"),
        ("pretraining/eat.py", "from eat_audio.training.loop import fit"),
        ("training/loop.py", "from eat_audio.errors import TrainingDiverged"),
        ("finetune.py", "from eat_audio import evaluation"),
        ("cli.py", "from eat_audio import __version__"),
    ],
)
def test_an_import_that_goes_the_right_way_is_not(tmp_path, file, line):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line, encoding="utf-8")
    assert breaches(tmp_path / file, tmp_path) == []
