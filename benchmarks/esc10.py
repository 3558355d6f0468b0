"""Does pre-training help? ESC-10, five folds, several seeds, with and without it.

    python -m benchmarks.esc10            (`make esc10`)

For every seed and fold: pre-train `eat_esc10` on the unlabeled clips of the other four folds,
fine-tune on them, test on the fold; and the same fine-tuning from random weights. No clip of a
fold is ever used, with or without its label, to train the model that is tested on it; nothing is
chosen by looking at a test score of the run.
"""

import json

from benchmarks.pairs import Benchmark, Part, main

FOLDS = ("1", "2", "3", "4", "5")


def part(fold: str) -> Part:
    """Test on one fold, learn from the others."""
    others = json.dumps([name for name in FOLDS if name != fold])
    return Part(f"fold-{fold}", [f"splits={others}"], [f'test_splits=["{fold}"]'])


ESC10 = Benchmark(
    name="esc10",
    title="ESC-10, 400 clips, each tested by a model that was not trained on its fold",
    corpus="esc10",
    pretraining="eat_esc10",
    finetuning="eat_esc10_finetune",
    scratch="eat_esc10_scratch",
    references={
        "logistic regression on pooled log-mel": 80.0,
        "tuned SVM on pooled log-mel": 87.0,
        "small CNN from scratch": 90.0,
        "people (Piczak 2015)": 95.7,
    },
    parts=[part(fold) for fold in FOLDS],
)

if __name__ == "__main__":
    main(ESC10, __doc__ or "")
