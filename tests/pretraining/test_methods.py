"""What holds for every method of pre-training: its loss, its masks, its steps, its metrics."""

import contextlib
import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eat_audio import cli
from eat_audio import config as recipe
from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import Batch, ClipSettings, whole_patches
from eat_audio.data.synthetic import write_corpus
from eat_audio.errors import SettingError
from eat_audio.masking import Masks
from eat_audio.models import METHODS, model_types, pretrained_here, save
from eat_audio.models.beats.modeling import BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor, EATFeatureExtractor
from eat_audio.pretraining.beats.tokenizer import TokenizerPretraining
from eat_audio.pretraining.method import EncoderSettings, Pretraining, PretrainRun, run_settings
from eat_audio.pretraining.run import CollapseGuard, in_full, make_features, schema
from eat_audio.report.report import write_report
from eat_audio.rng import clip_keys
from eat_audio.training.loop import finish_gradients, fit
from eat_audio.training.metrics_log import TrainingLog, read_log
from eat_audio.training.optim import adamw, parameter_groups

SEED = 3
SHARED: dict[str, Any] = {
    "encoder": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "clips": {"seconds": 2.56},
    "optim": {"lr": 1e-3, "warmup": 0, "eps": 1e-4},  # Adam would blow up rounding of zeros
    "device": "cpu",
    "seed": SEED,
}
SMALL: dict[str, dict[str, Any]] = {
    "audiomae": {"decoder": {"width": 32, "depth": 2, "heads": 4, "bias_dropout": 0.0}},
    "bat": {
        "decoder": {"width": 24, "depth": 1, "heads": 2},
        "masks": 3,
        "block": [3, 3],
        "positions": "correct",
    },
    "beats": {
        "dropout": 0.0,
        "layerdrop": 0.0,
        "predictor_layers": 1,
        "random": {"codes": 32, "width": 16},
    },
    "beats_tokenizer": {
        "dropout": 0.0,
        "layerdrop": 0.0,
        "estimator_layers": 1,
        "codes": 8,
        "code_width": 8,
        "teacher": "",  # the fixture `teacher` says where it lies
    },
    "eat": {
        "decoder": {"layers": 2, "groups": 4},
        "masks": 3,
        "block": [3, 3],
        "mask_noise": 0.0,
        "utterance_weight": 1.0,
    },
    "sslam": {
        "decoder": {"layers": 2, "groups": 4},
        "masks": 2,
        "block": [3, 3],
        "mask_noise": 0.0,
        "utterance_weight": 1.0,
    },
}
"""Tiny forms of methods, without random numbers per batch."""
HEALTH: dict[str, dict[str, tuple[float, float]]] = {
    "audiomae": {"prediction_std": (1.0, 0.01)},
    "bat": {"target_std": (1.0, 0.01)},
    "beats": {"target_perplexity": (9.0, 1.1), "prediction_perplexity": (9.0, 1.0)},
    "beats_tokenizer": {"perplexity": (4.0, 1.1), "prediction_std": (1.0, 1.0)},
    "eat": {"target_std": (1.0, 0.01)},
    "sslam": {"target_std": (1.0, 0.01)},
}
"""What a method's numbers are when it is well, and when it has collapsed."""
TINY = {"beats": "beats_tiny_iter1", "beats_tokenizer": "beats_tiny_tokenizer"}
"""The tiny recipes of methods whose names are not METHOD_tiny."""
MIXED = {"sslam": 2}
"""How many neighbors a method mixes; a clip's loss depends on these, and on no others."""
OF_CLIPS = {"loss", "frame", "utterance", "retention", "distance", "commitment"}
"""What is a mean over clips of what objectives tell."""

TRAINED = [name for name, spec in METHODS.items() if spec.pretraining]
"""All methods that can be pre-trained: whatever is registered has to pass."""

