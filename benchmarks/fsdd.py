"""Does pre-training help? Spoken digits (FSDD), several seeds, with and without it.

    python -m benchmarks.fsdd             (`make fsdd`)

For every seed: pre-train `eat_fsdd` on the 1600 unlabeled training takes, fine-tune on them in the
form of Speech Commands, test on the 200 takes of the test list; and the same fine-tuning from
random weights. Settings were chosen on the validation list (benchmarks/lab_notes.md). Test speakers
are also training speakers, so this split is easy.
"""

from benchmarks.pairs import Benchmark, main

FSDD = Benchmark(
    name="fsdd",
    title="Free Spoken Digit Dataset in the layout of Speech Commands, 200 clips of its test list",
    corpus="fsdd",
    pretraining="eat_fsdd",
    finetuning="eat_fsdd_finetune",
    scratch="eat_fsdd_scratch",
    references={},
)

if __name__ == "__main__":
    main(FSDD, __doc__ or "")
