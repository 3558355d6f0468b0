"""The recipes of the package resolve, say what they are, and keep to their sources."""

import json
import math
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT, golden_sets
from eat_audio import cli
from eat_audio import config as recipe
from eat_audio import pipeline as chain
from eat_audio.config import RECIPES, Settings
from eat_audio.finetune import FinetuneRun
from eat_audio.models.audiomae.modeling import AudioMAEConfig
from eat_audio.models.bat.modeling import BATConfig
from eat_audio.pretraining.audiomae import AudioMAERun
from eat_audio.pretraining.bat import BATRun
from eat_audio.pretraining.eat import EATRun
from eat_audio.pretraining.run import schema as schema_of

ALL = [name for name, _ in recipe.names()]
CHAINS = [name for name in ALL if "stages" in recipe.read(name)]
NAMES = [name for name in ALL if name not in CHAINS]
RELEASED = [name for name in NAMES if name.endswith("_released")]
DOCS = ROOT / "docs" / "methods" / "recipes.md"

PUBLISHED = {
    # name: steps, warm-up, peak rate, clips per step, epochs, clips of an epoch (the paper's
    # table 4 and section 4.1; config/pretraining_AS2M_large.yaml; README for 20 and 30 epochs)
    "eat_base_as2m": (400_000, 53_333, 5e-4, 48, 10, 1_912_134),
    "eat_base_as2m_30epochs": (1_200_000, 53_333, 5e-4, 48, 30, 1_912_134),
    "eat_large_as2m": (400_000, 53_333, 4e-4, 96, 20, 1_912_134),
    # the released SSLAM_Stage2 and its log
    "sslam_base": (200_000, 25_000, 5e-5, 48, 5, 1_932_576),
    "eat_as20k_finetune": (40_000, 4_000, 5e-5, 48, 93, 20_550),
    "eat_as2m_finetune": (300_000, 30_000, 5e-5, 96, 144, 200_000),
    "eat_esc50_finetune": (4_000, 400, 5e-5, 48, 120, 1_600),
    "eat_speech_commands_finetune": (40_000, 4_000, 2e-4, 256, 121, 84_843),
    # arXiv 2602.16305 (48 clips) and its released code
    "bat_base": (400_000, 53_000, 5e-4, 48, 10, 1_912_134),
}
PUBLISHED_AUDIOMAE = {
    # the same, with epochs of warm-up; the released scripts, else the paper's table 3
    "audiomae_base": (33, 3, 4e-4, 512, 2_000_000),
    "audiomae_as2m_finetune": (100, 10, 2e-4, 256, 200_000),
    "audiomae_as20k_finetune": (60, 4, 1.25e-4, 32, 20_550),
    "audiomae_esc50_finetune": (60, 4, 2.5e-4, 64, 1_600),
    "audiomae_speech_commands_finetune": (60, 4, 1e-3, 256, 84_843),
}


@cache
def schema(name: str) -> type[Settings]:
    tree = recipe.read(name)
    return schema_of(tree) if "method" in tree else FinetuneRun


@cache
def resolved(name: str) -> Any:
    return recipe.load(schema(name), name)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in tree.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        rows |= {prefix + name: value} if inner is None else inner
    return rows


def differences(one: str, other: str) -> dict[str, Any]:
    """The settings that two recipes have otherwise, as the first one has them."""
    mine, theirs = flat(resolved(one).model_dump()), flat(resolved(other).model_dump())
    assert mine.keys() == theirs.keys()
    return {name: value for name, value in mine.items() if value != theirs[name]}


def own(name: str) -> dict[str, Any]:
    """What the file of a recipe itself says."""
    return yaml.safe_load(next(RECIPES.rglob(f"{name}.yaml")).read_text(encoding="utf-8"))


