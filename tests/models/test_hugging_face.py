"""Every method is at home in transformers: Auto classes, pipeline, Trainer, PEFT, compile, bf16."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from eat_audio.checkpoints.load import load_model
from eat_audio.errors import DataError
from eat_audio.models import METHODS, ModelSpec, model_types
from eat_audio.models.common.modeling import AudioClassifier, AudioModel

LABELS = ["bark", "meow", "silence"]


@pytest.fixture(params=sorted(model_types()))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return METHODS[request.param]


def encoder(spec: ModelSpec) -> AudioModel:
    torch.manual_seed(0)
    return spec.encoder(spec.config.named("tiny")).eval()


def classifier(spec: ModelSpec) -> AudioClassifier:
    torch.manual_seed(0)
    config = spec.config.named("tiny")
    told = config.for_labels(LABELS, several=False, drop_path=0.0, pooling="mean")
    return spec.classifier(told).eval()


def heard(spec: ModelSpec, *seconds: float) -> dict[str, Tensor]:
    """Noise clips through the method's front end."""
    noise = np.random.default_rng(0)
    clips = [noise.normal(0, 0.1, round(16_000 * s)).astype(np.float32) for s in seconds]
    return dict(spec.feature_extractor()(clips, sampling_rate=16_000))


def test_the_auto_classes_give_back_what_was_saved(spec: ModelSpec, tmp_path: Path) -> None:
    for kind, auto in ((encoder, AutoModel), (classifier, AutoModelForAudioClassification)):
        model = kind(spec)
        model.save_pretrained(tmp_path)
        again = auto.from_pretrained(tmp_path)
        assert type(again) is type(model)
        inputs = heard(spec, 1.0, 0.4)
        assert torch.equal(again(**inputs)[0], model(**inputs)[0])
    spec.feature_extractor(mean=-1.5).save_pretrained(tmp_path)
    assert AutoFeatureExtractor.from_pretrained(tmp_path).mean == -1.5
    assert type(AutoConfig.from_pretrained(tmp_path)) is spec.config
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))


def test_an_encoder_comes_out_of_a_classifier_with_the_same_weights(
    spec: ModelSpec, tmp_path: Path
) -> None:
    model = classifier(spec)
    model.save_pretrained(tmp_path)
    inputs = heard(spec, 1.0)
    alone = load_model(tmp_path, spec.encoder)
    assert (
        torch.equal(alone.encode(**inputs).patches, model.encode(**inputs).patches)
        or spec.config.model_type == "audiomae"
    )  # whose classifier has no norm after its blocks


def test_the_pipeline_of_transformers_tags_arrays(spec: ModelSpec, tmp_path: Path) -> None:
    classifier(spec).save_pretrained(tmp_path)
    spec.feature_extractor().save_pretrained(tmp_path)
    tag = pipeline("audio-classification", model=str(tmp_path), device="cpu")
    answers = tag(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), top_k=2)
    assert len(answers) == 2 and answers[0]["label"] in LABELS
    assert answers[0]["score"] >= answers[1]["score"]


def test_hidden_states_are_those_before_every_block_and_after_the_last(spec: ModelSpec) -> None:
    model = encoder(spec)
    outputs = model(**heard(spec, 1.0), output_hidden_states=True)
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert model(**heard(spec, 1.0)).hidden_states is None


def gradients(model: AudioModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    model(**inputs, labels=torch.tensor([0, 2])).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_does_not_change_gradients(spec: ModelSpec) -> None:
    model, inputs = classifier(spec).train(), heard(spec, 1.0, 0.5)
    plain = gradients(model, inputs)
    switch = getattr(model, "activation_checkpointing_enable", None)
    (switch or model.gradient_checkpointing_enable)()
    for name, gradient in gradients(model, inputs).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-7)


def test_bfloat16_weights_hear_nearly_the_same(spec: ModelSpec, tmp_path: Path) -> None:
    model, inputs = encoder(spec), heard(spec, 1.0, 0.5)
    exact = model(**inputs).pooler_output
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    inputs["input_values"] = inputs["input_values"].bfloat16()
    rough = half(**inputs).pooler_output
    assert rough.dtype == torch.bfloat16
    assert torch.cosine_similarity(exact, rough.float()).min() > 0.999


