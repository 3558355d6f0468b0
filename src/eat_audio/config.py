"""Settings of a run from a YAML recipe and `key=value` overrides.

A recipe is a mapping that sets only what differs from the recipe it `extends`; a subclass of
`Settings` decides which settings exist. All mistakes are reported at once, before anything starts.
The comment at the top of a recipe states its title, command, cost, result and source (`about`).
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
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
    kind: f"{expectation} expected"
    for expectation, kinds in {
        "a whole number is": "int_type int_from_float int_parsing",
        "a number is": "float_type float_parsing",
        "a finite number is": "finite_number",
        "true or false is": "bool_type bool_parsing",
        "text is": "string_type",
        "a path is": "path_type",
        "a list is": "list_type tuple_type",
        "a mapping is": "dict_type",
        "a group of settings is": "model_type",
        "null is": "none_required",
        "more than {gt} is": "greater_than",
        "{ge} or more is": "greater_than_equal",
        "less than {lt} is": "less_than",
        "{le} or less is": "less_than_equal",
        "{expected} is": "literal_error enum",
        "at most {max_length} values are": "too_long",
        "at least {min_length} values are": "too_short",
    }.items()
    for kind in kinds.split()
}
"""Messages by the type of error that pydantic reports."""
ALIASES = {
    alias: name
    for name, aliases in {
        "steps": "epochs epoch num_epochs n_epochs max_epochs num_train_epochs num_steps n_steps "
        "max_steps total_steps iterations iters updates max_updates max_iter",
        "optim.lr": "lr learning_rate max_lr peak_lr base_lr",
        "optim.warmup": "warmup warmup_steps num_warmup_steps warmup_epochs",
        "optim.weight_decay": "weight_decay wd decay l2",
        "batch": "batch_size batchsize bs train_batch_size per_device_train_batch_size "
        "batch_per_gpu",
        "accumulate": "gradient_accumulation_steps grad_accum accum",
        "clips.workers": "workers num_workers n_workers",
        "clips.seconds": "seconds duration clip_length max_length",
        "data": "dataset data_dir data_path train_data manifest corpus input train path",
        "device": "gpu gpus cuda",
        "--out": "out output output_dir out_dir save_dir run_dir",
        "--resume": "resume continue",
    }.items()
    for alias in aliases.split()
}
"""Names that settings and options have in other programs."""
DEEPEST = MOST_EXTENDED = 20
"""The most dots in a name, and the most recipes that extend each other."""

Tree = dict[str, Any]
"""A mapping as YAML gives it: settings, or groups of them, by name."""


class Settings(BaseModel):
    """Base class of all settings: frozen, without unknown names.

    The string under a field is its meaning and unit; `options` prints it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # `test_splits=[5]`: names may be numbers, and YAML reads those
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = {annotation, *get_args(annotation)}
            if bool not in kinds and kinds & {int, float}:
                raise PydanticCustomError("int_type" if int in kinds else "float_type", "")
        return value


S = TypeVar("S", bound=Settings)


def resumable(default: Any, **constraints: Any) -> Any:
    """Return a field whose value may differ when a run is resumed: it touches no result."""
    return Field(default, json_schema_extra={"resumable": True}, **constraints)


def resumable_names(schema: type[BaseModel]) -> set[str]:
    """Return the dotted names of all resumable settings and groups of a schema."""
    extras = {name: field.json_schema_extra for name, field, _ in _fields(schema)}
    return {
        name for name, extra in extras.items() if isinstance(extra, dict) and "resumable" in extra
    }


class _Layer(NamedTuple):
    label: str  # the file as it was given, or the whole override
    tree: Tree
    name: str = ""  # the setting of an override


@dataclass(frozen=True)
class Recipe:
    """The settings of a recipe's files and of overrides, later ones above earlier ones.

    `mistakes` are messages about overrides that cannot be read.
    """

    layers: tuple[_Layer, ...]
    mistakes: tuple[str, ...] = ()

    @property
    def tree(self) -> Tree:
        """The merged settings, not validated; RecipeError if an override cannot be read."""
        if self.mistakes:
            raise RecipeError(*self.mistakes)
        return _merged(self.layers)

    def changed(self, overrides: Sequence[str]) -> "Recipe":
        """Return the recipe with more overrides: "optim.lr=1e-4", ...; values are YAML."""
        layers, mistakes = _parse_overrides(overrides)
        return Recipe((*self.layers, *layers), (*self.mistakes, *mistakes))

    def settings(self, schema: type[S] | Callable[[Tree], type[S]]) -> S:
        """Return the validated settings; RecipeError with one line for every mistake.

        `schema` is the settings class, or a function that chooses it by the merged tree.
        """
        tree = _merged(self.layers)
        kind: type[S] = schema if isinstance(schema, type) else schema(tree)
        mistakes = list(self.mistakes)
        try:
            settings = kind.model_validate(tree)
        except ValidationError as error:
            mistakes += _explain(error, kind, self.layers)
        if mistakes:
            raise RecipeError(*mistakes)
        return settings


