"""The encoder that MTEB's audio tasks ask for, and what MTEB wants to know about a model.

    from eat_audio.integrations.mteb import encoder

    mteb.evaluate(encoder("runs/mine", name="me/mine"), tasks)

Needs the package mteb (pip install mteb). Its own collator, and its way from a description to a
model, need torchaudio even where nothing is resampled; neither is used here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray

from eat_audio.audio import SAMPLE_RATE
from eat_audio.errors import AudioError
from eat_audio.inference.predictor import Predictor, load

BATCH = 8
"""Windows of 10.24 s heard at once."""


class MTEBEncoder(AbsEncoder):
    """Any model of this package: one vector per clip.

    Args:
        model_name: What MTEB calls the model; a Hub id unless `place` says where it is.
        revision: Of the Hub id; None for a model on this machine.
        device: cpu, cuda, ...; None: a GPU if there is one.
        place: A run's folder, a model folder or a file.
        **kwargs: Ignored, for what MTEB gives to other models.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        device: str | None = None,
        *,
        place: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        if place is None and revision is not None:
            place = _fetched(model_name, revision)
        self.model_name = model_name
        self.model: Predictor = load(place or model_name, device=device or "auto")

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """One vector for every clip: (clips, D).

        Args:
            inputs: Batches whose "audio" is a list of {"array": ..., "sampling_rate": Hz}.
            task_metadata: Not needed, as all that follows.
            hf_split: A name.
            hf_subset: A name.
            prompt_type: For models that read.
            **kwargs: For other models.

        Raises:
            AudioError: There is no sound in a batch, or it cannot be heard.
        """
        vectors = []
        for vector in self.model.embed_many(_waveforms(inputs), "clip", batch=BATCH):
            if isinstance(vector, AudioError):
                raise vector
            vectors.append(vector)
        return np.stack(vectors)


def encoder(place: str | Path, *, name: str, device: str | None = None) -> MTEBEncoder:
    """A model ready for `mteb.evaluate`, with its description; see `model_meta`."""
    made = MTEBEncoder(name, device=device, place=place)
    made.mteb_model_meta = model_meta(place, name=name)
    return made


def model_meta(place: str | Path, *, name: str, revision: str | None = None) -> ModelMeta:
    """What MTEB wants to know; add a licence and what it was trained on before you publish.

    Args:
        place: A run's folder, a model folder, a file or a Hub id.
        name: OWNER/NAME, as on the Hub or as it is going to be.
        revision: Of the Hub id, if the model is there.
    """
    model = load(place, device="cpu").model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelMeta(
        loader=MTEBEncoder,
        loader_kwargs={} if revision else {"place": str(place)},
        name=name,
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=parameters,
        n_embedding_parameters=0,
        memory_usage_mb=round(parameters * 4 / 2**20, 1),
        max_tokens=None,
        embed_dim=model.config.hidden_size,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["audio"],
    )


def _fetched(name: str, revision: str) -> Path:
    """A model of the Hub as it was at a revision: weights and settings, never code."""
    from huggingface_hub import snapshot_download

    from eat_audio.checkpoints.load import HUB_FILES

    return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))


def _waveforms(batches: Any) -> Iterator[NDArray[np.float32]]:
    """The clips of all batches, mono at 16 kHz."""
    for batch in batches:
        if "audio" not in batch:
            raise AudioError(f"a batch holds {', '.join(batch)}; expected audio")
        for clip in batch["audio"]:
            samples = np.asarray(clip["array"], dtype=np.float32)  # (S,) or (channels, S)
            mono = samples.mean(axis=0) if samples.ndim == 2 else samples
            if clip["sampling_rate"] != SAMPLE_RATE:
                mono = soxr.resample(mono, clip["sampling_rate"], SAMPLE_RATE, quality="HQ")
            yield mono
