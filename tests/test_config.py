"""What a recipe promises: typed, complete, and every mistake named at once."""

import time
from pathlib import Path

import pytest

from eat_audio import config as recipe
from eat_audio import pipeline as chain
from eat_audio.config import Settings
from eat_audio.errors import RecipeError
from small_settings import Run


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package folder of recipes: eat_base, and eat_tiny, which extends it."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "eat_base.yaml").write_text(
        "# The base.\nsteps: 400_000\noptim: {lr: 1e-3}\n", encoding="utf-8"
    )
    (folder / "eat_tiny.yaml").write_text(
        "# A tiny one.\n# eat pretrain eat_tiny\nextends: eat_base\noptim: {warmup: 7}\n"
    )
    monkeypatch.setattr(recipe, "RECIPES", folder)
    return folder


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def mistakes(path, *overrides, schema=Run) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe.load(schema, path, overrides)
    return [line.replace(f"{Path(path).parent}/", "") for line in str(caught.value).splitlines()]


# ---- what counts ----


def test_a_recipe_sets_only_what_differs_from_the_defaults(write):
    run = recipe.load(Run, write("steps: 9_000\n"))
    assert run == Run(steps=9_000)


def test_an_empty_recipe_is_all_defaults(write):
    assert recipe.load(Run, write("# nothing\n")) == Run()


def test_a_recipe_of_the_package_is_found_by_its_name(shipped):
    assert recipe.load(Run, "eat_base").steps == 400_000


def test_a_recipe_says_only_what_differs_from_the_one_it_extends(shipped):
    run = recipe.load(Run, "eat_tiny")
    assert (run.steps, run.optim.lr, run.optim.warmup) == (400_000, 1e-3, 7)


def test_a_recipe_of_ones_own_extends_one_of_the_package(shipped, write):
    assert recipe.load(Run, write("extends: eat_tiny\nsteps: 50\n")).optim.warmup == 7


