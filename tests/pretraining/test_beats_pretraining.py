"""BEATs' objective learns labels that no batch, padding or neighbour has a say in."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from small_batches import FEATURES, SMALL, noise_batch
from torch import Tensor, nn

from conftest import needs_data
from eat_audio import cli, finetune
from eat_audio import config as recipe
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import (
    Batch,
    ClipBatches,
    ClipSettings,
    ordered_batches,
    training_batches,
)
from eat_audio.errors import DataError, SettingError
from eat_audio.masking import Masks, random_masks
from eat_audio.models import save
from eat_audio.models.beats.modeling import BEATsConfig, BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor, LogMelBatch
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining.beats import stored_labels as labels
from eat_audio.pretraining.beats.objective import (
    BEATsMethod,
    BEATsPretraining,
    BEATsRun,
    RandomTokenizer,
    RandomTokenizerSettings,
)
from eat_audio.pretraining.beats.quantizer import Codebook, code_usage
from eat_audio.pretraining.beats.stored_labels import StoredLabels, Tokenized, label_usage, tokenize
from eat_audio.pretraining.beats.tokenizer import (
    Tokenizer,
    batch_log_mel,
    load_tokenizer,
    projection,
)
from eat_audio.pretraining.run import schema
from eat_audio.rng import clip_keys
from eat_audio.training.loop import Training, fit
from eat_audio.training.optim import Optim, adamw, parameter_groups

CODES = RandomTokenizerSettings(codes=64, width=32)
LITERAL = RandomTokenizerSettings(input_norm="none", projection_norm="none", code_norm="none")


def small(frames: int = 256, **changes: Any) -> BEATsPretraining:
    torch.manual_seed(0)
    method = BEATsMethod(**{"random": CODES, "predictor_layers": 2} | changes)
    return BEATsPretraining(SMALL, method, FEATURES, frames=frames, seed=1)


def close(model: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(model, expected, rtol=0, atol=atol)


# ---- the random tokenizer ----


def random_tokenizer(settings: RandomTokenizerSettings, seed: int = 0) -> RandomTokenizer:
    return RandomTokenizer(settings, FEATURES, patch=16, seed=seed)


@needs_data
def test_taken_literally_the_paper_uses_few_codes_and_normalized_many(data: Path) -> None:
    corpus = open_corpus(data / "esc10")
    clips = Corpus(corpus.name, corpus.clips[::10], corpus.label_names)
    (batch,) = ordered_batches(clips, ClipSettings(seconds=5), batch=40)
    spectrogram = FEATURES.log_mel(batch.waveforms, batch.lengths).values
    patches = spectrogram.unflatten(2, (-1, 16)).unflatten(1, (-1, 16))
    loud = (patches.var(dim=(2, 4)) > 1e-8).flatten(1).float()
    both_l2 = RandomTokenizerSettings(input_norm="none")
    results = [
        code_usage(random_tokenizer(settings)(spectrogram).flatten(1), loud, 1024)
        for settings in (LITERAL, both_l2, RandomTokenizerSettings())
    ]
    literal, on_sphere, recommended = ({n: x.item() for n, x in meta.items()} for meta in results)
    assert literal["used"] < 100 and literal["perplexity"] < 15 and literal["majority"] > 0.2
    assert literal["perplexity"] < on_sphere["perplexity"] / 3
    assert 300 < on_sphere["used"] < 800
    assert recommended["used"] > 900 and recommended["perplexity"] > 200
    assert recommended["majority"] < 0.12


@pytest.mark.parametrize("input_norm", ["none", "patch", "dim"])
@pytest.mark.parametrize("projection_norm", ["none", "l2", "layernorm"])
def test_random_labels_depend_on_the_seed_and_on_no_neighbor(
    input_norm: Any, projection_norm: Any
) -> None:
    settings = RandomTokenizerSettings(input_norm=input_norm, projection_norm=projection_norm)
    clips, columns = torch.randn(2, 160, 128), torch.tensor([10, 4])
    valid = (torch.arange(10) < columns[:, None]).repeat_interleave(8, dim=1)
    labels = random_tokenizer(settings)(clips, valid)
    assert labels.shape == (2, 10, 8) and (labels[1, 4:] == -1).all()
    alone = random_tokenizer(settings)(clips[1:, :64])
    assert torch.equal(labels[1, :4], alone[0])
    clips[1, 64:] = 100.0
    assert torch.equal(random_tokenizer(settings)(clips, valid), labels)
    assert not torch.equal(random_tokenizer(settings, seed=1)(clips, valid), labels)


def test_loudness_changes_no_label_where_patches_are_normalized() -> None:
    clip = torch.randn(1, 64, 128)
    recommended = random_tokenizer(RandomTokenizerSettings())
    assert torch.equal(recommended(clip + 0.7), recommended(clip))
    literal = random_tokenizer(LITERAL)
    assert not torch.equal(literal(clip + 0.7), literal(clip))


def test_silence_has_one_name() -> None:
    silence = torch.full((1, 64, 128), -1.2543)
    assert random_tokenizer(RandomTokenizerSettings())(silence).unique().numel() == 1


def test_the_random_tokenizer_is_part_of_what_is_saved() -> None:
    state = small().state_dict()
    assert state["tokenizer.codes"].shape == (64, 32)
    assert state["tokenizer.projection"].shape == (256, 32)
    assert not any(name.startswith("tokenizer.") for name, _ in small().named_parameters())


# ---- the objective ----


def log_mel_batch(spectrogram: Tensor, columns: Tensor | None = None) -> LogMelBatch:
    """The batch of a spectrogram, so many columns of which are valid."""
    if columns is None:
        columns = torch.full((len(spectrogram),), spectrogram.shape[1] // 16)
    return LogMelBatch(spectrogram, columns * 16)


@pytest.mark.parametrize("fill", ["zeros", "learned"])
@pytest.mark.parametrize("columns", [1, 3, 12])
@torch.no_grad()
def test_a_clips_loss_does_not_depend_on_its_padding(columns: int, fill: str) -> None:
    model = small(fill=fill, label_smoothing=0.1).eval()
    keys, valid = clip_keys(0, 0, torch.tensor([5]), 1), torch.tensor([columns])
    spectrogram = torch.randn(1, columns * 16, 128)
    labels = torch.randint(0, 64, (1, columns, 8))
    results = []
    for longest, filling in ((columns, 0.0), (16, 0.0), (16, 100.0), (23, -7.0)):
        behind = torch.full((1, (longest - columns) * 16, 128), filling)
        nothing = torch.full((1, longest - columns, 8), -1)
        masks = random_masks(keys, (longest, 8), hidden_ratio=0.75, valid_columns=valid)
        batch = log_mel_batch(torch.cat([spectrogram, behind], dim=1), valid)
        results.append(model.losses(batch, masks, torch.cat([labels, nothing], dim=1)))
    for name, first in results[0].items():
        for other in results[1:]:
            close(other[name], first, atol=2e-5)
    assert results[0]["loss"] > 0


def masks_of(model: BEATsPretraining, batch: Batch) -> Masks:
    results: list[Masks] = []
    model.losses = lambda log_mel, masks, labels: results.append(masks) or {}  # type: ignore[method-assign]
    model(batch, torch.Generator())
    return results[0]


def test_of_ten_seconds_124_patches_are_visible() -> None:
    masks = masks_of(small(frames=1_024), noise_batch([1], seconds=10.0))
    assert masks.visible.shape == (1, 1, 124) and masks.n_patches == 496


@torch.no_grad()
def test_the_student_encodes_the_visible_patches_alone_in_their_order() -> None:
    model = small().eval()
    masks = random_masks(clip_keys(0, 0, torch.tensor([5]), 1), (16, 8), hidden_ratio=0.75)
    spectrogram = torch.randn(1, 256, 128)
    visible = model.encode_visible(spectrogram, masks)
    assert visible.shape == (1, 32, 32)
    inside = model.student.model
    close(visible, inside(inside.embed(spectrogram)[:, masks.visible[0, 0]])[0])
    changed = spectrogram.view(1, 16, 16, 8, 16).clone()
    hidden = masks.hidden[0, 0].view(16, 8)
    changed[:, :, :] += 50 * hidden[None, :, None, :, None]
    assert torch.equal(model.encode_visible(changed.view(1, 256, 128), masks), visible)
    decoder_input = model.decoder_input(visible, masks)
    assert decoder_input[0, masks.hidden[0, 0]].eq(0).all()
    assert torch.equal(decoder_input[0, masks.visible[0, 0]], visible[0])


@torch.no_grad()
def test_labels_are_those_of_the_whole_clip_without_a_mask() -> None:
    model, batch = small().eval(), noise_batch([1, 2])
    spectrograms = batch_log_mel(FEATURES, batch, 256)
    assert torch.equal(
        model.labels(batch, spectrograms), random_tokenizer(CODES, seed=1)(spectrograms.values)
    )


def test_numbers_beside_the_loss_are_what_they_say() -> None:
    model = small().eval()
    masks = random_masks(clip_keys(0, 0, torch.arange(4), 1), (4, 8), hidden_ratio=0.75)
    labels = torch.full((4, 4, 8), 7)
    labels[0] = 9
    with torch.no_grad():
        model.predictor.model.head.weight.zero_()
        model.predictor.model.head.bias.zero_()[7] = 3.0
        metrics = model.losses(log_mel_batch(torch.randn(4, 64, 128)), masks, labels)
    assert metrics["accuracy"] == metrics["visible_accuracy"] == metrics["target_majority"] == 0.75
    assert metrics["target_used"] == 2 and metrics["prediction_used"] == 1
    close(metrics["prediction_perplexity"], torch.tensor(1.0))
    close(metrics["target_perplexity"].log(), torch.tensor(0.562335))  # of 3/4 and 1/4


def test_label_smoothing_keeps_a_sure_prediction_from_being_free() -> None:
    results = []
    for smoothing in (0.0, 0.1):
        model = small(label_smoothing=smoothing).eval()
        with torch.no_grad():
            model.predictor.model.head.weight.zero_()
            model.predictor.model.head.bias.zero_()[7] = 20.0
            masks = random_masks(clip_keys(0, 0, torch.arange(1), 1), (4, 8), hidden_ratio=0.75)
            labels = torch.full((1, 4, 8), 7)
            results.append(
                model.losses(log_mel_batch(torch.randn(1, 64, 128)), masks, labels)["loss"].item()
            )
    assert results[0] < 1e-4 and results[1] == pytest.approx(0.1 * 20 * 63 / 64, rel=1e-3)


def test_a_token_that_learns_may_stand_for_hidden_patches() -> None:
    assert small().mask_token is None
    model = small(fill="learned").train()
    model(noise_batch([1, 2]), torch.Generator())["loss"].backward()
    assert model.mask_token is not None and model.mask_token.grad is not None
    masks = random_masks(clip_keys(0, 0, torch.tensor([5]), 1), (16, 8), hidden_ratio=0.75)
    decoder_input = model.decoder_input(torch.zeros(1, 32, 32), masks)
    assert decoder_input[0, masks.hidden[0, 0]].eq(model.mask_token).all()


def test_the_predictor_begins_as_the_encoder_does() -> None:
    torch.manual_seed(0)
    config = BEATsConfig.named("small", encoder_layers=3)
    model = BEATsPretraining(config, BEATsMethod(), FEATURES, frames=256)
    expected = dict(model.student.named_parameters())
    for name, parameter in model.predictor.named_parameters():
        if ".blocks." in name or "relative_bias" in name:
            close(parameter.std(), expected[name].std(), atol=2e-3)
    assert model.predictor.config.residual_scale == 6**0.25


def test_two_sources_of_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer=a and labels=b: expected one of them"):
        BEATsMethod(tokenizer="a", labels="b")


def train(model: nn.Module, corpus: Corpus, *, steps: int, batch: int) -> list[float]:
    """The losses of a few steps on a corpus."""
    training = Training(steps=steps, batch=batch, log_every=1, device="cpu")
    optim = Optim(lr=3e-3, warmup=3, betas=(0.9, 0.98), weight_decay=0.01, clip=1.0)
    groups = parameter_groups(model.train().named_parameters(), optim, layers=model.train())
    batches = ClipBatches(corpus, ClipSettings(seconds=1.28, crop="random"), batch=batch, seed=0)
    losses: list[float] = []
    fit(
        model,  # type: ignore[arg-type]
        training_batches(batches, start=0, stop=steps),
        adamw(groups, optim),
        training,
        optim,
        log=lambda step, numbers: losses.append(numbers["loss"]),
    )
    return losses


@needs_data
def test_thirty_steps_on_real_audio_lower_the_loss(data: Path) -> None:
    losses = train(small(frames=128), open_corpus(data / "esc10"), steps=30, batch=4)
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 0.4


# ---- later iterations, and labels on disk ----


def tokenizer(codes: int = 24) -> Tokenizer:
    """A tokenizer of random weights, with a codebook of random codes."""
    torch.manual_seed(3)
    book = Codebook(codes, 8)
    book.initialize(torch.nn.functional.normalize(torch.randn(200, 8), dim=1))
    return Tokenizer(BEATsModel(SMALL), projection(SMALL, 8), book, FEATURES).frozen()


def as_a_run(made: Tokenizer, out: Path) -> str:
    """The folder that a run would leave of a tokenizer."""
    folder = out / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    save(made.encoder, made.features, folder)
    save_file(
        {n.replace("encoder.", "student.", 1): x for n, x in made.state_dict().items()},
        folder / "objective.safetensors",
    )
    return str(out)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Seven clips of noise of different lengths, all up to 1.9 s."""
    noise = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(7):
        samples = 0.1 * noise.uniform(-1, 1, 6_000 + 4_000 * number)
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
    return open_corpus(folder)


