"""YAML recipe, `key=value` overrides -> the settings of a run.

A recipe is a mapping in a YAML file that says only what differs from the one it `extends`. The
method says, with a class of `Settings`, which settings there are. Whatever does not fit is
refused before anything starts, and all of it at once. The comment on top says what a recipe is,
how it is used, what it costs, what to expect and where its numbers come from; `about` reads it.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import (
    ErrorDetails,
    PydanticCustomError,
    PydanticUndefined,
    to_jsonable_python,
)

from eat_audio import yaml_text
from eat_audio.errors import MOST, RecipeError
from eat_audio.text import shortened

RECIPES = Path(__file__).parent / "recipes"
SUFFIXES = (".yaml", ".yml")

EXPECTED = {
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "int_parsing": "a whole number is expected",
    "float_type": "a number is expected",
    "float_parsing": "a number is expected",
    "finite_number": "a finite number is expected",
    "bool_type": "true or false is expected",
    "bool_parsing": "true or false is expected",
    "string_type": "text is expected",
    "path_type": "a path is expected",
    "list_type": "a list is expected",
    "tuple_type": "a list is expected",
    "dict_type": "a mapping is expected",
    "model_type": "a group of settings is expected",
    "none_required": "null is expected",
    "greater_than": "more than {gt} is expected",
    "greater_than_equal": "{ge} or more is expected",
    "less_than": "less than {lt} is expected",
    "less_than_equal": "{le} or less is expected",
    "literal_error": "{expected} is expected",
    "enum": "{expected} is expected",
    "too_long": "at most {max_length} values are expected",
    "too_short": "at least {min_length} values are expected",
}
"""What would have been right, by the type of the error that pydantic reports."""

MEANT = {
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "n_epochs", "max_epochs"), "steps"),
    **dict.fromkeys(
        ("num_train_epochs", "num_steps", "n_steps", "max_steps", "total_steps"), "steps"
    ),
    **dict.fromkeys(("iterations", "iters", "updates", "max_updates", "max_iter"), "steps"),
    **dict.fromkeys(("lr", "learning_rate", "max_lr", "peak_lr", "base_lr"), "optim.lr"),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps", "warmup_epochs"), "optim.warmup"),
    **dict.fromkeys(("wd", "decay", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("batch_size", "batchsize", "bs", "train_batch_size"), "batch"),
    **dict.fromkeys(("per_device_train_batch_size", "batch_per_gpu"), "batch"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accum"), "accumulate"),
    **dict.fromkeys(("workers", "num_workers", "n_workers"), "clips.workers"),
    **dict.fromkeys(("seconds", "duration", "clip_length", "max_length"), "clips.seconds"),
    **dict.fromkeys(("dataset", "data_dir", "data_path", "train_data", "manifest"), "data"),
    **dict.fromkeys(("corpus", "input", "train", "path"), "data"),
    **dict.fromkeys(("gpu", "gpus", "cuda"), "device"),
    **dict.fromkeys(("out", "output", "output_dir", "out_dir", "save_dir", "run_dir"), "--out"),
    **dict.fromkeys(("resume", "continue"), "--resume"),
}
"""What settings are called elsewhere, and here."""
OPTIONS = ("--out", "--resume")
"""What is no setting of a recipe, but an option of every command that takes one."""
DEEPEST = 20
"""The most dots in a name."""
MOST_EXTENDED = 20

PROGRAMS = ("eat ", "torchrun ")
LABELS = ("Cost", "Expect", "Epochs", "Source")
"""What `about` looks for in the comment on top of a recipe."""

Tree = dict[str, Any]
"""A mapping as YAML gives it: settings, or groups of them, by name."""


class Settings(BaseModel):
    """Base of all settings: they never change, and none is unknown.

    The string under a field says what it means and in which unit; `options` prints it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # `test_splits=[5]`: names may be numbers, and YAML sees those
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = {annotation, *get_args(annotation)}
            if bool not in kinds and kinds & {int, float}:
                raise PydanticCustomError("int_type" if int in kinds else "float_type", "")
        return value


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class About:
    """What the comment on top of a recipe's file says."""

    title: str = ""
    """The first line: what it is."""
    command: str = ""
    """How it is used, as one would type it."""
    cost: str = ""
    expect: str = ""
    """Its result, and where that is published."""
    epochs: str = ""
    """How often every clip is heard, as an equation."""
    source: str = ""
    """Where its numbers come from."""