def test_a_path_to_extend_starts_at_the_file_that_says_so(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    write("steps: 77\n", "below/base.yaml")
    assert recipe.load(Run, write("extends: below/base.yaml\n")).steps == 77


def test_an_override_counts_more_than_the_file_and_the_last_one_counts_most(write):
    path = write("steps: 50\noptim: {lr: 1e-3, warmup: 3}\n")
    run = recipe.load(Run, path, ["steps=60", "optim.lr=1e-4", "steps=70"])
    assert (run.steps, run.optim.lr, run.optim.warmup) == (70, 1e-4, 3)


def test_dotted_names_and_groups_say_the_same(write):
    assert recipe.load(Run, write("optim.lr: 1e-3\n")) == recipe.load(
        Run, write("optim: {lr: 1e-3}\n"), ["optim={lr: 1e-3}"]
    )


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_a_number_may_be_written_as_people_write_it(write, text):
    assert recipe.load(Run, write(""), [f"optim.lr={text}"]).optim.lr == 1e-4


def test_a_number_in_a_file_may_be_written_so_too(write):
    """YAML itself takes 5e-4 for text."""
    assert recipe.load(Run, write("optim: {lr: 5e-4}\n")).optim.lr == 5e-4


@pytest.mark.parametrize("text", ["[1, 5]", "['1', '5']", "[1, '5']"])
def test_names_that_are_numbers_are_names(write, text):
    assert recipe.load(Run, write(f"folds: {text}\n")).folds == ("1", "5")
    assert recipe.load(Run, write(""), [f"folds={text}"]).folds == ("1", "5")


def test_overrides_are_yaml(write):
    run = recipe.load(Run, write(""), ["optim.betas=[0.8, 0.9]", "data=null", "compile=true"])
    assert (run.optim.betas, run.data, run.compile) == ((0.8, 0.9), None, True)


def test_a_value_may_hold_an_equals_sign(write):
    assert recipe.load(Run, write(""), ["data=a=b.tsv"]).data == Path("a=b.tsv")


def test_settings_never_change():
    with pytest.raises(ValueError, match="frozen"):
        Run().steps = 3


def test_reading_tells_the_method_before_the_schema_is_known(shipped, write):
    path = write("extends: eat_base\nmethod: beats\nunheard_of: 1\n")
    tree = recipe.read(path, ["optim.warmup=3"])
    assert tree == {
        "method": "beats",
        "unheard_of": 1,
        "steps": 400_000,
        "optim": {"lr": "1e-3", "warmup": 3},
    }


# ---- what is refused, and in which words ----


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps=4.5", "steps=4.5: a whole number is expected"),
        ("steps=many", "steps=many: a whole number is expected"),
        ("steps=yes", "steps=yes: a whole number is expected"),
        ("steps=", "steps=: a whole number is expected"),
        ("steps=0", "steps=0: more than 0 is expected"),
        ("optim.lr=fast", "optim.lr=fast: a number is expected"),
        ("optim.lr=true", "optim.lr=true: a number is expected"),
        ("optim.lr=.nan", "optim.lr=.nan: a finite number is expected"),
        ("optim.warmup=-1", "optim.warmup=-1: 0 or more is expected"),
        ("optim={lr: fast}", "optim.lr=fast: a number is expected"),
        ("optim=adam", "optim=adam: a group of settings is expected"),
        ("optim.betas=[0.9, high]", "optim.betas.1=high: a number is expected"),
        ("optim.betas=[1, 2, 3]", "optim.betas=[1, 2, 3]: at most 2 values are expected"),
        ("folds=5", "folds=5: a list is expected"),
        ("folds=[yes]", "folds.0=true: text is expected"),
        ("folds=[{a: 1}]", "folds.0={a: 1}: text is expected"),
        ("optim.betas=[0.9]", "optim.betas.1 is not set"),
        ("compile=perhaps", "compile=perhaps: true or false is expected"),
        ("method=ast", "method=ast: 'eat' or 'beats' is expected"),
        ("crop=[1]", "crop=[1]: a whole number or text is expected"),
        ("head.kind=mlp", "head.classes is not set"),
        ("optim.warmup=400", "optim.warmup=400 is not shorter than steps=400"),
        ("optim.lrr=1e-4", "optim.lrr=1e-4: no such setting; did you mean optim.lr?"),
        ("optm.lr=1e-4", "optm.lr=1e-4: no such setting; did you mean optim.lr?"),
        ("lr=1e-4", "lr=1e-4: no such setting; did you mean optim.lr?"),
        ("step=9", "step=9: no such setting; did you mean steps?"),
        ("steps.x=3", "steps.x=3: no such setting; did you mean steps?"),
        ("zzz=3", "zzz=3: no such setting"),
        ("extends=eat_tiny", "extends=eat_tiny: no such setting"),
        ("steps", "'steps' is not a setting; key=value is expected"),
        ("=3", "'=3' is not a setting; key=value is expected"),
        ("optim..lr=3", "'optim..lr=3' is not a setting; key=value is expected"),
        ("optim={a: 1, a: 2}", "optim={a: 1, a: 2}: the value cannot be read as YAML"),
    ],
)
def test_a_wrong_override_is_refused_in_one_sentence(write, override, sentence):
    (line,) = mistakes(write(""), override)
    assert line.removesuffix(" ('a' is set twice)") == sentence


def test_all_mistakes_are_reported_at_once(write):
    path = write("stps: 3\nmethod: ast\n")
    assert sorted(mistakes(path, "optim.lr=fast", "steps", "compile=perhaps")) == [
        "'steps' is not a setting; key=value is expected",
        "compile=perhaps: true or false is expected",
        "mine.yaml: method=ast: 'eat' or 'beats' is expected",
        "mine.yaml: stps=3: no such setting; did you mean steps?",
        "optim.lr=fast: a number is expected",
    ]


def test_a_mistake_in_a_file_names_the_file_that_makes_it(shipped, write):
    (shipped / "eat_base.yaml").write_text("# The base.\noptim: {warmup: none}\n", encoding="utf-8")
    path = write("extends: eat_base\nsteps: 4.5\n")
    assert sorted(mistakes(path)) == [
        "eat_base.yaml: optim.warmup=none: a whole number is expected",
        "mine.yaml: steps=4.5: a whole number is expected",
    ]


