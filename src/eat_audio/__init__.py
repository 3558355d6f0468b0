"""Self-supervised audio transformers: pre-train, fine-tune, evaluate and use them.

    import eat_audio as eat

    model = eat.load("runs/mine")
    clip = eat.load_audio("dog.wav")
    model.embed(clip).clip      # one vector
    model.predict(clip)         # labels with scores, if the model was fine-tuned

After this import, `transformers.AutoModel`, `AutoFeatureExtractor` and
`pipeline("audio-classification")` know the models too.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eat_audio.audio import load_audio
    from eat_audio.errors import EatError
    from eat_audio.inference.predictor import load
    from eat_audio.models.audiomae.modeling import (
        AudioMAEConfig,
        AudioMAEForAudioClassification,
        AudioMAEModel,
    )
    from eat_audio.models.beats.modeling import BEATsConfig, BEATsForAudioClassification, BEATsModel
    from eat_audio.models.common.feature_extraction import (
        AudioMAEFeatureExtractor,
        BEATsFeatureExtractor,
        EATFeatureExtractor,
    )
    from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

__all__ = [
    "AudioMAEConfig",
    "AudioMAEFeatureExtractor",
    "AudioMAEForAudioClassification",
    "AudioMAEModel",
    "BEATsConfig",
    "BEATsFeatureExtractor",
    "BEATsForAudioClassification",
    "BEATsModel",
    "EATConfig",
    "EATFeatureExtractor",
    "EATForAudioClassification",
    "EATModel",
    "EatError",
    "load",
    "load_audio",
]

__version__ = version("eat-audio")

_HOMES = {
    "AudioMAEConfig": "models.audiomae.modeling",
    "AudioMAEFeatureExtractor": "models.common.feature_extraction",
    "AudioMAEForAudioClassification": "models.audiomae.modeling",
    "AudioMAEModel": "models.audiomae.modeling",
    "BEATsConfig": "models.beats.modeling",
    "BEATsFeatureExtractor": "models.common.feature_extraction",
    "BEATsForAudioClassification": "models.beats.modeling",
    "BEATsModel": "models.beats.modeling",
    "EATConfig": "models.eat.modeling",
    "EATFeatureExtractor": "models.common.feature_extraction",
    "EATForAudioClassification": "models.eat.modeling",
    "EATModel": "models.eat.modeling",
    "EatError": "errors",
    "load": "inference.predictor",
    "load_audio": "audio",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


# The `eat` command answers --help without waiting for torch; everybody else wants the Auto classes.
if Path(sys.argv[0]).name not in ("eat", "eat.exe"):
    import_module(f"{__name__}.models").register()
