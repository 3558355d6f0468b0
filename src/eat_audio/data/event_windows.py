"""Cut annotated recordings into labeled windows, as clips to fine-tune on."""

from pathlib import Path

import numpy as np

from eat_audio.audio import audio_seconds
from eat_audio.data.annotations import Annotations
from eat_audio.data.columns import existing_path
from eat_audio.data.corpus import Clip, Corpus, with_unique_ids
from eat_audio.data.labels import sorted_labels
from eat_audio.errors import DataError


def event_windows(
    annotations: Annotations, folder: Path, *, seconds: float, hop: float | None = None
) -> Corpus:
    """Return windows of the annotated recordings as clips, each with the labels of its events.

    A window has the label of an event if they share at least half of the shorter of the two.
    Windows that share less with an event are left out, and a note counts them; those that no event
    touches have no label. A last window ends with its recording.

    Args:
        annotations: The events.
        folder: What the paths of recordings count from.
        seconds: Length of a window; a shorter recording is one window.
        hop: Seconds from window to window; by default their length.

    Raises:
        DataError: A recording is missing.
        AudioError: A recording cannot be read.
    """
    names = sorted_labels(event.label.strip() for event in annotations.events)
    clips, unclear = [], 0
    for name, length in annotations.recordings.items():
        path = folder / existing_path(folder, name)
        if not path.is_file():
            raise DataError(f"{path}: an annotated recording is missing")
        length = audio_seconds(path) if length is None else length
        last = max(length - seconds, 0.0)
        starts = np.append(np.arange(0, last - 1e-3, hop or seconds), round(last, 3))
        labels, touched = np.zeros((len(starts), len(names)), bool), np.zeros(len(starts), bool)
        for event in (event for event in annotations.events if event.file == name):
            begin, end = np.maximum(starts, event.onset), np.minimum(starts + seconds, event.offset)
            enough = 0.5 * min(event.offset - event.onset, seconds) - 1e-9
            labels[:, names.index(event.label.strip())] |= (end - begin) >= max(enough, 0.0)
            touched |= end > begin
        window = min(seconds, length)
        for start, row, in_event in zip(starts.tolist(), labels, touched, strict=True):
            if row.any() or not in_event:
                numbers = tuple(np.flatnonzero(row).tolist())
                clips.append(Clip(name, str(path), numbers, "train", start, window))
            else:
                unclear += 1
    note = f"{unclear} windows that share less than half with an event are left out"
    notes = (note,) if unclear else ()
    return Corpus(folder.name, with_unique_ids(clips), tuple(names), True, notes=notes)