def test_what_must_be_set_is_asked_for_with_its_meaning(write):
    class Needy(Settings):
        data: Path
        """Where the clips are."""

    assert mistakes(write(""), schema=Needy) == ["data is not set (Where the clips are)"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps: 3\noptim: {lr: 1\nx: 2\n", "mine.yaml line 3: cannot be read as YAML"),
        ("x: 3\n\nx: 4\n", "mine.yaml line 3: cannot be read as YAML ('x' is set twice)"),
        ("x: 3\ny: !!python/object/apply:os.system [ls]\n", "mine.yaml line 2: cannot be read"),
        ("a: &a {b: *a}\n", "mine.yaml line 1: cannot be read as YAML (a value contains itself)"),
        ("steps: \x07\n", "mine.yaml: cannot be read as YAML (special characters"),
        ("when: 2025-13-45\n", "mine.yaml: cannot be read as YAML (month must be in 1..12"),
        ("- steps\n", "mine.yaml: a mapping of settings is expected, found [steps]"),
        ("extends: [a, b]\n", "mine.yaml: extends=[a, b]: the name of one recipe is expected"),
    ],
)
def test_a_file_that_is_no_recipe_gets_one_sentence_with_its_line(write, text, sentence):
    (line,) = mistakes(write(text))
    assert line.startswith(sentence)


def test_a_file_that_is_not_text_gets_one_sentence(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"steps: \xff\xfe")
    (line,) = mistakes(tmp_path / "mine.yaml")
    assert line == "mine.yaml: cannot be read as YAML (invalid start byte)"


def test_a_recipe_that_does_not_exist_is_refused_with_the_nearest_ones(shipped):
    assert mistakes("eat_bse") == [
        "no recipe called 'eat_bse'; did you mean eat_base or eat_tiny? `eat recipes` lists all"
    ]
    assert mistakes("zzz") == ["no recipe called 'zzz'; `eat recipes` lists all"]


@pytest.mark.parametrize("name", ["eat", "beats", "z" * 100_000, "a\x1b[2J", ""])
def test_a_recipe_that_does_not_exist_takes_one_short_sentence(name):
    (line,) = mistakes(name)
    assert len(line) < 480 and line.isprintable()


def test_a_file_that_does_not_exist_is_named(tmp_path):
    path = tmp_path / "gone.yaml"
    assert mistakes(path) == ["gone.yaml: there is no such file"]


def test_a_recipe_to_extend_that_does_not_exist_is_named_with_the_file_that_asks(shipped, write):
    assert mistakes(write("extends: eat_bse\n")) == [
        "mine.yaml: no recipe called 'eat_bse'; did you mean eat_base or eat_tiny? "
        "`eat recipes` lists all"
    ]


def test_recipes_that_extend_each_other_are_refused(write):
    write("extends: mine.yaml\n", "other.yaml")
    (line,) = mistakes(write("extends: other.yaml\n"))
    assert line.endswith("a recipe cannot extend itself (mine.yaml -> other.yaml -> mine.yaml)")


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(1000))
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{','.join(['*' + chr(97 + n)] * 10)}]}}\n"
    for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "more than 10_000 values"),
        (MERGED, "more than 10_000 values"),
        (CHAIN, "more than 50 levels"),
        ("x: " + "[" * 5000, "more than 50 levels"),
        ("x: " + "{a: " * 5000, "more than 50 levels"),
        ("".join(" " * n + f"a{n}:\n" for n in range(300)), "more than 50 levels"),
        ("- " * 5000 + "x", "more than 50 levels"),
        ("".join(f"key{n}: {n}\n" for n in range(20_000)), "more than 10_000 values"),
        ("x: [" + "1," * 20_000 + "]", "more than 10_000 values"),
        ("a: " + "x" * 1_000_001, "more than 1_000_000 bytes"),
        ("a" * 1_000 + ": 1", "a name is too long"),
        ("a: " + "9" * 5_000, "a number is too long"),
        ("a: 1" + ":1" * 100_000, "a number is too long"),
        ("a: 0x" + "f" * 500_000, "a number is too long"),
        ("a: !!int x", "invalid literal"),
        ("a: !!int ''", "a value is not what it is marked as"),
        ("a: !!bool x", "a value is not what it is marked as"),
        ("a: !!timestamp x", "a value is not what it is marked as"),
        ("a: &a [1, *a]", "a value contains itself"),
        ("a: &a {b: [*a]}", "a value contains itself"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("{[a]: 1}", "found unhashable key"),
    ],
    ids=range(22),
)
def test_what_would_be_read_for_ever_is_refused_at_once(write, text, problem):
    began = time.process_time()
    (line,) = mistakes(write(text))
    assert problem in line and "cannot be read as YAML" in line and len(line) < 480
    assert time.process_time() - began < 8