def heard_clips(corpus: Corpus, seconds: float = 1.28) -> Batch:
    (batch,) = ordered_batches(corpus, ClipSettings(seconds=seconds), batch=7)
    return batch


@torch.no_grad()
def test_stored_labels_are_those_that_the_tokenizer_gives_while_training(
    corpus: Corpus, tmp_path: Path
) -> None:
    folder = as_a_run(tokenizer(), tmp_path / "run")
    done = tokenize(corpus, load_tokenizer(folder), tmp_path / "labels", seconds=1.28, batch=3)
    assert (done.done, done.skipped, done.failed) == (7, 0, [])
    batch = heard_clips(corpus)
    stored = small(frames=128, labels=str(tmp_path / "labels")).eval()
    direct = small(frames=128, tokenizer=folder).eval()
    spectrograms = batch_log_mel(FEATURES, batch, 128)
    assert stored.labels(batch, spectrograms).unique().numel() > 8
    assert torch.equal(stored.labels(batch, spectrograms), direct.labels(batch, spectrograms))
    losses = [model(batch, torch.Generator())["loss"] for model in (stored, direct)]
    assert torch.equal(*losses)
    assert direct.count == stored.count == 24
    assert not any(name.startswith("tokenizer.") for name in stored.state_dict())


def test_a_frozen_tokenizer_stays_as_it_is(corpus: Corpus, tmp_path: Path) -> None:
    model = small(frames=128, tokenizer=as_a_run(tokenizer(), tmp_path / "run"))
    before = {name: x.clone() for name, x in model.tokenizer.state_dict().items()}  # type: ignore[union-attr]
    train(model, corpus, steps=2, batch=2)
    assert not model.tokenizer.training  # type: ignore[union-attr]
    after = model.tokenizer.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(x, before[name]) for name, x in after.items())


