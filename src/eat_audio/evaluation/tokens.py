"""Store the tokens of every clip of a corpus once, for heads that read them many times.

They lie in a temporary file without a name, as float16, and are gone with the object: tokens of all
layers of an encoder of base size take 9.5 MB per 10 s.

Letters: B clips, L layers, N patches, D width.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eat_audio.data.corpus import Corpus
from eat_audio.data.loader import ClipSettings
from eat_audio.errors import DataError
from eat_audio.evaluation.evaluate import spectrogram_batches
from eat_audio.evaluation.metrics import Array, Numbers
from eat_audio.models.common.feature_extraction import AudioFeatureExtractor
from eat_audio.models.common.modeling import AudioModel, EncoderOutput

RESERVE = 2**30
"""Bytes that the disk of temporary files keeps free."""

Tokens = tuple[Tensor, Tensor | None, Tensor | None]
"""Patches (B, L, N, D), CLS (B, L, D) if there is one, and which patches are valid (B, N)."""


@dataclass(frozen=True)
class StoredTokens:
    """The tokens of the clips that can be read."""

    ids: list[str]
    labels: Array
    """(clips, classes): 0 or 1."""
    unreadable: list[str]
    layers: tuple[int, ...]
    """Their numbers, see `layer_numbers`."""
    width: int
    has_cls: bool
    counts: NDArray[np.int64]
    """(clips,): the tokens of each in a layer, with the CLS token."""
    values: NDArray[np.float16]
    """Clip by clip (L, count, D)."""

    def batch(self, rows: Sequence[int] | Numbers, layers: Sequence[int]) -> Tokens:
        """Return the tokens of some clips in some of the layers, shorter clips padded."""
        places = [self.layers.index(number) for number in layers]
        size = len(self.layers) * self.width
        ends = np.cumsum(self.counts) * size
        clips = []
        for row in rows:
            end, count = int(ends[row]), int(self.counts[row])
            clip = self.values[end - count * size : end].reshape(-1, count, self.width)[places]
            clips.append(torch.from_numpy(clip.astype(np.float32)).transpose(0, 1))
        tokens = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True).transpose(1, 2)
        counts = torch.tensor([len(clip) for clip in clips])
        valid = torch.arange(tokens.shape[2]) < counts[:, None]
        first = int(self.has_cls)
        return (
            tokens[:, :, first:],
            tokens[:, :, 0] if self.has_cls else None,
            None if valid.all() else valid[:, first:],
        )


@torch.inference_mode()
def store_tokens(
    model: AudioModel,
    features: AudioFeatureExtractor,
    corpus: Corpus,
    clips: ClipSettings,
    *,
    layers: Sequence[int],
    batch: int = 32,
) -> StoredTokens:
    """Encode every clip of a corpus; keep the valid tokens of these layers.

    Raises:
        DataError: No clip can be read, the disk of temporary files is too small, or tokens exceed
            the range of float16.
    """
    ids: list[str] = []
    unreadable: list[str] = []
    labels, counts = [], []
    width, has_cls = 0, False
    with tempfile.TemporaryFile() as file:
        for group, spectrogram, mask in spectrogram_batches(
            model, features, corpus, clips, batch=batch, title="encode", unreadable=unreadable
        ):
            encoded = model.encode(spectrogram, mask)
            width, has_cls = encoded.patches.shape[-1], encoded.cls is not None
            kept = _valid_tokens(encoded, layers)
            _require_space(sum(clip.nbytes for clip in kept), done=len(ids), clips=len(corpus))
            for clip_id, clip in zip(group.ids, kept, strict=True):
                if not np.isfinite(clip).all():
                    raise DataError(f"{clip_id}: has tokens beyond 65,504, which float16 ends at")
                file.write(clip.tobytes())
                counts.append(clip.shape[1])
            assert group.labels is not None
            ids += group.ids
            labels.append(group.labels)
        file.flush()
        values = np.memmap(file, np.float16, "r")
    targets = torch.cat(labels).cpu().numpy()
    return StoredTokens(
        ids, targets, unreadable, tuple(layers), width, has_cls, np.array(counts), values
    )


def _valid_tokens(encoded: EncoderOutput, layers: Sequence[int]) -> list[NDArray[np.float16]]:
    """Return the valid tokens of each clip, a CLS token first: (L, 1 + N or N, D)."""
    states = torch.stack([encoded.states[n] for n in layers], dim=1).half().cpu()  # (B, L, ..., D)
    if encoded.valid is None:
        return list(states.numpy())
    cls = encoded.valid.new_ones(len(states), states.shape[2] - encoded.valid.shape[1])
    valid = torch.cat([cls, encoded.valid], dim=1).cpu()
    return [clip[:, row].numpy() for clip, row in zip(states, valid, strict=True)]


def _require_space(size: int, *, done: int, clips: int) -> None:
    """Raise DataError if so many bytes more are not free, with some to spare."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free - size < RESERVE:
        raise DataError(
            f"{folder}: {free / 2**30:.1f} GiB are free after the tokens of {done} of {clips} "
            "clips; expected more (TMPDIR names another folder), or fewer clips, seconds or layers"
        )
