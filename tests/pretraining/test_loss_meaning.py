"""The loss means the same at any batch and accumulation, and at 12 clips x 16 masks what was run.

The released code sums the utterance loss over the rows of a process and averages the frame loss
over its hidden patches, so that its utterance weight is 12 x 16 = 192 in the base run and something
else with any other batch. Here both are means and the weight is written down.
"""

import torch
from torch import Tensor

from eat_audio.data.loader import Batch
from eat_audio.masking import Masks, inverse_block_masks
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig
from eat_audio.pretraining.eat import DecoderSettings, EATMethod, EATPretraining
from eat_audio.rng import clip_keys

CLIPS, CLONES = 12, 16
FRAMES = 256  # 16 x 8 patches, of which 25 are seen
WIDTH = 32
SEED = 3
TOLERANCE = 1e-4
"""Of a parameter's largest gradient: sums of up to 768 rows in float32, in another order."""
ROUNDING = 1e-6
"""Of the largest gradient of all: what is left of one that is zero, as that of the keys' bias."""


def objective(
    *, utterance_weight: float = 192.0, mask_noise: float = 0.0, masks: int = CLONES
) -> EATPretraining:
    """A tiny objective, the same at every call.

    The decoder's noise is drawn per micro-batch, not per clip, so it is left out where different
    batches of the same clips are compared.
    """
    torch.manual_seed(SEED)
    method = EATMethod(
        masks=masks,
        decoder=DecoderSettings(layers=2, groups=4),
        utterance_weight=utterance_weight,
        mask_noise=mask_noise,
    )
    config = EATConfig(embed_dim=WIDTH, depth=2, num_heads=2)
    return EATPretraining(config, method, EATFeatureExtractor(), frames=FRAMES, seed=SEED).train()


def clips(numbers: range) -> Batch:
    """256 frames of noise each; a number always gives the same clip."""
    count = 41_200
    waves = [
        torch.randint(-3_000, 3_000, (count,), generator=torch.Generator().manual_seed(number))
        for number in numbers
    ]
    return Batch(
        step=0,
        waveforms=torch.stack(waves).to(torch.int16),
        lengths=torch.full((len(waves),), count),
        clips=torch.tensor(numbers),
        epochs=torch.zeros(len(waves), dtype=torch.int64),
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def gradients(model: EATPretraining, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of a loss by every parameter that learns."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, values, strict=True))


def our_gradients(model: EATPretraining, batch: Batch) -> dict[str, Tensor]:
    return gradients(model, model(batch, generator())["loss"])


def masks_of(model: EATPretraining, batch: Batch) -> Masks:
    keys = clip_keys(SEED, batch.epochs, batch.clips, CLONES)
    return inverse_block_masks(keys, (FRAMES // 16, 8), hidden_ratio=model.method.hidden_ratio)


def released_gradients(model: EATPretraining, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the released trainer on one process, of our targets, predictions and CLS.

    Both losses keep their sum over channels, divided by sqrt(D); each is summed over all that it
    has, after "cls_loss: 1" and the sample size (the number of hidden patches) went into the
    utterance loss; at last the gradient is divided by the sample size.
    """
    spectrogram = model.features.log_mel(batch.waveforms, batch.lengths, frames=FRAMES).values
    masks = masks_of(model, batch)
    hidden = masks.hidden.flatten(0, 1)  # (R, N)
    noise = torch.empty(*hidden.shape, WIDTH)
    noise.normal_(0.0, model.method.mask_noise, generator=generator())

    y = model.targets(spectrogram).repeat_interleave(CLONES, dim=0)  # (R, N, D)
    cls, visible = model.encode_visible(spectrogram, masks)
    everything = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
    prediction = model.decoder(
        model.decoder_input(visible, masks, noise), (FRAMES // 16, 8), everything
    )

    sample_size = hidden.sum().item()
    regression = (prediction[hidden] - y[hidden]).square().sum(dim=-1) / WIDTH**0.5
    utterance = (cls - y.mean(dim=1)).square().sum(dim=-1) / WIDTH**0.5 * sample_size
    total = regression.sum() + utterance.sum()
    return {name: g / sample_size for name, g in gradients(model, total).items()}


def mean_of(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in values]).mean(dim=0) for name in values[0]}


def differ(model: dict[str, Tensor], released: dict[str, Tensor]) -> list[str]:
    """The parameters whose gradients are not the same."""
    assert model.keys() == released.keys()
    largest = max(gradient.abs().max().item() for gradient in released.values())
    return [
        name
        for name, gradient in released.items()
        if (model[name] - gradient).abs().max()
        > TOLERANCE * gradient.abs().max() + ROUNDING * largest
    ]


def test_at_12_clips_x_16_masks_every_gradient_is_that_of_the_released_loss() -> None:
    model = objective(mask_noise=0.01)
    batch = clips(range(CLIPS))
    assert differ(our_gradients(model, batch), released_gradients(model, batch)) == []


def test_the_released_loss_means_something_else_at_48_clips() -> None:
    """Why the weight is written down: theirs follows the batch, four times as much here."""
    batch = clips(range(4 * CLIPS))
    released = released_gradients(objective(), batch)
    assert differ(our_gradients(objective(), batch), released) != []
    assert differ(our_gradients(objective(utterance_weight=4 * 192.0), batch), released) == []


def test_a_step_of_48_clips_is_the_mean_of_four_steps_of_12() -> None:
    model = objective()
    parts = [
        our_gradients(model, clips(range(first, first + CLIPS))) for first in range(0, 48, CLIPS)
    ]
    assert differ(our_gradients(model, clips(range(48))), mean_of(parts)) == []