@pytest.mark.slow
def test_a_compiled_model_says_the_same(spec: ModelSpec) -> None:
    model, inputs = encoder(spec), heard(spec, 1.0, 0.5)
    exact = model(**inputs).pooler_output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what compilers say about this machine
        compiled = torch.compile(model, fullgraph=True)(**inputs).pooler_output
    torch.testing.assert_close(compiled, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # peft asks by its old name
def test_lora_of_peft_trains_merges_and_comes_back(spec: ModelSpec, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    inputs = heard(spec, 1.0, 0.5)
    linear = {name.rpartition(".")[2] for name in linear_maps_of_blocks(classifier(spec))}
    told = peft.LoraConfig(r=2, target_modules=sorted(linear), modules_to_save=["head"])
    model = peft.get_peft_model(classifier(spec), told).train()
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**inputs, labels=torch.tensor([0, 2])).loss
        losses.append(loss.item())
        loss.backward()
        adam.step()
        adam.zero_grad()
    assert losses[-1] < losses[0]
    model.eval()
    model.save_pretrained(tmp_path / "lora")
    again = peft.PeftModel.from_pretrained(classifier(spec), tmp_path / "lora").eval()
    exact = model(**inputs).logits
    torch.testing.assert_close(again(**inputs).logits, exact)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, exact, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    plain = load_model(tmp_path / "merged")
    torch.testing.assert_close(plain(**inputs).logits, exact, rtol=1e-4, atol=1e-5)


def linear_maps_of_blocks(model: AudioModel) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".blocks." in name:
            yield name


class Clips(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Tones of three pitches in noise, a label each."""

    def __init__(self, spec: ModelSpec) -> None:
        noise = np.random.default_rng(0)
        tones = [np.sin(2 * np.pi * 300 * 4**n * np.arange(8_000) / 16_000) for n in range(3)]
        clips = [tones[n % 3] / 2 + noise.normal(0, 0.01, 8_000) for n in range(12)]
        self.inputs = spec.feature_extractor()(clips, sampling_rate=16_000)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = {name: values[number] for name, values in self.inputs.items()}
        return row | {"labels": torch.tensor(number % 3)}


def test_the_trainer_of_transformers_fine_tunes(spec: ModelSpec, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    clips = Clips(spec)
    told = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=12,
        learning_rate=1e-4,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = Trainer(classifier(spec), told, train_dataset=clips)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "model"))
    assert isinstance(load_model(tmp_path / "model"), spec.classifier)


def with_outputs(spec: ModelSpec, tmp_path: Path, count: int) -> AudioClassifier:
    """A pre-trained encoder with a classifier of so many outputs, as transformers makes it."""
    encoder(spec).save_pretrained(tmp_path)
    return AutoModelForAudioClassification.from_pretrained(tmp_path, num_labels=count).eval()


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
def test_one_label_is_regression(
    spec: ModelSpec, tmp_path: Path, shape: tuple[int, ...], kind: torch.dtype
) -> None:
    model, inputs = with_outputs(spec, tmp_path, 1), heard(spec, 1.0, 0.4)
    labels = torch.tensor([2.0, -1.5])
    outputs = model(**inputs, labels=labels.view(shape).to(kind))
    assert outputs.logits.shape == (2, 1)
    torch.testing.assert_close(outputs.loss, (outputs.logits[:, 0] - labels).square().mean())
    outputs.loss.backward()


def test_several_outputs_can_be_regression(spec: ModelSpec, tmp_path: Path) -> None:
    model, inputs = with_outputs(spec, tmp_path, 3), heard(spec, 1.0, 0.4)
    model.config.problem_type = "regression"
    outputs = model(**inputs, labels=torch.ones(2, 3))
    torch.testing.assert_close(outputs.loss, (outputs.logits - 1).square().mean())


@pytest.mark.parametrize("kind", [torch.int8, torch.int32, torch.int64, torch.uint8])
def test_classes_may_be_numbers_of_any_kind(
    spec: ModelSpec, tmp_path: Path, kind: torch.dtype
) -> None:
    model, inputs = with_outputs(spec, tmp_path, 3), heard(spec, 1.0, 0.4)
    outputs = model(**inputs, labels=torch.tensor([0, 2], dtype=kind))
    exact = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 2]))
    assert torch.equal(outputs.loss, exact)


@pytest.mark.parametrize(
    ("count", "labels"),
    [
        (1, torch.tensor([0, 0])),
        (1, torch.zeros(2, 2)),
        (3, torch.tensor([0.0, 2.0])),
        (3, torch.tensor([[0], [2]])),
        (3, torch.tensor([0])),
    ],
)
def test_labels_that_do_not_fit_get_a_sentence(
    spec: ModelSpec, tmp_path: Path, count: int, labels: Tensor
) -> None:
    model, inputs = with_outputs(spec, tmp_path, count), heard(spec, 1.0, 0.4)
    with pytest.raises(DataError, match="labels of type .* expected"):
        model(**inputs, labels=labels)
