"""Self-supervised audio transformers: pre-train, fine-tune, evaluate and use them.

    import eat_audio as eat

    model = eat.load("runs/mine")
    clip = eat.load_audio("dog.wav")
    model.embed(clip).clip      # one vector
    model.predict(clip)         # labels with scores, if the model was fine-tuned

After this import, `transformers.AutoModel`, `AutoFeatureExtractor` and
`pipeline("audio-classification")` work with the models, too.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eat_audio.models import METHODS

if TYPE_CHECKING:  # for type checkers and editors; `__getattr__` imports them when used
    from eat_audio.audio import load_audio as load_audio
    from eat_audio.errors import EatError as EatError
    from eat_audio.inference.predictor import load as load
    from eat_audio.models.audiomae.modeling import AudioMAEConfig as AudioMAEConfig
    from eat_audio.models.audiomae.modeling import (
        AudioMAEForAudioClassification as AudioMAEForAudioClassification,
    )
    from eat_audio.models.audiomae.modeling import AudioMAEModel as AudioMAEModel
    from eat_audio.models.bat.modeling import BATConfig as BATConfig
    from eat_audio.models.bat.modeling import BATForAudioClassification as BATForAudioClassification
    from eat_audio.models.bat.modeling import BATModel as BATModel
    from eat_audio.models.beats.modeling import BEATsConfig as BEATsConfig
    from eat_audio.models.beats.modeling import (
        BEATsForAudioClassification as BEATsForAudioClassification,
    )
    from eat_audio.models.beats.modeling import BEATsModel as BEATsModel
    from eat_audio.models.ced.modeling import CEDConfig as CEDConfig
    from eat_audio.models.ced.modeling import CEDForAudioClassification as CEDForAudioClassification
    from eat_audio.models.ced.modeling import CEDModel as CEDModel
    from eat_audio.models.common.feature_extraction import (
        AudioMAEFeatureExtractor as AudioMAEFeatureExtractor,
    )
    from eat_audio.models.common.feature_extraction import (
        BATFeatureExtractor as BATFeatureExtractor,
    )
    from eat_audio.models.common.feature_extraction import (
        BEATsFeatureExtractor as BEATsFeatureExtractor,
    )
    from eat_audio.models.common.feature_extraction import (
        CEDFeatureExtractor as CEDFeatureExtractor,
    )
    from eat_audio.models.common.feature_extraction import (
        EATFeatureExtractor as EATFeatureExtractor,
    )
    from eat_audio.models.eat.modeling import EATConfig as EATConfig
    from eat_audio.models.eat.modeling import EATForAudioClassification as EATForAudioClassification
    from eat_audio.models.eat.modeling import EATModel as EATModel

_MODULES = {
    "EatError": "eat_audio.errors",
    "load": "eat_audio.inference.predictor",
    "load_audio": "eat_audio.audio",
}
for _spec in METHODS.values():
    _MODULES |= _spec.public_names

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a quarter of the time of `eat --help`

        return version("eat-audio")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


# `eat --help` answers without waiting for torch; in any other program the Auto classes are set up.
_is_command = Path(sys.argv[0]).name in ("eat", "eat.exe")
if not _is_command and sys.orig_argv[1:3] != ["-m", "eat_audio"]:
    import_module(f"{__name__}.models").register()
