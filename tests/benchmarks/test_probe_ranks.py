"""Scores of probes are kept as they are measured, and ranked beside fine-tuning."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.probe_ranks import FINETUNED, MARKS, MEASURES, RECIPES, TASKS, Results

from benchmarks import probe_ranks
from eat_audio import pipeline
from eat_audio.errors import SettingError
from eat_audio.evaluation.tokens import StoredTokens

ESC10 = TASKS[0]


def measured(file: Path) -> Results:
    """Fine-tuning ranks the methods in their order, one probe alike, one the other way round."""
    results = Results.read(file, {"minutes": 1})
    for number, method in enumerate(RECIPES):
        scores = {FINETUNED: number, "linear, mean": number**2, "gated": -number}
        for measure, score in scores.items():
            results.add((ESC10.name, "fold-1", method, measure), 0.5 + score / 100, 1.0)
    return results


def test_the_rank_correlation_is_over_methods_whose_parts_are_complete(tmp_path: Path) -> None:
    results = measured(tmp_path / "ranks.json")
    ranks = {name: probe_ranks.rank_correlation(results, ESC10, name) for name in MEASURES}
    assert ranks["linear, mean"] == pytest.approx(1) and ranks["gated"] == pytest.approx(-1)
    assert ranks["attentive"] is None
    del results.cells[ESC10.name, "fold-1", "bat", FINETUNED]
    assert probe_ranks.rank_correlation(results, ESC10, "gated") is None


def test_stored_scores_are_read_again_and_other_settings_refused(tmp_path: Path) -> None:
    file = tmp_path / "ranks.json"
    results = measured(file)
    assert Results.read(file, {"minutes": 1}).cells == results.cells
    with pytest.raises(SettingError, match="was made with other settings"):
        Results.read(file, {"minutes": 2})


def test_the_page_says_what_is_not_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}before it\n{MARKS[1]}after\n", encoding="utf-8")
    probe_ranks.write_page(measured(tmp_path / "ranks.json"), page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "before it" not in text
    assert "| **Spearman** | 1.00 | not measured |" in text and "EAT: `eat_esc10`, not run" in text
    assert "Measured: fold-1, of 5 parts." in text and "Measured: nothing, of 2 parts." in text


def test_vectors_are_pooled_from_the_stored_tokens() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 8, 4)).astype(np.float16)
    labels = np.eye(3, dtype=np.float32)
    counts = np.full(3, 8)
    tokens = StoredTokens(["a", "b", "c"], labels, [], (1, 2), 4, False, counts, values.ravel())
    vectors = probe_ranks.pooled(tokens, 4)
    assert {name: x.shape[1] for name, x in vectors.items()} == dict(
        zip(probe_ranks.POOLED, (4, 8, 24, 4), strict=True)
    )
    last = values[:, 1].astype(np.float32)
    np.testing.assert_allclose(vectors["linear, mean"], last.mean(axis=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", RECIPES)
def test_every_method_is_shortened_alike_and_fine_tuned_by_one_recipe(method: str) -> None:
    stages = pipeline.stages_of(RECIPES[method], (*probe_ranks.CHANGES, "data=pool"))
    out, runs = Path("out"), []
    for stage in stages:
        usual = stage.settings(out)
        runs.append(probe_ranks.shortened(stage, usual, 50, out))
        assert runs[-1].steps == 50 and runs[-1].optim.warmup < 50
    shape = runs[-1].encoder.model_dump(mode="json")
    for task in TASKS:
        settings = probe_ranks.finetuning(
            method, task, task.parts[0], shape=shape, steps=20, data=Path("data")
        )
        assert settings.steps == 20 and settings.test_splits == task.parts[0].test
        assert settings.encoder.embed_dim == runs[-1].encoder.embed_dim == 128