def test_a_tokenizer_uses_its_own_statistics(tmp_path: Path) -> None:
    made = tokenizer()
    made.features = BEATsFeatureExtractor(mean=10.0, std=4.0)
    model, batch = small(tokenizer=as_a_run(made, tmp_path / "run")).eval(), noise_batch([1])
    expected = made(batch_log_mel(made.features, batch, 256).values)
    spectrograms = batch_log_mel(FEATURES, batch, 256)
    assert torch.equal(model.labels(batch, spectrograms), expected)
    assert not torch.equal(made(spectrograms.values), expected)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_job_that_was_killed_goes_on_after_its_last_part(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(out: str) -> Tokenized:
        return tokenize(corpus, tokenizer(), tmp_path / out, seconds=1.28, batch=1, part=3)

    assert work("whole").done == 7

    made = itertools.count(1)

    def until_killed(*meta: Any) -> Any:
        if next(made) == 5:
            raise KeyboardInterrupt
        return labels_of(*meta)

    labels_of = labels._labels
    monkeypatch.setattr(labels, "_labels", until_killed)
    with pytest.raises(KeyboardInterrupt):
        work("begun")
    monkeypatch.undo()
    assert len(contents(tmp_path / "begun")) == 3
    again = work("begun")
    assert (again.done, again.skipped) == (4, 3)
    assert contents(tmp_path / "begun") == contents(tmp_path / "whole")
    assert (work("begun").done, work("begun").skipped) == (0, 7)


def test_a_clip_that_cannot_be_read_is_named_and_tried_again(
    corpus: Corpus, tmp_path: Path
) -> None:
    path = Path(corpus.clips[2].path)
    content = path.read_bytes()
    path.write_bytes(b"no sound")
    out = tmp_path / "labels"
    first = tokenize(corpus, tokenizer(), out, seconds=1.28)
    assert first.done == 6 and len(first.failed) == 1 and path.name in first.failed[0]
    batch = heard_clips(Corpus("others", corpus.clips[:2]))
    assert (StoredLabels(out).lookup(batch, (4, 8)) >= -1).all()
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"has no labels of .*{path.stem}"):
        StoredLabels(out).lookup(heard_clips(corpus), (8, 8))
    second = tokenize(corpus, tokenizer(), out, seconds=1.28)
    assert (second.done, second.skipped, second.failed) == (1, 6, [])
    assert len(StoredLabels(out)) == 7


