"""Does pre-training help? audioset_mini, several labels a clip, with and without it.

    python -m benchmarks.audioset_mini    (`make audioset_mini`)

For every seed: pre-train `eat_audioset_mini` on the 200 unlabeled clips of `train.tsv`, fine-tune
on them in the form of AudioSet-20K, test on the 100 clips of `eval.tsv`; and the same fine-tuning
from random weights. No source recording of `eval.tsv` is trained on: those of `train.tsv` are
others, and nothing else is used. The score is the mean over the 13 of 527 classes that have a
positive in `eval.tsv`; chance is 22.9 %.
"""

from benchmarks.pairs import Benchmark, main

AUDIOSET_MINI = Benchmark(
    name="audioset_mini",
    title="audioset_mini, 100 clips of eval.tsv, 13 classes with positives",
    corpus="audioset_mini",
    pretraining="eat_audioset_mini",
    finetuning="eat_audioset_mini_finetune",
    scratch="eat_audioset_mini_scratch",
    references={
        "chance": 22.9,
        "logistic regression on pooled log-mel": 62.0,
        "small CNN from scratch": 83.0,
    },
)

if __name__ == "__main__":
    main(AUDIOSET_MINI, __doc__ or "")
