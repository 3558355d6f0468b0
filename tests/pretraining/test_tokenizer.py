"""The tokenizer gives the released numbers, learns from its teacher, and depends on no batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_batches import FEATURES, SMALL, noise_batch
from torch import Tensor

from conftest import golden_sets, sidecar, tensors
from eat_audio.errors import CheckpointError, SettingError
from eat_audio.models import save
from eat_audio.models.beats import checkpoint as beats
from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification, BEATsModel
from eat_audio.models.common.feature_extraction import BEATsFeatureExtractor
from eat_audio.pretraining.beats.quantizer import Codebook, distances, kmeans
from eat_audio.pretraining.beats.tokenizer import (
    Teacher,
    Tokenizer,
    TokenizerMethod,
    TokenizerPretraining,
    batch_log_mel,
    load_teacher,
    load_tokenizer,
)

QUANTIZERS = [
    (path, case) for path in golden_sets("quantizer*.json") for case in sidecar(path)["cases"]
]
TOKENIZERS = golden_sets("tokenizer*.json")
each_case = pytest.mark.parametrize(
    ("path", "case"), QUANTIZERS, ids=[f"{path.stem}-{case}" for path, case in QUANTIZERS]
)
each_tokenizer = pytest.mark.parametrize("path", TOKENIZERS, ids=lambda path: path.stem)


def close(model: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(model, expected, rtol=0, atol=atol)


# ---- the released numbers ----


def recorded_codebook(path: Path, case: str) -> Codebook:
    """A codebook as it was before the first recorded step."""
    meta, record = sidecar(path)["cases"][case], tensors(path)
    book = Codebook(meta["n_embed"], meta["embedding_dim"], decay=meta["decay"]).train()
    codes = record[f"{case}.weight0"]
    if meta["kmeans_init"]:
        rows = F.normalize(record[f"{case}.s0.z"].flatten(0, 1), dim=1)
        codes = kmeans(rows, record[f"{case}.kmeans_init_indices"])[0]
    book.codes.copy_(codes)
    book.started.fill_(1)
    book.usage.copy_(record[f"{case}.cluster_size0"])
    return book


@each_case
def test_a_codebook_follows_as_released(path: Path, case: str) -> None:
    meta, record, book = sidecar(path)["cases"][case], tensors(path), recorded_codebook(path, case)
    for step in range(meta["steps"]):
        step_record = {name: record[f"{case}.s{step}.{name}"] for name in ("z", "R", "zq", "ind")}
        z = step_record["z"].clone().requires_grad_()
        before = book.codes.clone()
        result = book(z)
        loss = meta["beta"] * result.error.mean() / meta["embedding_dim"]
        ((result.vectors * step_record["R"]).sum() + loss).backward()
        assert torch.equal(book.codes, before)  # until the step is done
        book.update()
        assert torch.equal(result.labels.flatten(), step_record["ind"])
        close(result.vectors, step_record["zq"])
        close(loss, record[f"{case}.s{step}.loss"])
        assert z.grad is not None
        close(z.grad, record[f"{case}.s{step}.grad_z"], atol=2e-5)
        close(book.codes, record[f"{case}.s{step}.weight_after"])
        close(book.usage, record[f"{case}.s{step}.cluster_size_after"], atol=1e-5)
        dead = record[f"{case}.s{step}.dead"].bool()
        close(book.codes[dead], before[dead])


@each_case
def test_evaluation_gives_the_recorded_labels_and_changes_nothing(path: Path, case: str) -> None:
    meta, record, book = sidecar(path)["cases"][case], tensors(path), recorded_codebook(path, case)
    book.codes.copy_(record[f"{case}.s{meta['steps'] - 1}.weight_after"])
    book.eval()
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    result = book(record[f"{case}.eval.z"])
    book.update()
    assert torch.equal(result.labels.flatten(), record[f"{case}.eval.ind"])
    close(result.vectors, record[f"{case}.eval.zq"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in book.state_dict().items())


@pytest.mark.parametrize(
    ("path", "case"), [(path, case) for path, case in QUANTIZERS if case.startswith("kmeans")]
)
def test_k_means_ends_as_released(path: Path, case: str) -> None:
    record = tensors(path)
    rows = F.normalize(record[f"{case}.s0.z"].flatten(0, 1), dim=1)
    means, hits = kmeans(rows, record[f"{case}.kmeans_init_indices"])
    close(means, record[f"{case}.kmeans_means"])
    assert torch.equal(hits.long(), record[f"{case}.kmeans_bins"])


def released(path: Path, folder: Path) -> Path:
    """A recorded tokenizer in a file as its authors would release it."""
    state = {n.removeprefix("sd."): x for n, x in tensors(path).items() if n.startswith("sd.")}
    file = folder / "tokenizer.pt"
    torch.save({"cfg": sidecar(path)["config"], "model": state}, file)
    return file


@each_tokenizer
def test_a_released_tokenizer_gives_the_recorded_labels(path: Path, tmp_path: Path) -> None:
    record, tokenizer = tensors(path), load_tokenizer(released(path, tmp_path))
    wave = record["wave"]
    features = BEATsFeatureExtractor(released_padding=True)
    lengths = torch.full((len(wave),), wave.shape[1])
    spectrogram = features.log_mel(wave, lengths).values
    frames = features.log_mel(wave, lengths - record["pad"].sum(dim=1)).frames
    columns = spectrogram.shape[1] // 16
    valid = torch.arange(columns * 8) < (frames // 2)[:, None]
    for case, mask in (("nomask", None), ("mask", valid)):
        inside = tokenizer.encoder.model
        z = tokenizer.projection(inside(inside.embed(spectrogram), mask)[0])
        counts = torch.ones_like(valid) if mask is None else mask
        close(z[counts], record[f"{case}.proj"][counts], atol=1e-4)
        close(F.normalize(z, dim=-1)[counts], record[f"{case}.l2"][counts], atol=1e-4)
        far = distances(F.normalize(z, dim=-1), tokenizer.codebook.codes)
        close(far[counts], record[f"{case}.dist"].view_as(far)[counts], atol=2e-4)
        labels = tokenizer(spectrogram, mask)
        assert labels.shape == (len(wave), columns, 8)
        expected = record[f"{case}.labels"].view(len(wave), -1)
        clear = record[f"{case}.margin"].view(len(wave), -1) > 1e-4
        assert torch.equal(labels.flatten(1)[clear & counts], expected[clear & counts])
        assert (labels.flatten(1)[~counts] == -1).all() and clear.float().mean() > 0.99
    assert sidecar(path)["config"]["quant_n"] == tokenizer.count


def test_the_released_tokenizer_has_as_many_parameters_as_ours() -> None:
    meta = json.loads(golden_sets("base_init_stats*.json")[0].read_text(encoding="utf-8"))
    with torch.device("meta"):
        config = BEATsConfig()
        model = TokenizerPretraining(
            config,
            TokenizerMethod(),
            FEATURES,
            frames=992,
            teacher=Teacher(BEATsModel(config), FEATURES),
        )
    kept = [*model.student.parameters(), *model.projection.parameters()]
    assert sum(p.numel() for p in kept) == meta["n_params_tokenizer_trainable"]
    assert not list(model.codebook.parameters())


# ---- codebooks ----


def test_micro_batches_move_the_codes_as_one_batch_does() -> None:
    vectors = torch.randn(4, 20, 8)
    books = []
    for parts in ([vectors], vectors.split(2)):
        book = Codebook(6, 8).train()
        book.initialize(F.normalize(vectors[0], dim=1), torch.Generator().manual_seed(0))
        initial = book.codes.clone()
        for part in parts:
            book(part)
        book.update()
        assert not torch.equal(book.codes, initial)
        books.append(book.state_dict())
    for name, tensor in books[0].items():
        close(tensor.float(), books[1][name].float())


def test_padding_and_what_is_not_finite_move_no_code() -> None:
    vectors, valid = torch.randn(2, 20, 8), torch.rand(2, 20) < 0.5
    spoilt = vectors.clone()
    spoilt[~valid] = torch.nan
    spoilt[0, 0] = torch.inf
    valid[0, 0] = True
    alone, beside = Codebook(6, 8).train(), Codebook(6, 8).train()
    for book in (alone, beside):
        book.initialize(F.normalize(vectors[0], dim=1), torch.Generator().manual_seed(0))
    counts = valid.clone()
    counts[0, 0] = False
    alone(vectors[counts][None])
    beside(spoilt, valid)
    initial = alone.codes.clone()
    for book in (alone, beside):
        book.update()
    assert not torch.equal(alone.codes, initial)
    close(alone.codes, beside.codes)


def test_the_seed_decides_how_a_codebook_begins() -> None:
    rows = F.normalize(torch.randn(50, 8), dim=1)

    def initial(seed: int) -> Tensor:
        book = Codebook(6, 8)
        book.initialize(rows, torch.Generator().manual_seed(seed))
        return book.codes

    assert torch.equal(initial(1), initial(1)) and not torch.equal(initial(1), initial(2))
    close(initial(1).norm(dim=1), torch.ones(6))


# ---- the objective ----


def objective(teacher: Any = None, **changes: Any) -> TokenizerPretraining:
    torch.manual_seed(0)
    method = TokenizerMethod(codes=16, code_width=8, estimator_layers=1, **changes)
    target = changes.get("target", "patches")
    teacher = Teacher(teacher or BEATsModel(SMALL), FEATURES, target)
    return TokenizerPretraining(SMALL, method, FEATURES, frames=256, teacher=teacher).train()


def started() -> TokenizerPretraining:
    model = objective()
    model(noise_batch([1, 2]), torch.Generator().manual_seed(0))
    model.after_step(1)
    return model.eval()


def test_the_loss_of_a_batch_is_the_mean_of_its_clips_losses() -> None:
    model, batch = started(), noise_batch([1, 2, 3])
    batch.lengths = torch.tensor([41_600, 16_000, 4_000])
    alone = []
    for row in range(3):
        one = noise_batch([row + 1])
        one.lengths = batch.lengths[row : row + 1]
        alone.append(model(one, torch.Generator()))
    for _ in range(2):
        together = model(batch, torch.Generator())
        for name in ("loss", "distance", "commitment"):
            close(together[name], torch.stack([meta[name] for meta in alone]).mean(), atol=1e-5)
        batch.waveforms[1, 16_000:] = 12_345
    assert len({round(meta["loss"].item(), 4) for meta in alone}) == 3


@torch.no_grad()
def test_labels_depend_neither_on_the_batch_nor_on_padding() -> None:
    tokenizer, batch = started().tokenizer(), noise_batch([1, 2])
    batch.lengths = torch.tensor([41_600, 16_000])
    spectrograms = batch_log_mel(FEATURES, batch, 256)
    assert spectrograms.patch_mask(8) is not None
    labels = tokenizer(spectrograms.values, spectrograms.patch_mask(8))
    assert labels.shape == (2, 16, 8) and labels.unique().numel() > 4
    assert (labels[1, 6:] == -1).all() and (labels[1, :6] >= 0).all()
    batch = noise_batch([2])
    batch.lengths = torch.tensor([16_000])
    alone = batch_log_mel(FEATURES, batch, 256)
    assert alone.patch_mask(8) is None
    assert torch.equal(tokenizer(alone.values)[0], labels[1, :6])


def test_every_parameter_learns_but_the_teachers() -> None:
    model = objective()
    model(noise_batch([1, 2]), torch.Generator().manual_seed(0))["loss"].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle and all(name.startswith("teacher.") for name in idle)
    assert not model.teacher.training and model.student.training


def test_the_commitment_is_a_mean_or_a_sum_over_elements() -> None:
    result = {}
    for how in ("mean", "sum"):
        model = objective(commit_reduction=how, commit_beta=3.0)
        result[how] = model(noise_batch([1, 2]), torch.Generator().manual_seed(0))
        parts = result[how]["distance"] + 3 * result[how]["commitment"]
        close(result[how]["loss"], parts)
    close(result["sum"]["commitment"], 8 * result["mean"]["commitment"])


def test_a_few_steps_bring_the_estimator_nearer_to_the_teacher() -> None:
    model = objective()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    distance = []
    for step in range(12):
        losses = model(noise_batch([1, 2]), torch.Generator().manual_seed(step))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(step + 1)
        distance.append(losses["distance"].item())
    assert distance[-1] < 0.7 * distance[0]


def test_a_fine_tuned_teacher_gives_its_logits_of_clips(tmp_path: Path) -> None:
    config = SMALL.for_labels(list("abcde"), several=True, drop_path=0.0, pooling="mean")
    torch.manual_seed(1)
    save(BEATsForAudioClassification(config), FEATURES, tmp_path)
    meta = TokenizerMethod(teacher=str(tmp_path), target="logits")
    teacher = load_teacher(meta)
    model = objective(teacher.model, target="logits")
    batch = batch_log_mel(FEATURES, noise_batch([1, 2]), 256)
    assert teacher(batch).shape == (2, 5)
    losses = model.losses(batch, teacher(batch), torch.Generator().manual_seed(0))
    assert 0 < losses["distance"] < 2
    features = load_teacher(TokenizerMethod(teacher=str(tmp_path)))
    assert features(batch).shape == (2, batch.values.shape[1] // 2, 32)


def test_a_teacher_with_other_statistics_uses_them() -> None:
    model, batch = objective(), noise_batch([1])
    spectrograms: list[Tensor] = []
    model.teacher.forward = lambda batch: (
        spectrograms.append(batch.values) or torch.ones(1, 128, 32)
    )  # type: ignore[method-assign]
    model(batch, torch.Generator().manual_seed(0))
    model.teacher.features = BEATsFeatureExtractor(mean=10.0, std=4.0)
    model(batch, torch.Generator().manual_seed(0))
    close(
        spectrograms[1],
        (spectrograms[0] * 2 * FEATURES.std + FEATURES.mean - 10) / 8,
        atol=1e-4,
    )


# ---- found again ----


def saved(model: TokenizerPretraining, out: Path) -> Path:
    """What a run leaves of an objective."""
    folder = out / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    save(model.student, FEATURES, folder)
    save_file(model.state_dict(), folder / "objective.safetensors")
    return out


@torch.no_grad()
def test_the_tokenizer_of_a_run_is_the_one_it_has_learned(tmp_path: Path) -> None:
    model = started()
    tokenizer = load_tokenizer(saved(model, tmp_path / "run"))
    values = batch_log_mel(FEATURES, noise_batch([5]), 256).values
    expected = model.tokenizer()(values)
    assert torch.equal(tokenizer(values), expected)
    assert not any(p.requires_grad for p in tokenizer.parameters()) and not tokenizer.training
    inside = tmp_path / "run" / "checkpoints" / "step-00000001"
    assert torch.equal(load_tokenizer(inside)(values), expected)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    save(BEATsModel(SMALL), FEATURES, tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="holds no tokenizer; expected the folder of a run"):
        load_tokenizer(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="its codebook is empty"):
        load_tokenizer(saved(objective(), tmp_path / "untrained"))
    torch.save(beats.to_released(BEATsModel(SMALL), FEATURES), tmp_path / "encoder.pt")
    with pytest.raises(CheckpointError, match=r"encoder\.pt: holds no tokenizer"):
        load_tokenizer(tmp_path / "encoder.pt")
    torch.save({"model": {"extra_tokens": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="expected a released BEATs one"):
        load_tokenizer(tmp_path / "other.pt")
    with pytest.raises(SettingError, match="teacher is not set"):
        load_teacher(TokenizerMethod())


def test_a_codebook_of_another_width_is_refused(tmp_path: Path) -> None:
    model = started()
    model.codebook = Codebook(16, 9)
    with pytest.raises(CheckpointError, match="holds no such tokenizer"):
        load_tokenizer(saved(model, tmp_path / "run"))


def test_a_tokenizer_is_whole_without_its_estimator() -> None:
    model = started()
    kept = Tokenizer(model.student, model.projection, model.codebook, FEATURES).state_dict()
    assert not any(name.startswith(("estimator", "teacher")) for name in kept)