def golden(name: str) -> dict[str, Any]:
    (path,) = golden_sets(f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def eat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def eat(*words: str) -> tuple[int, str, str]:
        """Run a command in this process: exit code, standard output, standard error."""
        monkeypatch.setattr(sys, "argv", ["eat", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, output.out, output.err

    return eat


# ---- every recipe ----


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_resolves(name: str) -> None:
    assert resolved(name).steps > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_extends_one_of_the_package_and_of_its_own_kind(name: str) -> None:
    base = own(name).get("extends")
    assert base is None or (base in NAMES and schema(base) is schema(name))


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_says_what_it_is_how_it_is_used_what_it_costs_and_where_it_is_from(
    name: str,
) -> None:
    about = recipe.about(name)
    for part in ("title", "command", "cost", "expect", "source"):
        assert getattr(about, part), f"{name}.yaml: its comment has no {part}"


@pytest.mark.parametrize("name", ALL)
def test_the_command_on_top_of_a_recipe_runs_that_recipe(
    name: str, eat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(recipe.about(name).command)
    words = words[1:] if words[0] == "eat" else words[words.index("eat_audio") + 1 :]
    assert words[1] == name and any(word.startswith("data=") for word in words)
    code, output, err = eat(*words, "--print-config")
    assert code == 0, err
    changes = [word for word in words[2:] if re.match(r"[\w.]+=", word)]
    if name in CHAINS:
        out = Path(words[words.index("--out") + 1])
        stages = [stage.settings(out) for stage in chain.stages_of(name, changes)]
        assert output == "---\n".join(map(recipe.dump, stages))
    else:
        assert output == recipe.dump(recipe.load(schema(name), name, changes))
    assert not list(tmp_path.iterdir())  # nothing was run


@pytest.mark.parametrize("name", [name for name in NAMES if recipe.about(name).epochs])
def test_the_epochs_of_a_recipe_are_its_steps_times_its_clips(name: str) -> None:
    epochs, equation = recipe.about(name).epochs.split(" = ")
    clips_trained_on, clips = equation.partition(" (")[0].split(" / ")
    numbers = {unit: int(n) for n, unit in re.findall(r"([\d_]+) ([A-Za-z-]+)", clips_trained_on)}
    run = resolved(name)
    assert numbers["steps"] == run.steps and numbers["clips"] == run.batch
    assert numbers.get("micro-batches", 1) == run.accumulate
    expected = math.prod(numbers.values()) / int(clips.split(" ")[0])
    assert float(epochs) == pytest.approx(expected, abs=0.05)


# ---- the published ones ----


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("form", ["", "_released"])
def test_a_published_recipe_has_the_published_schedule(name: str, form: str) -> None:
    steps, warmup, lr, per_step, epochs, clips = PUBLISHED[name]
    run, words = resolved(name + form), recipe.about(name + form).command.split()
    assert (run.steps, run.optim.warmup, run.optim.lr) == (steps, warmup, lr)
    assert run.batch * run.accumulate * gpus(words) == per_step
    assert round(steps * per_step / clips) == epochs


def gpus(words: list[str]) -> int:
    """How many processes a command starts."""
    options = ("--nnodes", "--nproc-per-node")
    counts = [int(words[words.index(option) + 1]) for option in options if option in words]
    return math.prod(counts)


@pytest.mark.parametrize("name", PUBLISHED_AUDIOMAE)
def test_a_published_recipe_of_audio_mae_has_the_published_schedule(name: str) -> None:
    epochs, warmup, lr, per_step, clips = PUBLISHED_AUDIOMAE[name]
    run, words = resolved(name), recipe.about(name).command.split()
    assert run.optim.lr == lr and run.batch * run.accumulate * gpus(words) == per_step
    assert run.steps * per_step / clips == pytest.approx(epochs, rel=2e-3)
    assert run.optim.warmup * per_step / clips == pytest.approx(warmup, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("audiomae_base", "pretrain"),
        ("audiomae_as2m_finetune", "ft_as2m"),
        ("audiomae_as20k_finetune", "ft_as20k"),
    ],
)
def test_rates_of_audio_mae_are_the_released_ones(name: str, schedule: str) -> None:
    run, published = resolved(name), golden("lr_schedules")["schedules"][schedule]
    assert (run.optim.lr, run.optim.min_lr) == (published["lr"], published["min_lr"])
    share = published["warmup_epochs"] / published["epochs"]
    assert run.optim.warmup / run.steps == pytest.approx(share, rel=2e-3)


def test_pre_training_of_audio_mae_is_the_published_objective() -> None:
    run, usual = resolved("audiomae_base"), AudioMAERun()
    for name in ("decoder", "masking", "hidden_ratio", "normalized", "positions"):
        assert getattr(run, name) == getattr(usual, name)
    assert run.config().to_dict() == AudioMAEConfig.named("base").to_dict()


def test_fine_tuning_of_audio_mae_is_what_its_scripts_and_table_3_say() -> None:
    shared = {
        "encoder.method": "audiomae",
        "encoder.pooling": "mean",
        "optim.layer_decay": 0.75,
        "optim.stem_decay": True,
        "optim.clip": 0.0,
        "optim.min_lr": 1e-6,
        "drop_path": 0.1,
        "augment.roll": True,
    }
    each = {  # frames, longest stripes in frames and bins, shares that are hidden
        "audiomae_as2m_finetune": ("bce_mean", 5e-4, 1_024, 192, 48, 0.2, 0.5, False),
        "audiomae_as20k_finetune": ("bce_mean", 5e-4, 1_024, 192, 48, 0.2, 0.5, False),
        "audiomae_esc50_finetune": ("cross_entropy", 1e-4, 512, 96, 24, 0.0, 0.0, False),
        "audiomae_speech_commands_finetune": ("bce_mean", 1e-4, 128, 48, 48, 0.0, 0.5, True),
    }
    for name, values in each.items():
        run = flat(resolved(name).model_dump())
        loss, decay, frames, time, frequency, hidden, mixed, noise = values
        assert {setting: run[setting] for setting in shared} == shared, name
        assert (run["loss"], run["optim.weight_decay"]) == (loss, decay)
        assert run["clips.seconds"] * 100 == pytest.approx(frames)
        stripes = run["augment.mask"] * frames, run["augment.mask_frequency"] * 128
        assert stripes == (time, frequency)
        assert (run["hidden_columns"], run["hidden_rows"]) == (hidden, hidden)
        assert (run["augment.mixup_share"] if run["augment.mixup"] else 0.0) == mixed
        assert run["augment.noise"] is noise


@pytest.mark.parametrize("method", ["audiomae", "bat"])
def test_the_tiny_recipes_of_methods_train_on_the_same_sound_as_often(method: str) -> None:
    differ = differences_of_shared(f"{method}_tiny", "eat_tiny")
    assert differ == {"method": method}


def test_pre_training_of_bat_is_the_published_objective() -> None:
    run, usual = resolved("bat_base_released"), BATRun()
    for name in ("masks", "hidden_ratio", "block", "adjust", "tau", "positions"):
        assert getattr(run, name) == getattr(usual, name)
    assert run.decoder.config(run.config()).to_dict() == BATConfig.named("base", depth=6).to_dict()
    assert run.config().to_dict() == BATConfig.named("base").to_dict()
    assert run.clips.roll and run.optim.clip == 0 and run.optim.schedule == "cosine_to_zero"


def differences_of_shared(one: str, other: str) -> dict[str, Any]:
    """`differences` of what two methods both have, but for their decoders."""
    mine, theirs = flat(resolved(one).model_dump()), flat(resolved(other).model_dump())
    both = [name for name in mine if name in theirs and not name.startswith("decoder.")]
    return {name: mine[name] for name in both if mine[name] != theirs[name]}


@pytest.mark.parametrize("name", RELEASED)
def test_released_and_recommended_differ_in_decay_and_padding_alone(name: str) -> None:
    recommended = name.removesuffix("_released")
    assert differences(name, recommended) == {
        "optim.decay_all": True,
        "clips.released_padding": True,
    }


def test_every_published_recipe_comes_in_both_forms() -> None:
    assert set(RELEASED) == {f"{name}_released" for name in PUBLISHED}


def test_the_base_run_is_the_released_configuration() -> None:
    run, schedule = resolved("eat_base_as2m_released"), golden("schedule_a")
    rate, ema = schedule["lr"]["pretrain_base"], schedule["ema"]["base"]
    assert run.steps == rate["max_update"]
    assert (run.optim.lr, run.optim.min_lr, run.optim.warmup) == (
        rate["lr"],
        rate["min_lr"],
        rate["warmup"],
    )
    assert (run.tau.start, run.tau.end, run.tau.steps) == (
        ema["start"],
        ema["end"],
        ema["end_step"],
    )
    assert run.utterance_weight == run.batch * run.masks == 192
    assert (run.optim.betas, run.optim.weight_decay, run.optim.clip) == ((0.9, 0.95), 0.05, 4.0)
    assert (run.hidden_ratio, run.adjust, run.block, run.mask_noise) == (0.8, 0.07, (5, 5), 0.01)


def test_the_large_run_differs_from_base_as_its_released_file_does() -> None:
    assert differences("eat_large_as2m", "eat_base_as2m") == {
        "encoder.size": "large",
        "decoder.layers": 3,
        "decoder.kernel": 5,
        "hidden_ratio": 0.75,
        "adjust": 0.1,
        "tau.steps": 150_000,
        "optim.lr": 4e-4,
        "accumulate": 2,
    }


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("eat_as20k_finetune", "finetune_AS20K"),
        ("eat_as2m_finetune", "finetune_AS2M_yaml"),
    ],
)
def test_a_fine_tuning_schedule_is_the_released_one(name: str, schedule: str) -> None:
    run, published = resolved(name), golden("schedule_a")["lr"][schedule]
    assert (run.steps, run.optim.lr, run.optim.min_lr, run.optim.warmup) == (
        published["max_update"],
        published["lr"],
        published["min_lr"],
        published["warmup"],
    )


@pytest.mark.parametrize(
    ("name", "augmented"),
    [
        ("eat_as20k_finetune", "AS2M/AS20K"),
        ("eat_as2m_finetune", "AS2M/AS20K"),
        ("eat_esc50_finetune", "ESC50"),
        ("eat_speech_commands_finetune", "SPC2"),
    ],
)
def test_a_fine_tuning_recipe_masks_as_the_released_script(name: str, augmented: str) -> None:
    run, published = resolved(name), golden("augment_a")["specaug"]["as_run"][augmented]
    assert round(run.clips.seconds * 100) == published["T"]
    assert run.augment.mask == published["mask_ratio"]
    assert run.augment.mask * 128 == pytest.approx(published["freqm"])
    assert run.augment.mask * published["T"] == pytest.approx(published["timem"])


def test_fine_tuning_recipes_are_what_the_released_scripts_and_table_4_say() -> None:
    shared = {
        "optim.layer_decay": 0.65,
        "optim.clip": 0.0,
        "optim.min_lr": 1e-6,
        "optim.weight_decay": 0.05,
        "drop_path": 0.1,
        "encoder.pooling": "cls",
        "augment.roll": True,
    }
    each = {
        "eat_as20k_finetune": ("bce_per_label", "audioset", 0.8, False, 0.0),
        "eat_as2m_finetune": ("bce_per_label", "audioset", 0.8, False, 0.0),
        "eat_esc50_finetune": ("cross_entropy", "esc50", 0.0, False, 0.1),
        "eat_speech_commands_finetune": ("bce_per_clip", "speech_commands", 0.8, True, 0.0),
    }
    names = (
        *("loss", "clips.statistics", "augment.mixup", "augment.noise"),
        "augment.label_smoothing",
    )
    for name, values in each.items():
        run = flat(resolved(name).model_dump())
        expected = shared | dict(zip(names, values, strict=True))
        assert {setting: run[setting] for setting in expected} == expected, name


def test_audioset_2m_is_drawn_by_class_200_000_clips_at_a_time() -> None:
    only = {"clips.balance": True, "clips.epoch_clips": 200_000}
    more = {"batch": 96, "steps": 300_000, "optim.warmup": 30_000}
    assert differences("eat_as2m_finetune", "eat_as20k_finetune") == only | more


@pytest.mark.parametrize("name", [name for name in NAMES if schema(name) is EATRun])
def test_only_recipes_for_audioset_sized_runs_have_the_weight_that_makes_short_ones_collapse(
    name: str,
) -> None:
    run = resolved(name)
    assert run.utterance_weight == (192.0 if run.steps >= 400_000 else 1.0)


# ---- the commands that show them ----


def test_eat_recipes_lists_what_each_costs_and_brings(eat: Any) -> None:
    code, output, _ = eat("recipes")
    header, *rows = (line.split("\t") for line in output.splitlines())
    assert code == 0 and header == ["name", "what it is", "cost", "expected result"]
    assert [row[0] for row in rows] == ALL
    by_name = {row[0]: row for row in rows}
    assert "230 hours" in by_name["eat_base_as2m"][2] and "48.6 mAP" in by_name["eat_base_as2m"][3]


def test_the_page_about_recipes_has_the_table_of_eat_recipes(eat: Any) -> None:
    _, output, _ = eat("recipes")
    cells = [line.split("\t") for line in output.splitlines()[1:]]
    table = "\n".join(f"| `{name}` | " + " | ".join(rest) + " |" for name, *rest in cells)
    assert table in DOCS.read_text(encoding="utf-8"), f"docs/methods/recipes.md should say\n{table}"


def test_the_recipe_that_the_page_writes_works(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "birds.yaml").write_text(text, encoding="utf-8")
    run, base = recipe.load(EATRun, tmp_path / "birds.yaml"), resolved("eat_tiny")
    assert (run.clips.seconds, run.optim.lr) == (3.2, 5e-4)
    assert run.clips.crop == base.clips.crop and run.optim.warmup == base.optim.warmup


def test_a_recipe_is_shown_with_the_comment_on_top_of_it(eat: Any) -> None:
    _, output, _ = eat("recipes", "eat_base_as2m", "optim.lr=1e-4")
    assert output.startswith(recipe.head("eat_base_as2m"))
    assert yaml.safe_load(output)["optim"]["lr"] == 1e-4


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["pretrain", "eat_tiny", "data=x", "clips.statistics=[-5, 4e0]", "splits=[1, a]"], EATRun),
        (["pretrain", "eat_large_as2m", "optim.lr=3e-5", "encoder.depth=20"], EATRun),
        (["pretrain", "audiomae_tiny", "hidden_ratio=0.7"], AudioMAERun),
        (["finetune", "eat_tiny_finetune", "test_splits=[5]", "freeze=2"], FinetuneRun),
        (["finetune", "eat_as2m_finetune", "--from", "nowhere", "--cross-validate"], FinetuneRun),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_a_printed_run_is_the_same_run_when_it_is_read_back(
    words: list[str], kind: type[Settings], eat: Any, tmp_path: Path
) -> None:
    code, output, err = eat(*words, "--print-config")
    assert code == 0, err
    (tmp_path / "mine.yaml").write_text(output, encoding="utf-8")
    changes = [word for word in words[2:] if "=" in word]
    again = recipe.load(kind, tmp_path / "mine.yaml")
    assert again == recipe.load(kind, words[1], changes)
    assert eat(words[0], str(tmp_path / "mine.yaml"), "--print-config")[1] == output


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_run_that_is_not_only_printed_needs_a_folder(command: str, eat: Any) -> None:
    name = {"pretrain": "eat_tiny", "finetune": "eat_tiny_finetune"}[command]
    code, output, err = eat(command, name, "data=x")
    assert code == 2 and not output
    assert err == "eat: --out is not set; expected a folder for checkpoints, logs and the model\n"


def test_printing_a_run_reports_all_its_mistakes_at_once(eat: Any) -> None:
    words = ("optim.lrr=1e-4", "steps=4.5", "clips.crp=start", "batch=0")
    code, output, err = eat("pretrain", "eat_tiny", *words, "--print-config")
    assert code == 2 and not output
    assert sorted(err.splitlines()) == [
        "eat: batch=0: more than 0 is expected",
        "eat: clips.crp=start: no such setting; did you mean clips.crop?",
        "eat: optim.lrr=1e-4: no such setting; did you mean optim.lr?",
        "eat: steps=4.5: a whole number is expected",
    ]