def test_labels_of_two_tokenizers_never_mix(corpus: Corpus, tmp_path: Path) -> None:
    tokenize(corpus, tokenizer(), tmp_path / "labels", seconds=1.28)
    with pytest.raises(DataError, match="holds labels with another tokenizer, codes"):
        tokenize(corpus, tokenizer(codes=25), tmp_path / "labels", seconds=1.28)
    with pytest.raises(DataError, match="holds labels with another seconds"):
        tokenize(corpus, tokenizer(), tmp_path / "labels", seconds=5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="holds something else"):
        tokenize(corpus, tokenizer(), tmp_path / "other", seconds=5)


def test_labels_of_another_length_damaged_ones_and_none_are_refused(
    corpus: Corpus, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    with pytest.raises(DataError, match="holds no labels; expected a folder of `eat tokenize`"):
        StoredLabels(tmp_path)
    tokenize(corpus, tokenizer(), out, seconds=1.28)
    with pytest.raises(SettingError, match=r"first 1.28 s of clips; expected clips.seconds=1.28"):
        small(frames=256, labels=str(out))
    np.save(out / "part-00000.npy", np.zeros(5, np.int16))
    with pytest.raises(DataError, match="part-00000.json: describes no labels"):
        StoredLabels(out)
    (out / "labels.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="does not say which labels these are"):
        StoredLabels(out)


def test_stored_labels_want_clips_from_their_beginning() -> None:
    with pytest.raises(ValueError, match="clips.crop=random: stored labels are of the beginnings"):
        BEATsRun(labels="here", clips=ClipSettings(crop="random"))
    with pytest.raises(ValueError, match="clips.silence=trim: .* expected clips.silence=keep"):
        BEATsRun(labels="here", clips=ClipSettings(silence="trim"))
    with pytest.raises(ValueError, match="clips.short=tile: .* expected clips.short=pad"):
        BEATsRun(labels="here", clips=ClipSettings(short="tile"))
    with pytest.raises(ValueError, match="released_padding=true: BEATs' pre-training was not"):
        BEATsRun(clips=ClipSettings(released_padding=True))


def test_the_command_writes_labels_and_names_what_it_cannot_read(
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = as_a_run(tokenizer(), tmp_path / "run"), tmp_path / "labels"
    spoilt = Path(corpus.clips[0].path)
    spoilt.write_bytes(b"no sound")

    def eat(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["eat", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    arguments = ["tokenize", str(spoilt.parent), "--tokenizer", folder, "--device", "cpu"]
    code, output, err = eat(*arguments, "-o", str(out), "--seconds", "1.28")
    assert code == 2 and f"{out}: labels of 6 clips, 0 were there already" in output
    assert f"skipped: {spoilt}" in err and "1 of the files could not be read" in err
    assert len(StoredLabels(out)) == 6
    written = np.load(out / "part-00000.npy")
    counts = np.unique(written, return_counts=True)[1] / written.size
    usage = label_usage(out)
    assert usage.used == len(counts) and usage.majority == pytest.approx(counts.max())
    assert usage.perplexity == pytest.approx(np.exp(-(counts * np.log(counts)).sum()))
    assert f"{usage.used} of {usage.codes} codes are used" in output
    code, _, err = eat(*arguments[:3], str(tmp_path / "nothing"), "-o", str(out))
    assert code == 2 and "holds no tokenizer" in err


# ---- recipes and fine-tuning ----


def test_the_recipes_have_the_published_schedules() -> None:
    for name, per_step, rate in (
        ("beats_iter1", 560, 5e-4),
        ("beats_iter2", 560, 5e-4),
        ("beats_tokenizer_iter2", 144, 5e-5),
    ):
        run, arguments = recipe.load(schema, name), recipe.about(name).command.split()
        assert run.batch * int(arguments[arguments.index("--nproc-per-node") + 1]) == per_step
        assert (run.steps, run.optim.lr, run.optim.schedule) == (400_000, rate, "linear")
        assert (run.optim.betas, run.optim.weight_decay) == ((0.9, 0.98), 0.01)
        assert run.optim.warmup >= 0.08 * run.steps  # shorter ones are said to collapse
        config = run.config()
        assert isinstance(config, BEATsConfig)
        assert config.to_dict() == BEATsConfig().to_dict()  # the released one


def test_fine_tuning_hands_the_gradients_decay_to_beats_alone() -> None:
    labeled = Corpus("any", [], label_names=("a", "b"))
    meta = finetune.FinetuneRun(gradient_decay=0.3, drop_path=0.1)
    config = finetune.classifier_config(BEATsConfig(), meta, labeled)
    assert isinstance(config, BEATsConfig)
    assert (config.layer_wise_gradient_decay_ratio, config.encoder_layerdrop) == (0.3, 0.1)
    with pytest.raises(SettingError, match="gradient_decay=0.3: an encoder of eat has no"):
        finetune.classifier_config(EATConfig(), meta, labeled)