def test_aliases_that_multiply_nothing_are_fine(write):
    run = recipe.load(
        Run, write("x: &x 0.5\n".replace("x: ", "optim.lr: ") + "optim.betas: [*x, *x]")
    )
    assert (run.optim.lr, run.optim.betas) == (0.5, (0.5, 0.5))


def test_of_many_mistakes_the_first_are_shown_and_the_others_counted(write):
    began = time.process_time()
    lines = mistakes(write("".join(f"key{n}: {n}\n" for n in range(4_000))))
    assert len(lines) == 21 and lines[-1] == "... and 3980 more"
    assert time.process_time() - began < 8


@pytest.mark.parametrize(
    "override",
    ["a." * 5000 + "a=1", "x=" + "[" * 5000, "x=" + "{a: " * 5000, "steps=" + "9" * 100_000],
    ids=range(4),
)
def test_an_override_of_great_depth_is_refused_in_one_sentence(write, override):
    (line,) = mistakes(write(""), override)
    assert len(line) < 500
    (line,) = mistakes(write("a." * 30 + "a: 1"))
    assert "no such setting" in line or "a name is too long" in line


def test_a_long_row_of_recipes_is_refused(write):
    for n in range(100):
        write(f"extends: {n + 1}.yaml\n", f"{n}.yaml")
    write("steps: 3\n", "100.yaml")
    (line,) = mistakes(write("extends: 0.yaml\n"))
    assert "in a row" in line


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("epochs", "steps"), ("num_train_epochs", "steps"), ("max_steps", "steps")),
        *(("learning_rate", "optim.lr"), ("optim.learning_rate", "optim.lr"), ("LR", "optim.lr")),
        *(("dataset", "data"), ("data_dir", "data"), ("out", "--out"), ("output_dir", "--out")),
        ("warmup_steps", "optim.warmup"),
    ],
)
def test_what_settings_are_called_elsewhere_is_understood(write, typed, meant):
    (line,) = mistakes(write(""), f"{typed}=3")
    assert line == f"{typed}=3: no such setting; did you mean {meant}?"


# ---- what is shown ----


@pytest.mark.parametrize(
    "name", ["eat_tiny", "beats_tiny", "beats_tiny_tokenizer", "audiomae_base"]
)
def test_a_recipe_of_pre_training_is_refused_by_fine_tuning_in_one_sentence(name):
    with pytest.raises(RecipeError) as caught:
        chain.finetuning(name, ["steps=4", "no.such=1"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{name}: ") and "expected a recipe that fine-tunes" in line
    assert ("several stages" in line) == (name == "beats_tiny")


@pytest.mark.parametrize("name", ["eat_tiny_finetune"])
def test_a_recipe_of_fine_tuning_is_refused_by_pre_training_in_one_sentence(name, tmp_path):
    with pytest.raises(RecipeError) as caught:
        chain.stages_of(name)[0].settings(tmp_path)
    assert str(caught.value) == (
        f"{name}: fine-tunes; expected a recipe of pre-training to begin with"
    )


def test_stages_that_cannot_be_read_are_refused(write):
    with pytest.raises(RecipeError, match="No closing quotation"):
        chain.stages_of(write('stages: ["eat_tiny \'steps=3"]\n'))