class About(NamedTuple):
    """The comment at the top of a recipe."""

    title: str = ""
    command: str = ""
    cost: str = ""
    expect: str = ""
    epochs: str = ""
    source: str = ""


class Option(NamedTuple):
    """One row of the table of settings: `optim.lr`, its default, its meaning."""

    name: str
    default: str
    meaning: str


def open_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
    *,
    opened: dict[Path, Tree] | None = None,
) -> Recipe:
    """Read the files of a recipe (a name or a path), each once; RecipeError if one is wrong.

    `opened` holds files that have been read before, and gains those that are read now.
    """
    layers = _layers(str(name_or_path), {} if opened is None else opened)
    return Recipe(tuple(layers)).changed(overrides)


def load(
    schema: type[S] | Callable[[Tree], type[S]],
    name_or_path: str | Path,
    overrides: Sequence[str] = (),
) -> S:
    """Read a recipe and return its settings; see `open_recipe` and `Recipe.settings`."""
    return open_recipe(name_or_path, overrides).settings(schema)


def read(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Tree:
    """Read a recipe and return its merged settings without validating them."""
    return open_recipe(name_or_path, overrides).tree


def names() -> list[tuple[str, str]]:
    """Return the recipes of the package: (name, title)."""
    return [(name, about(name).title) for name in sorted(_files())]


def head(name_or_path: str | Path) -> str:
    """Return the comment at the top of a recipe's file, as it is."""
    text = _locate(str(name_or_path), None).read_text(encoding="utf-8")
    return "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


def about(name_or_path: str | Path) -> About:
    """Parse the comment at the top of a recipe; what it lacks is empty.

    The first line is the title, one that begins with `eat` or `torchrun` the command.
    """
    title, *lines = [line.lstrip("#").strip() for line in head(name_or_path).splitlines()] or [""]
    labels = "|".join(name.title() for name in About._fields[2:])
    first, *parts = re.split(rf"^({labels}):", "\n".join(lines), flags=re.M)
    command = re.search(r"^(eat|torchrun) .*", first, re.M)
    fields = {
        label.lower(): " ".join(text.split())
        for label, text in zip(parts[::2], parts[1::2], strict=True)
    }
    return About(title, command[0] if command else "", **fields)


def dump(settings: Settings) -> str:
    """Return settings as YAML, complete; `load` reads the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def options(schema: type[Settings]) -> list[Option]:
    """Return every setting of a schema, in the order in which they are declared."""
    return [
        Option(
            name,
            "required" if default is PydanticUndefined else _shown(default),
            " ".join((field.description or "").split()),
        )
        for name, field, default in _fields(schema)
        if default is None or not _groups(field)  # members of groups have rows of their own
    ]


# ---- files and overrides ----


def _layers(
    name_or_path: str, opened: dict[Path, Tree], extended_by: tuple[Path, ...] = ()
) -> list[_Layer]:
    """The layers of a recipe and of all that it extends, the lowest first."""
    path = _locate(name_or_path, extended_by[-1] if extended_by else None)
    key = path.resolve()
    if len(extended_by) > MOST_EXTENDED:
        raise RecipeError(f"{path}: is extended by more than {MOST_EXTENDED} others in a row")
    if key in extended_by:
        ring = [*extended_by[extended_by.index(key) :], key]
        names_of_ring = " -> ".join(file.name for file in ring)
        raise RecipeError(f"{path}: a recipe cannot extend itself ({names_of_ring})")
    if key not in opened:
        opened[key] = _read_yaml(path)
    tree = dict(opened[key])
    base = tree.pop("extends", None)
    layer = _Layer(path.name if path.is_relative_to(RECIPES) else str(path), tree)
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise RecipeError(f"{path}: extends={_shown(base)}: the name of one recipe is expected")
    return [*_layers(base, opened, (*extended_by, key)), layer]


def _files() -> dict[str, Path]:
    """The recipes of the package by name; no file is opened."""
    return {path.stem: path for path in RECIPES.rglob("*.yaml")}


def _locate(name: str, beside: Path | None) -> Path:
    """The file of a recipe; a relative path starts at the file `beside`, where there is one."""
    where = f"{beside}: " if beside else ""
    if name.endswith(SUFFIXES) or "/" in name or "\\" in name:
        path = beside.parent / name if beside else Path(name)
        if not path.is_file():
            raise RecipeError(f"{where}{path}: there is no such file")
        return path
    files = _files()
    if name not in files:
        close = difflib.get_close_matches(name[: yaml_text.NAME], sorted(files), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise RecipeError(
            f"{where}no recipe called {shortened(name)}; {hint}`eat recipes` lists all"
        )
    return files[name]


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
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a mapping of settings is expected, found {_shown(tree)}")
    for name in tree:
        if name.count(".") > DEEPEST:
            raise RecipeError(f"{path}: {name}: no such setting")
    return reduce(_merge, (_nest(name, value) for name, value in tree.items()), {})


def _parse_overrides(overrides: Sequence[str]) -> tuple[list[_Layer], list[str]]:
    """Overrides as layers, and messages about those that cannot be read."""
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
    texts = (getattr(error, name, None) for name in ("problem", "reason", "strerror"))
    return " ".join(next((text for text in texts if text), str(error)).split())


def _nest(name: str, value: Any) -> Tree:
    """("optim.lr", 1) -> {"optim": {"lr": 1}}."""
    return reduce(lambda inner, part: {part: inner}, reversed(name.split(".")), value)


def _merge(below: Any, above: Any) -> Any:
    """Mappings join, name by name; of anything else the upper one wins."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _merge(below.get(key), value) for key, value in above.items()}


def _merged(layers: Sequence[_Layer]) -> Tree:
    return reduce(_merge, (layer.tree for layer in layers), {})


# ---- messages about invalid settings ----


def _explain(error: ValidationError, schema: type[Settings], layers: Sequence[_Layer]) -> list[str]:
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
            hint = f" ({' '.join(meaning.split()).rstrip('.')})" if meaning else ""
            lines.append(f"{name} is not set{hint}")
        elif kind == "value_error" and isinstance(value, dict):
            lines.append(str(detail["ctx"]["error"]))  # about several settings; names them
        elif kind == "extra_forbidden" or (single and isinstance(value, dict)):
            for leaf, inner in _leaves(name, value):
                close = _nearest(leaf, list(fields)) if len(lines) < MOST else None
                hint = f"; did you mean {close}?" if close else ""
                lines.append(f"{_given(leaf, inner, layers)}: no such setting{hint}")
        else:
            expected.setdefault(_given(name, value, layers), []).append(_expected(detail))
    return lines + [f"{given}: {_either(messages)}" for given, messages in expected.items()]


def _name(detail: ErrorDetails, tree: Tree) -> str:
    """The dotted name of a setting: pydantic's location without the kinds of a union."""
    inner: Any = tree
    parts = []
    for depth, part in enumerate(detail["loc"], start=1):
        if isinstance(inner, dict) and part in inner:
            inner = inner[part]
        elif isinstance(inner, list) and isinstance(part, int) and part < len(inner):
            inner = inner[part]
        elif not (detail["type"] == "missing" and depth == len(detail["loc"])):
            continue
        parts.append(str(part))
    return ".".join(parts)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value


def alias_of(name: str) -> str | None:
    """Return the setting that has this name in other programs; None if there is none."""
    return ALIASES.get(name.rpartition(".")[2].lower().replace("-", "_"))


def _nearest(name: str, settings: Sequence[str]) -> str | None:
    """The setting that was probably meant: spelled alike as a whole, or else in its last part."""
    alias = alias_of(name)
    if alias and (alias in settings or alias.startswith("--")):
        return alias
    if close := difflib.get_close_matches(name, settings, n=1):
        return close[0]
    by_last_part = {setting.rpartition(".")[2]: setting for setting in reversed(settings)}
    close = difflib.get_close_matches(name.rpartition(".")[2], list(by_last_part), n=1)
    return by_last_part[close[0]] if close else None


def _given(name: str, value: Any, layers: Sequence[_Layer]) -> str:
    """A setting as the user gave it: "optim.lr=fast", or "a.yaml: optim.lr=fast"."""
    for layer in reversed(layers):
        if layer.name == name:
            return layer.label
        inner: Any = layer.tree
        for part in name.split("."):
            inner = inner.get(part, _Layer) if isinstance(inner, dict) else inner
        if inner is not _Layer:
            return f"{'' if layer.name else f'{layer.label}: '}{name}={_shown(value)}"
    return f"{name}={_shown(value)}"


def _expected(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind in EXPECTED:
        return EXPECTED[kind].format(**detail.get("ctx", {}))
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _either(messages: list[str]) -> str:
    """One message of several: "a whole number or text is expected"."""
    end = " is expected"
    if not all(message.endswith(end) for message in messages):
        return messages[0]
    return " or ".join(dict.fromkeys(message.removesuffix(end) for message in messages)) + end


# ---- schemas ----


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
    """A value as it is typed."""
    plain = to_jsonable_python(value, fallback=str)
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
