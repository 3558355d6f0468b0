"""Labels of a tokenizer, stored once: the same as while training, resumed, and never mixed."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from beats_parts import small, train
from safetensors.torch import save_file
from small_batches import FEATURES, SMALL, noise_batch

from eat_audio import cli
from eat_audio.data.corpus import Corpus
from eat_audio.data.datasets import open_corpus
from eat_audio.data.loader import (
    Batch,
    ClipSettings,
    ordered_batches,
)
from eat_audio.errors import DataError, SettingError
from eat_audio.models import save
from eat_audio.models.beats.modeling import BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor
from eat_audio.pretraining.beats import stored_labels as labels
from eat_audio.pretraining.beats.objective import (
    BEATsRun,
)
from eat_audio.pretraining.beats.quantizer import Codebook
from eat_audio.pretraining.beats.stored_labels import StoredLabels, Tokenized, label_usage, tokenize
from eat_audio.pretraining.beats.tokenizer import (
    Tokenizer,
    batch_log_mel,
    load_tokenizer,
    projection,
)


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
    with pytest.raises(ValueError, match=r"clips.roll=True: stored labels are of the beginnings"):
        BEATsRun.model_validate({"labels": "here", "clips": {"crop": "start", "roll": True}})
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
