"""Clips and scores -> what is shown of them on a page: masks, nearest neighbours, classes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eat_audio.audio import fbank as logmel
from eat_audio.data.corpus import Clip, Corpus
from eat_audio.data.loader import ClipReader, ClipSettings, ordered_batches, whole_patches
from eat_audio.errors import AudioError, EatError
from eat_audio.evaluation.evaluate import Evaluation
from eat_audio.evaluation.metrics import nearest, unit_vectors
from eat_audio.evaluation.probe import cls_and_mean
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioModel
from eat_audio.pretraining.method import PretrainRun
from eat_audio.report.drawings import bars, confusion, percent, text
from eat_audio.report.pictures import Array, Example, thumbnail
from eat_audio.rng import clip_keys, hash_id

ASKED, ANSWERS = 6, 5
"""Clips whose nearest neighbours are shown, and how many of them."""
MOST_BARS = 60
"""Classes whose bars are shown at once."""
MOST_CLASSES = 40
"""A confusion matrix of more cannot be read."""


# ---- scores ----


def by_class(evaluation: Evaluation) -> str:
    """Every class with its score, best first, and what it was taken for."""
    metric = evaluation.metric
    known = [row for row in evaluation.classes if row["clips"]]
    known.sort(key=lambda row: (-row[metric], str(row["label"])))
    rows = [(str(row["label"]), float(row[metric]), f"{row['clips']:,} clips") for row in known]
    title = "Recall by class" if metric == "accuracy" else "Average precision by class"
    shown = bars(rows)
    if len(rows) > MOST_BARS:
        half = MOST_BARS // 4
        shown = (
            f"<p class=note>The {half} best</p>{bars(rows[:half])}"
            f"<p class=note>The {half} weakest</p>{bars(rows[-half:], color=1)}"
            f"<details><summary>All {len(rows)}</summary>{bars(rows)}</details>"
        )
    parts = [f'<div class="card"><h3>{title}</h3>{shown}</div>']
    if evaluation.confusion is not None and len(evaluation.classes) <= MOST_CLASSES:
        names = [str(row["label"]) for row in evaluation.classes]
        matrix = confusion(names, evaluation.confusion)
        parts.append(f'<div class="card"><h3>What was taken for what</h3>{matrix}</div>')
    return f'<div class="stack">{"".join(parts)}</div>'


# ---- masks ----


def masked_clips(
    corpus: Corpus, settings: PretrainRun, features: AudioFeatureExtractor
) -> Iterator[Example]:
    """Clips that can be read, each with a mask."""
    for clip, waveform in readable(corpus, settings.clips.seconds):
        yield example(clip, waveform, corpus, settings, features)


def readable(corpus: Corpus, seconds: float) -> Iterator[tuple[Clip, Tensor]]:
    """Clips with the beginning of their sound, int16 (samples,), in an order of their own."""
    reader = ClipReader()
    order = sorted(range(len(corpus)), key=lambda n: hash_id(f"shown {corpus.clips[n].id}"))
    for clip in (corpus.clips[number] for number in order):
        try:
            yield clip, reader.read(clip, seconds)
        except AudioError:
            continue  # it was counted when it was to be learnt


def example(
    clip: Clip,
    waveform: Tensor,
    corpus: Corpus,
    settings: PretrainRun,
    features: AudioFeatureExtractor,
) -> Example:
    """A clip and the first mask that pre-training draws for it."""
    frames = whole_patches(settings.clips.seconds)
    spectrograms = features.log_mel(waveform[None], torch.tensor([len(waveform)]), frames=frames)
    grid = frames // 16, logmel.N_MELS // 16
    keys = clip_keys(settings.seed, 0, torch.tensor([hash_id(clip.id)]), 1)
    masks = settings.sample_masks(keys, grid, spectrograms.columns)
    heard = min(int(spectrograms.frames[0]), frames)
    hidden = masks.hidden[0, 0].view(grid)[: -(-heard // 16)]
    return Example(label_of(clip, corpus), spectrograms.values[0, :heard].numpy(), hidden.numpy())


def label_of(clip: Clip, corpus: Corpus) -> str:
    """What is heard in a clip, in words; its id where nobody knows."""
    if not corpus.label_names:
        return clip.id
    return ", ".join(corpus.label_names[label] for label in clip.labels) or "without a label"


# ---- neighbours ----


def neighbours(
    encoder: AudioModel, features: AudioFeatureExtractor, corpus: Corpus, heard: ClipSettings
) -> list[str]:
    """A few labeled clips, each beside those that the encoder takes for most alike.

    Raises:
        EatError: Fewer than two clips can be read.
    """
    clips, spectrograms, vectors = _embedded(encoder, features, corpus, heard)
    near, cosines = nearest(vectors, vectors, len(clips))
    labels = [set(clip.labels) for clip in clips]
    answers = [
        [(m, c) for m, c in zip(*row, strict=True) if m != n][:ANSWERS]
        for n, row in enumerate(zip(near.tolist(), cosines.tolist(), strict=True))
    ]
    alike = sum(bool(labels[n] & labels[row[0][0]]) for n, row in enumerate(answers))
    rows = []
    for asked in _different(clips):
        cells = [_cell(clips[asked], corpus, spectrograms[asked], "asked", "")]
        for other, cosine in answers[asked]:
            same = bool(labels[other] & labels[asked])
            kind, note = ("same", f"✓ {cosine:.2f}") if same else ("other", f"{cosine:.2f}")
            cells.append(_cell(clips[other], corpus, spectrograms[other], kind, note))
        rows.append(f'<div class="near">{"".join(cells)}</div>')
    said = (
        f"{len(clips)} clips of {corpus.name}, compared by the cosine of the (standardised) mean "
        f"of their patches. For {percent(alike / len(clips))} of them the nearest one has a label "
        "in common. Left: the clip asked about; then its nearest, framed where a label agrees, "
        "dashed where none does."
    )
    return [f"<p>{text(said)}</p>", f'<div class="scroll card">{"".join(rows)}</div>']


@torch.no_grad()
def _embedded(
    encoder: AudioModel, features: AudioFeatureExtractor, corpus: Corpus, heard: ClipSettings
) -> tuple[list[Clip], list[Array], Array]:
    """The clips that can be read, their spectrograms (T, F), and their directions (clips, D)."""
    by_id = {clip.id: clip for clip in corpus.clips}
    clips: list[Clip] = []
    spectrograms, vectors = [], []
    for batch in ordered_batches(corpus, heard, batch=16):
        if not batch.ids:
            continue
        batch_mel = features.log_mel(batch.waveforms, batch.lengths)
        _, mean = cls_and_mean(encoder, batch_mel.values, batch_mel.frame_mask)
        clips += [by_id[name] for name in batch.ids]
        vectors.append(mean)
        spectrograms += [
            one[:length].numpy()
            for one, length in zip(batch_mel.values, batch_mel.frames.tolist(), strict=True)
        ]
    if len(clips) < 2:
        raise EatError(f"{corpus.name}: fewer than two of its clips can be read")
    return clips, spectrograms, unit_vectors(torch.cat(vectors).numpy())


def _different(clips: Sequence[Clip]) -> list[int]:
    """Clips to be asked about: of different labels, as long as there are some."""
    order = sorted(range(len(clips)), key=lambda n: hash_id(f"asked {clips[n].id}"))
    seen: set[int] = set()
    chosen = []
    for number in order:
        if clips[number].labels and not seen & set(clips[number].labels):
            seen |= set(clips[number].labels)
            chosen.append(number)
    return chosen[:ASKED]


def _cell(clip: Clip, corpus: Corpus, spectrogram: Array, kind: str, note: str) -> str:
    name, label = text(clip.id), text(label_of(clip, corpus))
    image = f'<img src="{thumbnail(spectrogram)}" alt="spectrogram of {name}" title="{name}">'
    return f'<div class="{kind}">{image}{label}<br><span class="note">{text(note)}</span></div>'