class Option(NamedTuple):
    """One row of the table of settings: `optim.lr`, its default, its meaning."""

    name: str
    default: str
    meaning: str


def load(
    schema: type[S] | Callable[[Tree], type[S]],
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
) -> S:
    """Read a recipe, apply the overrides and check the result.

    Args:
        schema: Which settings there are, or what tells that from a recipe (its method decides).
        name_or_path: A name from `names()`, or a YAML file.
        overrides: "optim.lr=1e-4", ... in the order in which they count; values are YAML.

    Raises:
        RecipeError: One line for every mistake, in files and overrides alike.
    """
    changes, mistakes = _parse_overrides(overrides)
    layers = _layers(str(name_or_path)) + changes
    tree = _merged(layers)
    kind: type[S] = schema if isinstance(schema, type) else schema(tree)
    try:
        settings = kind.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(*mistakes, *_explain(error, kind, layers)) from None
    if mistakes:
        raise RecipeError(*mistakes)
    return settings


def read(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Tree:
    """Read a recipe and apply the overrides, without knowing which settings there are.

    For whoever has to look at one setting (the method) before choosing the schema of the others.

    Raises:
        RecipeError: A file or an override cannot be read.
    """
    changes, mistakes = _parse_overrides(overrides)
    layers = _layers(str(name_or_path)) + changes
    if mistakes:
        raise RecipeError(*mistakes)
    return _merged(layers)


def names() -> list[tuple[str, str]]:
    """The recipes in the package: (name, the first line of its file)."""
    rows = []
    for file in sorted(RECIPES.rglob("*.yaml")):
        first, *_ = file.read_text(encoding="utf-8").splitlines() or [""]
        rows.append((file.stem, first.lstrip("# ").rstrip()))
    return rows


def head(name_or_path: str | Path) -> str:
    """The comment on top of a recipe's file, as it stands there.

    Raises:
        RecipeError: There is no such recipe.
    """
    lines = _locate(str(name_or_path), None).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(takewhile(lambda line: line.startswith("#"), lines))


def about(name_or_path: str | Path) -> About:
    """What the comment on top of a recipe says; empty where it says nothing.

    The first line is the title, a line that begins with a program of `PROGRAMS` the command.
    "Cost:", "Expect:", "Epochs:" and "Source:" go on until the next of them.

    Raises:
        RecipeError: There is no such recipe.
    """
    title, *rest = head(name_or_path).splitlines() or [""]
    said = {"title": title.lstrip("# ").rstrip()}
    here = ""
    for line in rest:
        text = line.lstrip("#").strip()
        label, colon, after = text.partition(":")
        if colon and label in LABELS:
            here, text = label.lower(), after.strip()
        if here:
            said[here] = f"{said.get(here, '')} {text}".strip()
        elif text.startswith(PROGRAMS):
            said["command"] = text
    return About(**said)


def dump(settings: Settings) -> str:
    """Settings as YAML, complete; `load` gives back the same."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def options(schema: type[Settings]) -> list[Option]:
    """Every single setting of a schema, in the order in which they are declared."""
    rows = []
    for name, field, default in _fields(schema):
        if _groups(field) and default is not None:
            continue  # a group: its members have rows of their own
        shown = "required" if default is PydanticUndefined else _shown(default)
        rows.append(Option(name, shown, " ".join((field.description or "").split())))
    return rows


# ---- files and overrides -> layers: what each of them sets, the first one first ----


class _Layer(NamedTuple):
    """What one file, or one override, sets."""

    label: str
    """The file as it was given, or the whole override."""
    tree: Tree
    name: str = ""
    """The setting that an override is about."""


def _layers(name_or_path: str, extended_by: tuple[Path, ...] = ()) -> list[_Layer]:
    """The layers of a recipe and of all that it extends."""
    path = _locate(name_or_path, extended_by[-1] if extended_by else None)
    key = path.resolve()
    if len(extended_by) > MOST_EXTENDED:
        raise RecipeError(f"{path}: is extended by more than {MOST_EXTENDED} others in a row")
    if key in extended_by:
        ring = [*extended_by[extended_by.index(key) :], key]
        names_of_ring = " -> ".join(file.name for file in ring)
        raise RecipeError(f"{path}: a recipe cannot extend itself ({names_of_ring})")
    tree = _read_yaml(path)
    base = tree.pop("extends", None)
    layer = _Layer(path.name if path.is_relative_to(RECIPES) else str(path), tree)
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends={_shown(base)}: the name of one recipe is expected")
    return [*_layers(base, (*extended_by, key)), layer]


def _locate(name: str, beside: Path | None) -> Path:
    """The file of a recipe; a relative path starts at the file `beside`, where there is one."""
    where = f"{beside}: " if beside else ""
    if name.endswith(SUFFIXES) or "/" in name or "\\" in name:
        path = beside.parent / name if beside else Path(name)
        if not path.is_file():
            raise RecipeError(f"{where}{path}: there is no such file")
        return path
    known = [known for known, _ in names()]
    if name not in known:
        close = difflib.get_close_matches(name[: yaml_text.NAME], known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise RecipeError(
            f"{where}no recipe called {shortened(name)}; {hint}`eat recipes` lists all"
        )
    return next(RECIPES.rglob(f"{name}.yaml"))


def _read_yaml(path: Path) -> Tree:
    try:
        if path.stat().st_size > yaml_text.LONGEST:
            raise ValueError(f"more than {yaml_text.LONGEST:_} bytes")
        tree = yaml_text.parse(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{line}: cannot be read as YAML ({_problem(error)})") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML ({_problem(error)})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a mapping of settings is expected, found {_shown(tree)}")
    for name in tree:
        if name.count(".") > DEEPEST:
            raise RecipeError(f"{path}: {name}: no such setting")
    return reduce(_merge, (_nest(name, value) for name, value in tree.items()), {})


def _parse_overrides(overrides: Sequence[str]) -> tuple[list[_Layer], list[str]]:
    """Overrides as layers, and what is wrong with those that are none."""
    layers, mistakes = [], []
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not all(name.split(".")) or name.count(".") > DEEPEST:
            mistakes.append(f"'{override}' is not a setting; key=value is expected")
            continue
        try:
            layers.append(_Layer(override, _nest(name, yaml_text.parse(text)), name))
        except (ValueError, yaml.YAMLError) as error:
            mistakes.append(f"{override}: the value cannot be read as YAML ({_problem(error)})")
    return layers, mistakes


def _problem(error: Exception) -> str:
    """What is wrong, on one line."""
    said = (getattr(error, name, None) for name in ("problem", "reason", "strerror"))
    return " ".join(next((text for text in said if text), str(error)).split())


def _nest(name: str, value: Any) -> Tree:
    """("optim.lr", 1) -> {"optim": {"lr": 1}}."""
    return reduce(lambda inner, part: {part: inner}, reversed(name.split(".")), value)


def _merge(below: Any, above: Any) -> Any:
    """Mappings join, name by name; of anything else the upper one counts."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _merge(below.get(key), value) for key, value in above.items()}


def _merged(layers: Sequence[_Layer]) -> Tree:
    return reduce(_merge, (layer.tree for layer in layers), {})


# ---- what pydantic found -> sentences ----


def _explain(error: ValidationError, schema: type[Settings], layers: list[_Layer]) -> list[str]:
    """One line for each setting that is wrong."""
    fields = {name: field for name, field, _ in _fields(schema)}
    tree = _merged(layers)
    lines: list[str] = []
    expected: dict[str, list[str]] = {}  # by setting and value: a union reports every kind it has
    for detail in error.errors(include_url=False):
        kind, value = detail["type"], detail["input"]
        name = _name(detail, tree)
        single = name in fields and not _groups(fields[name])
        if kind == "missing":
            meaning = fields[name].description if name in fields else None
            lines.append(f"{name} is not set" + (f" ({_one_line(meaning)})" if meaning else ""))
        elif kind == "value_error" and isinstance(value, dict):
            lines.append(str(detail["ctx"]["error"]))  # about several settings; names them
        elif kind == "extra_forbidden" or (single and isinstance(value, dict)):
            for leaf, found in _leaves(name, value):
                meant = _nearest(leaf, list(fields)) if len(lines) < MOST else None
                hint = f"; did you mean {meant}?" if meant else ""
                lines.append(f"{_given(leaf, found, layers)}: no such setting{hint}")
        else:
            expected.setdefault(_given(name, value, layers), []).append(_expected(detail))
    return lines + [f"{given}: {_either(sentences)}" for given, sentences in expected.items()]


def _name(detail: ErrorDetails, tree: Tree) -> str:
    """The dotted name of a setting: where pydantic was, without the kinds of a union."""
    here: Any = tree
    parts = []
    for place, part in enumerate(detail["loc"], start=1):
        if isinstance(here, dict) and part in here:
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif not (detail["type"] == "missing" and place == len(detail["loc"])):
            continue
        parts.append(str(part))
    return ".".join(parts)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The single settings in a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The setting that was probably meant: spelt alike as a whole, or else in its last part."""
    usual = MEANT.get(name.rpartition(".")[2].lower().replace("-", "_"))
    if usual in known or usual in OPTIONS:
        return usual
    if close := difflib.get_close_matches(name, known, n=1):
        return close[0]
    by_last_part = {one.rpartition(".")[2]: one for one in reversed(known)}
    close = difflib.get_close_matches(name.rpartition(".")[2], list(by_last_part), n=1)
    return by_last_part[close[0]] if close else None


def _given(name: str, value: Any, layers: list[_Layer]) -> str:
    """A setting as the user gave it: "optim.lr=fast", or "a.yaml: optim.lr=fast"."""
    for layer in reversed(layers):
        if layer.name == name:
            return layer.label
        here: Any = layer.tree
        for part in name.split("."):
            here = here.get(part, _Layer) if isinstance(here, dict) else here
        if here is not _Layer:
            break
    file = "" if layer.name or here is _Layer else f"{layer.label}: "
    return f"{file}{name}={_shown(value)}"


def _expected(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind in EXPECTED:
        return EXPECTED[kind].format(**detail.get("ctx", {}))
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _either(sentences: list[str]) -> str:
    """Two kinds of value allowed: "a whole number or text is expected"."""
    end = " is expected"
    if not all(sentence.endswith(end) for sentence in sentences):
        return sentences[0]
    return " or ".join(dict.fromkeys(one.removesuffix(end) for one in sentences)) + end


# ---- what a schema says ----


def _fields(
    schema: type[BaseModel], prefix: str = "", chosen: BaseModel | None = None
) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Dotted name, declaration and default of every setting and group, as declared."""
    for name, field in schema.model_fields.items():
        default = getattr(chosen, name, field.get_default(call_default_factory=True))
        yield prefix + name, field, default
        for group in _groups(field):
            inner = default if isinstance(default, group) else None
            yield from _fields(group, f"{prefix}{name}.", inner)


def _groups(field: FieldInfo) -> list[type[BaseModel]]:
    """The groups of settings that may stand in a field."""
    kinds = (field.annotation, *get_args(field.annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _shown(value: Any) -> str:
    """A value as one would type it."""
    plain = to_jsonable_python(value, fallback=str)
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
