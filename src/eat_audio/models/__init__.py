"""What survives pre-training: encoders, classifiers and feature extractors, Hugging Face native."""


def register() -> None:
    """Make the Auto classes and pipelines of transformers know our models."""
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForAudioClassification,
    )

    from eat_audio.models.eat import EATConfig, EATForAudioClassification, EATModel
    from eat_audio.models.features import EATFeatureExtractor

    AutoConfig.register("eat", EATConfig, exist_ok=True)
    AutoModel.register(EATConfig, EATModel, exist_ok=True)
    AutoModelForAudioClassification.register(EATConfig, EATForAudioClassification, exist_ok=True)
    AutoFeatureExtractor.register(EATConfig, EATFeatureExtractor, exist_ok=True)