each = pytest.mark.parametrize("method", TRAINED)
each_that_hides = pytest.mark.parametrize("method", [m for m in TRAINED if m != "beats_tokenizer"])


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tokenizer learns from."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(SEED)
    save(BEATsModel(settings("beats").config()), BEATsFeatureExtractor(), folder)
    SMALL["beats_tokenizer"]["teacher"] = str(folder)


def settings(method: str, **changes: Any) -> PretrainRun:
    kind = run_settings(method)
    return kind.model_validate({"method": method} | SHARED | SMALL[method] | changes)


def objective(method: str, **changes: Any) -> Pretraining:
    """A tiny objective, the same at every call."""
    torch.manual_seed(SEED)
    run = settings(method, **changes)
    frames = whole_patches(run.clips.seconds)
    features = METHODS[run.config().model_type].feature_extractor()
    objective_ = run.build_objective(features, frames=frames)
    if isinstance(objective_, TokenizerPretraining):  # not with what the first micro-batch holds
        objective_.codebook.initialize(torch.nn.functional.normalize(torch.randn(20, 8), dim=1))
    return objective_.train()


def clips(numbers: list[int], samples: list[int] | None = None, *, epoch: int = 0) -> Batch:
    """Noise; a number always gives the same clip, `samples` (41,200 if not meta) of it."""
    samples = samples or [41_200] * len(numbers)
    waves = torch.zeros(len(numbers), max(samples), dtype=torch.int16)
    for wave, number, count in zip(waves, numbers, samples, strict=True):
        generator = torch.Generator().manual_seed(number)
        wave[:count] = torch.randint(-3_000, 3_000, (count,), generator=generator)
    return Batch(
        step=0,
        waveforms=waves,
        lengths=torch.tensor(samples),
        clips=torch.tensor(numbers),
        epochs=torch.full((len(numbers),), epoch),
    )


def losses(model: Pretraining, batch: Batch) -> dict[str, Tensor]:
    return model(batch, torch.Generator().manual_seed(11))


# ---- the loss ----


@each
@torch.no_grad()
def test_the_loss_of_a_batch_is_the_mean_of_its_clips_losses_whatever_their_lengths(
    method: str,
) -> None:
    model = objective(method).eval()
    samples = [41_200, 16_000, 9_000, 30_000]
    numbers = [1, 2, 3, 4]
    batch = clips(numbers, samples)
    together = losses(model, batch)
    size = MIXED.get(method, 1)
    parted = [slice(first, first + size) for first in range(0, len(samples), size)]
    alone = [losses(model, clips(numbers[part], samples[part])) for part in parted]
    parts = OF_CLIPS & together.keys()
    assert "loss" in parts
    for name in parts:
        expected = torch.stack([one[name] for one in alone]).mean()
        torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-5)
    batch.waveforms[1, 16_000:] = 12_345  # what lies behind a clip is not used
    torch.testing.assert_close(losses(model, batch)["loss"], together["loss"], rtol=0, atol=0)
    assert len({round(one["loss"].item(), 4) for one in alone}) == len(alone)


