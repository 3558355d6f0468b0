"""What small models reach on small corpora, beside systems that need no pre-training.

    datasets    recordings, labels, and which clips train and test
    features    vectors of clips for the classifiers: log-mel statistics, encoders, YAMNet
    cnn         a small convolutional network from scratch
    systems     what is compared: one score for each part of a dataset and seed
    leaks       recordings that a pre-training shares with an evaluation
    results     one JSON with every cell, and the tables and the figure made from it

Settings were chosen on ESC-10's folds 2 to 4 and within UrbanSound8K's fold 1 alone; but those of
the pre-training were compared on all five folds of ESC-10 (`benchmarks/lab_notes.md`).
"""
