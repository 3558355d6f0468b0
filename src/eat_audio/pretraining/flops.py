"""Settings -> floating-point operations: what one clip costs, counted on paper.

    a linear map of N tokens                        2 N inputs outputs
    attention of N tokens to each other             4 N^2 D
    a convolution with N outputs                    2 N taps (inputs / groups) outputs
    backward, of what learns                        2 forward
    backward, of the map that hears the sound       1 forward: nobody asks for the sound's gradient

A multiply-add counts as 2. What is counted is what the code does, padding included: every matrix
product and convolution, and of the front end the FFT and the mel triangles. Not counted is what
goes element by element (norms, activations, softmax, sums), what a step does once whatever its
batch (optimizer, the teacher's pace, the bias of local windows), and what recomputing costs.
Nothing is built, so that any size is counted at once; the tests hold the numbers against what
torch counts while the objectives run.

Letters: N patches of a clip, V visible and H hidden ones, K masks, D width.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedConfig

from eat_audio.audio import SAMPLE_RATE
from eat_audio.audio.fbank import FFT, N_MELS, PATCH_FRAMES, n_frames
from eat_audio.data.loader import whole_patches
from eat_audio.masking import n_visible
from eat_audio.models.beats.modeling import BEATsConfig
from eat_audio.pretraining.audiomae import AudioMAERun
from eat_audio.pretraining.audiomae import DecoderSettings as AudioMAEDecoder
from eat_audio.pretraining.beats.objective import BEATsRun, RandomTokenizerSettings
from eat_audio.pretraining.beats.tokenizer import TokenizerMethod, TokenizerRun
from eat_audio.pretraining.eat import EATRun
from eat_audio.pretraining.method import PretrainRun

PARTS = {
    "front end": "sound to log-mel",
    "patches": "log-mel to tokens, once for all masks",
    "encoder": "what is kept, over what it sees",
    "teacher": "what says the targets, whole: a teacher, or a tokenizer",
    "quantizer": "from tokens to codes, in a tokenizer that learns",
    "decoder": "what is thrown away, over the whole grid: decoder, predictor or estimator",
    "guesses": "its last linear map",
}
"""The parts of a clip's cost, in the order in which a clip meets them."""


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one clip, by part (`PARTS`); parts without any are left out."""

    forward: dict[str, float]
    backward: dict[str, float]

    @property
    def parts(self) -> dict[str, float]:
        """Forward and backward together."""
        return {name: self.forward[name] + self.backward[name] for name in self.forward}

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())


def pretraining(
    settings: PretrainRun,
    *,
    seconds: float | None = None,
    tokenizer: TokenizerRun | None = None,
    teacher: PreTrainedConfig | None = None,
) -> Cost:
    """One clip in one step of pre-training, forward and backward.

    Args:
        settings: The resolved recipe, of any method.
        seconds: How long the clip is; as long as a run hears of one if None. BEATs computes for
            what there is of a clip, the other methods for `clips.seconds` in any case.
        tokenizer: What BEATs' tokenizer, if it has learnt, was made with; by default the usual
            codes and an encoder like the student's. Stored labels cost nothing here.
        teacher: The configuration of a tokenizer's teacher; by default like the student's.

    Raises:
        MaskError: Nothing would be visible of such clips.
    """
    heard = min(seconds or settings.clips.seconds, settings.clips.seconds)
    config = settings.config()
    if isinstance(settings, BEATsRun):
        frames = _frames(heard)
        tokens = _whole(frames, config) * _rows(config)
        rows = _beats(settings, config, tokens, tokenizer)
    elif isinstance(settings, TokenizerRun):
        frames = _frames(heard)
        tokens = _whole(frames, config) * _rows(config)
        rows = _tokenizer(settings, config, tokens, teacher or config)
    else:
        total = whole_patches(settings.clips.seconds)
        frames = min(_frames(heard), total)
        grid = total // config.patch_size, _rows(config)
        if isinstance(settings, EATRun):
            rows = _eat(settings, config, grid)
        else:
            assert isinstance(settings, AudioMAERun)
            rows = _audiomae(settings, config, grid)
    return _summed([_fixed("front end", _front_end(frames)), *rows])


def encoding(config: PreTrainedConfig, seconds: float) -> Cost:
    """One clip of so many seconds through a trained encoder, without a classifier."""
    frames = _frames(seconds)
    beats = isinstance(config, BEATsConfig)
    columns = _whole(frames, config) if beats else -(-frames // PATCH_FRAMES)
    patches = columns * _rows(config)
    made = [row._replace(backward=0.0) for row in _patches(config, patches)]
    encoder = _fixed("encoder", _blocks(config, patches + _cls(config)))
    return _summed([_fixed("front end", _front_end(frames)), *made, encoder])


# ---- the four objectives ----


class _Row(NamedTuple):
    part: str
    forward: float
    backward: float


def _eat(run: EATRun, config: PreTrainedConfig, grid: tuple[int, int]) -> list[_Row]:
    patches, width, decoder = grid[0] * grid[1], config.hidden_size, run.decoder
    visible = n_visible(grid, run.hidden_ratio)
    inside = decoder.width or width
    pairs = (width + (decoder.layers - 1) * inside) * inside / decoder.groups
    convolutions = 2 * patches * decoder.kernel**2 * pairs
    return [
        *_patches(config, patches),
        _learnt("encoder", run.masks * _blocks(config, visible + 1)),
        _fixed("teacher", _listening(config, patches)),
        _learnt("decoder", run.masks * convolutions),
        _learnt("guesses", run.masks * _linear(patches - visible, inside, width)),
    ]


def _audiomae(run: AudioMAERun, config: PreTrainedConfig, grid: tuple[int, int]) -> list[_Row]:
    patches, decoder = grid[0] * grid[1], run.decoder
    if run.masking == "patches":
        visible = n_visible(grid, run.hidden_ratio)
    else:
        shares = run.hidden_columns, run.hidden_rows
        visible = math.prod(
            max(int(n * (1 - share)), 1) for n, share in zip(grid, shares, strict=True)
        )
    cls = decoder.attention == "global"
    decoding = _local(decoder, grid) if not cls else _global(decoder, patches + 1)
    guesses = _linear(patches - visible, decoder.width, config.patch_size**2)
    return [
        *_patches(config, patches),
        _learnt("encoder", _blocks(config, visible + 1)),
        _learnt("decoder", _linear(visible + cls, config.hidden_size, decoder.width) + decoding),
        _learnt("guesses", guesses),
    ]


def _beats(
    run: BEATsRun, config: PreTrainedConfig, patches: int, tokenizer: TokenizerRun | None
) -> list[_Row]:
    columns = patches // _rows(config)
    visible = n_visible((columns, _rows(config)), run.hidden_ratio)
    if run.labels is not None:
        codes, labeling = _codes(tokenizer), 0.0
    elif run.tokenizer is not None:
        made = tokenizer or TokenizerRun(encoder=run.encoder)
        hears = made.config()
        codes = made.codes
        labeling = _listening(hears, patches) + _to_codes(made, hears, patches)
    else:
        drawn = run.random
        codes, labeling = drawn.codes, _by_drawn_codes(drawn, config, patches)
    width = config.hidden_size
    return [
        *_patches(config, patches),
        _learnt("encoder", _blocks(config, visible)),
        _fixed("teacher", labeling),
        _learnt("decoder", _estimator(config, run.predictor_layers, patches)),
        _learnt("guesses", _linear(patches - visible, width, codes)),
        # of patches that were seen: for the log, and taught to nobody
        _fixed("guesses", _linear(visible, width, codes)),
    ]


def _tokenizer(
    run: TokenizerRun, config: PreTrainedConfig, patches: int, teacher: PreTrainedConfig
) -> list[_Row]:
    width = config.hidden_size
    wanted = teacher.hidden_size if run.target == "patches" else teacher.num_classes
    told = _linear(patches, teacher.hidden_size, wanted) if run.target == "logits" else 0.0
    lookup = _linear(patches, run.code_width, run.codes)
    estimator = _linear(patches, run.code_width, width)
    estimator += _estimator(config, run.estimator_layers, patches)
    return [
        *_patches(config, patches),
        _learnt("encoder", _blocks(config, patches)),
        _fixed("teacher", _listening(teacher, patches) + told),
        _learnt("quantizer", _to_codes(run, config, patches) - lookup),
        _fixed("quantizer", 2 * lookup),  # nearest codes, and the sums that codes follow
        _learnt("decoder", estimator),
        _learnt("guesses", 0.0 if wanted == width else _linear(patches, width, wanted)),
    ]


# ---- what they are made of ----


def _front_end(frames: int) -> float:
    """A real FFT by the usual 2.5 n log2(n), and two mel triangles over every frequency."""
    return frames * (2.5 * FFT * math.log2(FFT) + 2 * 2 * FFT / 2)


def _patches(config: PreTrainedConfig, patches: int) -> list[_Row]:
    values = config.patch_size**2
    if not isinstance(config, BEATsConfig):
        first = _linear(patches, values, config.hidden_size)
        return [_Row("patches", first, first)]
    inner, width = config.embed_dim, config.encoder_embed_dim
    first = _linear(patches, values, inner)
    second = 0.0 if inner == width else _linear(patches, inner, width)
    return [_Row("patches", first, first), _learnt("patches", second)]


def _listening(config: PreTrainedConfig, patches: int) -> float:
    """A whole clip through an encoder that does not learn."""
    made = sum(row.forward for row in _patches(config, patches))
    return made + _blocks(config, patches + _cls(config))


def _blocks(config: PreTrainedConfig, tokens: int) -> float:
    """Tokens, CLS among them where there is one, through the blocks of an encoder."""
    if not isinstance(config, BEATsConfig):
        hidden = int(config.hidden_size * config.mlp_ratio)
        return config.num_hidden_layers * _block(tokens, config.hidden_size, hidden)
    width, taps = config.encoder_embed_dim, config.conv_pos
    outputs = tokens + 1 - taps % 2  # one too many where the number of taps is even
    positions = 2 * outputs * taps * (width / config.conv_pos_groups) * width
    return positions + _estimator(config, config.encoder_layers, tokens)


def _estimator(config: PreTrainedConfig, layers: int, tokens: int) -> float:
    """Tokens through blocks of BEATs."""
    width, heads = config.hidden_size, config.num_attention_heads
    gate = _linear(tokens * heads, width // heads, 8) if config.gru_rel_pos else 0.0
    return layers * (_block(tokens, width, config.encoder_ffn_embed_dim) + gate)


def _global(decoder: AudioMAEDecoder, tokens: int) -> float:
    hidden = int(decoder.width * decoder.mlp_ratio)
    return decoder.depth * _block(tokens, decoder.width, hidden)


def _local(decoder: AudioMAEDecoder, grid: tuple[int, int]) -> float:
    """The grid in whole windows, each of which listens to itself."""
    sides = zip(grid, decoder.window, strict=True)
    windows = math.prod(-(-count // size) for count, size in sides)
    hidden = int(decoder.width * decoder.mlp_ratio)
    return decoder.depth * windows * _block(math.prod(decoder.window), decoder.width, hidden)


def _block(tokens: int, width: int, hidden: int) -> float:
    """Queries, keys, values and projection; attention; two maps of the MLP."""
    maps = _linear(tokens, width, 4 * width) + _linear(tokens, width, 2 * hidden)
    return maps + 4 * tokens**2 * width


def _to_codes(run: TokenizerMethod, config: PreTrainedConfig, patches: int) -> float:
    """What a tokenizer adds to its encoder: two maps, and distances to all codes."""
    width = config.hidden_size
    projection = _linear(patches, width, width) + _linear(patches, width, run.code_width)
    return projection + _linear(patches, run.code_width, run.codes)


def _by_drawn_codes(
    drawn: RandomTokenizerSettings, config: PreTrainedConfig, patches: int
) -> float:
    projection = _linear(patches, config.patch_size**2, drawn.width)
    return projection + _linear(patches, drawn.width, drawn.codes)


def _codes(tokenizer: TokenizerRun | None) -> int:
    return (tokenizer or TokenizerRun()).codes


def _linear(tokens: int, inputs: int, outputs: int) -> float:
    return 2.0 * tokens * inputs * outputs


def _frames(seconds: float) -> int:
    return n_frames(round(seconds * SAMPLE_RATE))


def _whole(frames: int, config: PreTrainedConfig) -> int:
    """Columns of whole patches, as BEATs hears them: at least one."""
    return max(frames // config.patch_size, 1)


def _rows(config: PreTrainedConfig) -> int:
    return N_MELS // config.patch_size


def _cls(config: PreTrainedConfig) -> int:
    """CLS tokens of an encoder."""
    return 0 if isinstance(config, BEATsConfig) else 1


def _learnt(part: str, forward: float) -> _Row:
    return _Row(part, forward, 2 * forward)


def _fixed(part: str, forward: float) -> _Row:
    return _Row(part, forward, 0.0)


def _summed(rows: Iterable[_Row]) -> Cost:
    forward = dict.fromkeys(PARTS, 0.0)
    backward = dict.fromkeys(PARTS, 0.0)
    for part, ahead, back in rows:
        forward[part] += ahead
        backward[part] += back
    there = [part for part in PARTS if forward[part]]
    return Cost({part: forward[part] for part in there}, {part: backward[part] for part in there})
