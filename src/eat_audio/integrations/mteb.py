"""The encoder of MTEB's audio tasks, and MTEB's description of a model.

    from eat_audio.integrations.mteb import encoder

    mteb.evaluate(encoder("runs/mine", name="me/mine"), tasks)

Needs the package mteb (pip install mteb). Its own collator, and its way from a description to a
model, need torchaudio even where nothing is resampled; neither is used here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray

from eat_audio.errors import AudioError
from eat_audio.inference.predictor import Predictor, load

BATCH = 8
"""Windows of 10.24 s per batch."""
UNKNOWN = (
    "release_date",
    "languages",
    "max_tokens",
    "license",
    "open_weights",
    "public_training_code",
    "public_training_data",
    "training_datasets",
)
"""Fields of a description that the weights do not say."""


class MTEBEncoder(AbsEncoder):
    """Any model of this package: one vector per clip.

    Args:
        model_name: MTEB's name of the model; also its Hub id without `source`.
        revision: Of the Hub id; None for a model on this machine.
        device: cpu, cuda, ...; None: a GPU if there is one.
        source: A run's folder, a model folder or a file.
        **kwargs: Ignored; MTEB passes them to other models.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        device: str | None = None,
        *,
        source: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        if source is None and revision is not None:
            source = _download(model_name, revision)
        self.model_name = model_name
        self.model: Predictor = load(source or model_name, device=device or "auto")

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
        """Return one vector per clip: (clips, D); the other arguments are ignored.

        Args:
            inputs: Batches whose "audio" is a list of {"array": ..., "sampling_rate": Hz}.

        Raises:
            AudioError: A batch has no audio, or a clip cannot be read.
        """
        vectors = []
        for vector in self.model.embed_many(_clips(inputs), "clip", batch=BATCH):
            if isinstance(vector, AudioError):
                raise vector
            vectors.append(vector)
        return np.stack(vectors)


def encoder(source: str | Path, *, name: str, device: str | None = None) -> MTEBEncoder:
    """Return a model ready for `mteb.evaluate`, with its description; see `model_meta`."""
    model = MTEBEncoder(name, device=device, source=source)
    model.mteb_model_meta = model_meta(source, name=name)
    return model


def model_meta(source: str | Path, *, name: str, revision: str | None = None) -> ModelMeta:
    """Return MTEB's description; add a licence and the training data before you publish it.

    Args:
        source: A run's folder, a model folder, a file or a Hub id.
        name: OWNER/NAME, as on the Hub or as it is going to be.
        revision: Of the Hub id, if the model is there.
    """
    model = load(source, device="cpu", precision="fp32").model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelMeta(
        loader=MTEBEncoder,
        loader_kwargs={} if revision else {"source": str(source)},
        name=name,
        revision=revision,
        n_parameters=parameters,
        n_embedding_parameters=0,
        memory_usage_mb=round(parameters * 4 / 2**20, 1),
        embed_dim=model.config.pooled_size,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=False,
        modalities=["audio"],
        **dict.fromkeys(UNKNOWN),
    )


def _download(name: str, revision: str) -> Path:
    """Download a model at a revision from the Hub: weights and settings, never code."""
    from huggingface_hub import snapshot_download

    from eat_audio.checkpoints.load import HUB_FILES

    return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))


def _clips(batches: Any) -> Iterator[dict[str, Any]]:
    """Yield the clips of all batches with one channel."""
    for batch in batches:
        if "audio" not in batch:
            raise AudioError(f"a batch holds {', '.join(batch)}; expected audio")
        for clip in batch["audio"]:
            samples = np.asarray(clip["array"], dtype=np.float32)  # (S,) or (channels, S)
            mono = samples.mean(axis=0) if samples.ndim == 2 else samples
            yield {"array": mono, "sampling_rate": clip["sampling_rate"]}
