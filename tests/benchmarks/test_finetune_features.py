"""The benchmark of the settings of fine-tuning: the folds that it uses, and what it changes."""

from benchmarks.finetune_features import FOLDS, RECIPE, ROWS, SHORT, folds_of, lines, summary

from eat_audio import pipeline


def test_no_run_uses_the_folds_that_are_kept_for_the_end():
    assert sorted(FOLDS) == ["2", "3", "4"]
    for fold in FOLDS:
        settings = pipeline.finetuning(RECIPE, [*SHORT, *folds_of(fold)])
        assert settings.test_splits == (fold,)
        assert sorted((*settings.train_splits, fold)) == sorted(FOLDS)


def test_every_row_changes_one_setting_that_exists():
    recipe = pipeline.finetuning(RECIPE, SHORT).model_dump()
    for row, changes in ROWS.items():
        settings = pipeline.finetuning(RECIPE, [*SHORT, *changes]).model_dump()
        changed = [name for name in recipe if recipe[name] != settings[name]]
        assert len(changed) == (row not in ("the recipe", "scratch")), row


def test_rows_are_shown_as_means_over_the_seeds_that_are_there():
    runs = {"0": {"average": 0.8, "last": 0.7, "cpu_seconds": 1.0}, "2": {"average": 0.9}}
    result = {"frozen": {"student, cls": summary([0.5, 0.75])}, "finetuned": {"scratch": runs}}
    assert list(lines(result))[2:] == [
        "| student, cls | 62.5 | [50.0, 75.0] |",
        "| scratch, last | 70.0 | [70.0] |",
        "| scratch, average | 85.0 | [80.0, 90.0] |",
    ]