@each
def test_accumulating_micro_batches_trains_as_one_batch_of_all_their_clips(method: str) -> None:
    """Two optimizer steps of 12 clips, with all that follows a step."""

    def trained(size: int) -> dict[str, Tensor]:
        def batches() -> Iterator[Batch]:
            for first in range(0, 24, size):
                yield clips(list(range(first, first + size)))

        model = objective(method)
        run = settings(method, steps=2, batch=size, accumulate=12 // size, precision="fp32")
        groups = parameter_groups(model.named_parameters(), run.optim, layers=model)
        fit(model, batches(), adamw(groups, run.optim), run, run.optim)
        return model.state_dict()

    model, other, start = trained(4), trained(12), objective(method).state_dict()
    for name, weights in other.items():
        torch.testing.assert_close(model[name], weights, rtol=0, atol=2e-6, msg=name)
    moved = max((model[name] - start[name]).abs().max().item() for name in start)
    assert moved > 1e-4  # so the tolerance is small beside what two steps do


@each
def test_every_parameter_that_learns_has_a_gradient(method: str) -> None:
    model = objective(method)
    losses(model, clips([1, 2]))["loss"].backward()
    left = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert left == []


# ---- a GPU ----


def step(model: Pretraining, batch: Batch, run: PretrainRun) -> Tensor:
    """All that a step does but the optimizer's part; return the gradient's norm."""
    model(batch, None)["loss"].backward()
    norm = finish_gradients(list(model.parameters()), torch.ones((), device=run.device), 4.0)
    model.after_step(1)
    return norm


@each
@pytest.mark.parametrize("samples", [[41_200, 41_200], [41_200, 16_000], [38_000, 38_000]])
def test_a_step_reads_nothing_from_its_device(method: str, samples: list[int]) -> None:
    """Tensors on the meta device have no values: what would wait for a GPU raises."""
    batch = clips([1, 2], samples).to("meta")
    meta = settings(method).model_copy(update={"device": "meta"})
    assert step(objective(method).to("meta"), batch, meta).is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@each
def test_steps_on_a_gpu_do_not_wait_for_it(method: str) -> None:
    model = objective(method).cuda()
    run = settings(method, steps=6, batch=2, precision="bf16", log_every=100, device="cuda")
    groups = parameter_groups(model.named_parameters(), run.optim, layers=model)
    pinned = clips([1, 2], [41_200, 16_000]).pin_memory()
    modes = {4: "error", 5: "default"}  # tables are made in the first steps, the last one logs
    set_mode = torch.cuda.set_sync_debug_mode
    try:
        fit(
            model,
            itertools.repeat(pinned),
            adamw(groups, run.optim),
            run,
            run.optim,
            on_step=lambda done: set_mode(modes[done]) if done in modes else None,
        )
    finally:
        set_mode("default")


@each_that_hides
def test_without_the_padding_they_share_clips_have_the_same_losses(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = objective(method).eval(), clips([1, 2], [38_000, 38_000])  # of 41,200
    cut = model.features.log_mel(
        batch.waveforms, batch.lengths, frames=model._shared_frames(batch.lengths)
    )
    assert cut.values.shape[1] < model.frames and cut.attention_mask is None
    whole = model.features.log_mel(batch.waveforms, batch.lengths, frames=model.frames)
    values = []
    for log_mel in (whole, cut):
        monkeypatch.setattr(model, "log_mel", lambda _, one=log_mel: one)
        values.append(losses(model, batch)["loss"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@each_that_hides
def test_a_mask_that_masks_no_patch_is_left_out_and_changes_no_bit(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = objective(method), clips([1, 2], [40_560, 40_400])  # 251 of 256 frames
    log_mel = model.log_mel(batch)
    assert log_mel.frame_mask is not None or method == "beats"
    assert log_mel.patch_mask(8) is None
    without = losses(model, batch)["loss"]
    columns = torch.full((2,), log_mel.values.shape[1] // 16)
    every = torch.ones(2, 8 * int(columns[0]), dtype=torch.bool)
    kind = type(log_mel)
    monkeypatch.setattr(kind, "columns", property(lambda _: columns))
    monkeypatch.setattr(kind, "patch_mask", lambda *_: every)
    assert torch.equal(losses(model, batch)["loss"], without)


# ---- its masks ----


@each_that_hides
def test_a_clips_masks_depend_on_its_number_and_epoch_not_on_its_batch(method: str) -> None:
    run = settings(method)

    def masks(batch: Batch) -> Masks:
        return run.sample_masks(clip_keys(SEED, batch.epochs, batch.clips, 1), (16, 8), None)

    together = masks(clips([1, 2, 3])).hidden[:, 0]
    assert torch.equal(masks(clips([3, 1])).hidden[1, 0], together[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(masks(clips([1], epoch=1)).hidden[0, 0], together[0])


@pytest.mark.parametrize("method", ["bat", "eat", "sslam"])
def test_of_several_shapes_of_blocks_each_mask_has_one(method: str) -> None:
    keys = clip_keys(SEED, 0, torch.arange(8), 2)

    def hidden(block: list[Any]) -> Tensor:
        return settings(method, block=block).sample_masks(keys, (16, 8), None).hidden

    several, first, second = hidden([[2, 2], [1, 8]]), hidden([2, 2]), hidden([1, 8])
    of_first, of_second = ((several == one).all(dim=2) for one in (first, second))
    assert (of_first ^ of_second).all() and of_first.any() and of_second.any()


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ("[[2,2],[0,1]]", "block.1.0=0: more than 0 is expected"),
        ("[[2,2],3]", "block.1=3: a list is expected"),
        ("[2,3,4]", r"block=\[2,3,4\]: at most 2 values are expected"),
        ("[]", "block.0 is not set"),
    ],
)
def test_a_block_that_is_none_gets_one_sentence(block: str, sentence: str) -> None:
    with pytest.raises(SettingError, match=rf"^{sentence}"):
        recipe.load(schema, "eat_tiny", [f"block={block}"])


@each
def test_masks_leave_padding_alone(method: str) -> None:
    columns = torch.tensor([16, 7])
    keys = clip_keys(SEED, 0, torch.tensor([1, 2]), 1)
    masks = settings(method).sample_masks(keys, (16, 8), columns)
    assert masks.visible_valid is not None
    assert not masks.hidden[1, 0, 7 * 8 :].any()
    assert int(masks.visible[1, 0][masks.visible_valid[1, 0]].max()) < 7 * 8


# ---- what a run is meta to be ----


@each
def test_a_recipe_names_its_method_and_gets_its_settings_encoder_and_front_end(
    method: str,
) -> None:
    run = recipe.load(schema, TINY.get(method, f"{method}_tiny"), ["clips.seconds=1.28"])
    assert type(run) is run_settings(method) and run.method == method
    kind = run.config().model_type
    assert kind == METHODS[method].config.model_type
    features = make_features(Corpus("any", []), run.clips, method=kind)
    assert type(features) is METHODS[kind].feature_extractor


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: eat_tiny\nmethod: eet\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"method=eet: 'audiomae' or .*'eat' .*is expected"):
        recipe.load(schema, tmp_path / "mine.yaml")


@pytest.mark.parametrize("method", model_types())
def test_a_shape_means_the_same_in_every_method(method: str) -> None:
    shape: dict[str, Any] = {
        "size": "tiny",
        "embed_dim": 96,
        "depth": 2,
        "num_heads": 6,
        "mlp_ratio": 2.0,
    }
    config = EncoderSettings.model_validate(shape).build_config(method)
    encoder = METHODS[method].encoder(config)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (96, 2, 6)
    assert encoder.model.blocks[0].mlp.fc1.out_features == 192


def test_sizes_and_poolings_that_a_method_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder.size=large: audiomae has no such size"):
        settings("audiomae", encoder={"size": "large"})
    with pytest.raises(ValueError, match="pooling=linear_softmax: expected one of cls, mean"):
        settings("audiomae", encoder={"pooling": "linear_softmax"})


@pytest.mark.parametrize(
    "method", [n for n in pretrained_here() if n == METHODS[n].config.model_type]
)
def test_statistics_are_those_of_the_log_mel_that_a_method_uses(method: str) -> None:
    kind = METHODS[method].feature_extractor
    measured = Corpus("mine", [], statistics=(-9.0, 4.0))
    same_front_end = issubclass(
        kind, EATFeatureExtractor
    )  # what is measured is measured with this one

    def statistics(**changes: Any) -> tuple[float, float]:
        features = make_features(measured, ClipSettings(**changes), method=method)
        assert type(features) is kind
        return features.mean, features.std

    own = kind().mean, kind().std
    assert statistics() == ((-9.0, 4.0) if same_front_end else own)
    assert statistics(statistics="audioset") == own
    assert statistics(statistics=(-1.0, 2.0)) == (-1.0, 2.0)
    if not same_front_end:
        with pytest.raises(SettingError, match="expected two numbers or one of audioset$"):
            statistics(statistics="esc50")


# ---- its metrics ----


@each
def test_a_collapse_is_reported_once_and_not_before_the_end_of_the_warm_up(
    method: str, tmp_path: Path
) -> None:
    messages: list[str] = []
    log = TrainingLog(tmp_path, "test", steps=9, clips_per_step=1)
    log.message = messages.append  # type: ignore[method-assign]
    model = objective(method)
    guard = CollapseGuard(model, log, after=2)
    messages.clear()  # what the decoder does not reach
    healthy = {n: x.item() for n, x in losses(model, clips([1, 2])).items()}
    healthy["target/position_share"] = 0.5
    healthy |= {name: well for name, (well, _) in HEALTH[method].items()}
    ill = healthy | {name: collapsed for name, (_, collapsed) in HEALTH[method].items()}
    guard.write(1, ill)
    guard.write(3, healthy)
    assert not messages
    for step in (4, 5):
        guard.write(step, ill)
    assert len(messages) == 1 and "step 4: collapsed" in messages[0]
    assert len(read_log(tmp_path)) == 4


@each
def test_a_copy_of_a_whole_encoder_is_itself(method: str) -> None:
    student = objective(method).student
    assert in_full(student) is student


@pytest.fixture(scope="module", params=TRAINED)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, str]:
    """A method, the folder of a short run that was looked at, and what its command said."""
    method, home = request.param, tmp_path_factory.mktemp("run")
    listing = write_corpus(home / "clips", clips_per_family=3, seconds=1.3, seed=0)
    arguments = {
        "audiomae": ["decoder.width=32", "decoder.depth=2", "decoder.heads=4"],
        "bat": ["masks=2", "block=[3,3]", "decoder.width=24", "decoder.heads=2"],
        "beats": ["predictor_layers=1", "random.codes=32"],
        "beats_tokenizer": ["codes=8", f"teacher={SMALL['beats_tokenizer']['teacher']}"],
        "eat": ["masks=2", "block=[3,3]", "decoder.groups=4"],
        "sslam": ["masks=2", "block=[3,3]", "decoder.groups=4"],
    }[method]
    arguments += ["encoder.embed_dim=48", "encoder.depth=2", "clips.seconds=1.28", "device=cpu"]
    arguments += ["steps=4", "batch=4", "log_every=2", "optim.warmup=1"]
    arguments += [f"data={listing}", f"monitor.data={listing}", "monitor.clips=30"]
    messages = io.StringIO()
    called = TINY.get(method, f"{method}_tiny")
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(messages),
        contextlib.redirect_stderr(messages),
    ):
        patch.setattr(
            sys, "argv", ["eat", "pretrain", called, *arguments, "--out", str(home / "run")]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    return method, home / "run", messages.getvalue()


def test_the_command_shows_the_numbers_of_the_objective_and_no_others(finished: Any) -> None:
    method, run, messages = finished
    rows = [line.split("\t")[0] for line in messages.splitlines() if "\t" in line][1:]
    assert rows == list(losses(objective(method), clips([1, 2])))
    then = f"next: eat finetune {method}_tiny_finetune --from {run}"
    if method == "beats_tokenizer":
        then = f"next: eat pretrain beats_tiny_iter2 tokenizer={run}"
    assert then in messages


def test_the_report_of_a_run_shows_its_masks_and_its_charts(finished: Any) -> None:
    method, run, _ = finished
    page = write_report(run).read_text(encoding="utf-8")
    assert run_settings(method).mask_description in page
    assert "Visible to the student" in page and "Linear probe" in page
    assert ("Spread" in page) == (method != "beats")  # it has labels, not vectors, to guess
