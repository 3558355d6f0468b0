"""Small valid inputs that mutations begin with: checkpoints, recordings, tables and recipes."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import soundfile

from fuzz.mutations import (
    BYTES,
    TEXT,
    Mutation,
    json_tree,
    yaml_text,
    zip_pickle,
    zip_structure,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoints" / "fp16_pretrain.pt"
TORCH = (*BYTES, *(zip_pickle,) * 12, *(zip_structure,) * 6)
JSON = (*BYTES, *(json_tree,) * 20)
TABLE = (*TEXT, *TEXT, *BYTES)
RECIPE = (*(yaml_text,) * 10, *BYTES[:4])
SHAPES = {
    "eat": {"embed_dim": 16, "depth": 1, "num_heads": 2, "pos_length": 2},
    "beats": {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_attention_heads": 2}
    | {"encoder_ffn_embed_dim": 16, "embed_dim": 8, "conv_pos": 4, "conv_pos_groups": 2},
    "audiomae": {"embed_dim": 16, "depth": 1, "num_heads": 2, "pos_length": 2},
    "bat": {"embed_dim": 16, "depth": 1, "num_heads": 2, "pos_length": 2},
    "ced": {"embed_dim": 16, "depth": 1, "num_heads": 2, "pos_length": 2},
}


@dataclass(frozen=True)
class Seed:
    """A valid input and what of it is changed."""

    name: str
    place: Path
    """A file, or a folder of which one file is changed."""
    mutations: tuple[Mutation, ...]
    inside: str = ""
    """The file that is changed, where the input is a folder."""
    opened: str = ""
    """What of the folder is given to the command; the folder itself by default."""

    def write(self, out: Path, random: Random, others: list[bytes]) -> tuple[Path, str]:
        """Write a changed copy; where it lies, and what was done to it."""
        source = self.place / self.inside if self.inside else self.place
        data, steps = source.read_bytes(), []
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            if others and random.random() < 0.05:
                data, step = data + random.choice(others), "joined"
            else:
                change = random.choice(self.mutations)
                step = change.__name__
                try:
                    data = change(data, random)
                except Exception:  # it is too damaged for that: by bytes, then
                    data, step = random.choice(BYTES)(data, random), f"{step}, bytes"
            steps.append(step)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        if not self.inside:
            (out / self.place.name).write_bytes(data)
            return out / self.place.name, "+".join(steps)
        target = out / self.place.name
        shutil.copytree(self.place, target, copy_function=os.link, symlinks=True)
        (target / self.inside).unlink()
        (target / self.inside).write_bytes(data)
        return target / self.opened if self.opened else target, "+".join(steps)


# ---- checkpoints


def checkpoints(folder: Path) -> list[Seed]:
    """Released `.pt` files, Hugging Face folders, folders in parts, and runs."""
    from eat_audio.checkpoints.convert import LAYOUTS, write
    from eat_audio.models import model_types

    seeds = [Seed("golden.pt", GOLDEN, TORCH)]
    for method, spec in model_types().items():
        pooling = "cls" if method in ("bat", "eat") else "mean"
        for classifies in (False, True):
            config = spec.config(**SHAPES[method])
            if classifies:
                config = config.for_labels(
                    ("dog", "rain"), several=False, drop_path=0.0, pooling=pooling
                )
            model = (spec.classifier if classifies else spec.encoder)(config)
            name = f"{method}_{'classifier' if classifies else 'encoder'}"
            for layout in LAYOUTS:
                place = folder / f"{name}_{layout}{'.pt' if layout == 'released' else ''}"
                folders = {"eat": (False, True), "bat": (False,)}  # of released classifiers none
                if layout == "released-hf" and classifies not in folders.get(method, ()):
                    continue
                write(model.eval(), spec.feature_extractor(), place, layout=layout)
                seeds += _of_model(place)
            if classifies:
                place = folder / f"{name}_parts"
                model.save_pretrained(place, max_shard_size="4KB")
                spec.feature_extractor().save_pretrained(place)
                index = "model.safetensors.index.json"
                assert (place / index).is_file()
                seeds += [Seed(f"{name} {index}", place, JSON, index)] * 2
    return seeds + _runs(folder)


def _of_model(place: Path) -> list[Seed]:
    if place.is_file():
        return [Seed(place.name, place, TORCH)] * 6
    tensors = (*BYTES, *(safetensors_head,) * 6)
    inside = {"config.json": JSON, "preprocessor_config.json": JSON, "model.safetensors": tensors}
    return [Seed(f"{place.name} {name}", place, kind, name) for name, kind in inside.items()]


def safetensors_head(data: bytes, random: Random) -> bytes:
    """The JSON of a safetensors file with one value of the wrong kind."""
    size = int.from_bytes(data[:8], "little")
    head = json_tree(data[8 : 8 + size], random)
    claimed = len(head) if random.random() < 0.9 else random.choice((0, 2**31, 2**62, size))
    return claimed.to_bytes(8, "little") + head + data[8 + size :]


def _runs(folder: Path) -> list[Seed]:
    """A run of one step: its record, and those of its checkpoint."""
    import sys

    from eat_audio import cli

    sound = folder / "sound"
    sound.mkdir()
    for n in range(2):
        soundfile.write(sound / f"{n}.wav", tone(2.0, 16_000), 16_000)
    run = folder / "run"
    small = "encoder.embed_dim=32 encoder.depth=1 encoder.num_heads=2 batch=2 clips.seconds=2"
    words = (
        f"pretrain eat_tiny data={sound} {small} steps=2 optim.warmup=1 save_every=1 --out {run}"
    )
    before, sys.argv = sys.argv, ["eat", *words.split()]
    try:
        cli.main()
    except SystemExit as ended:
        assert ended.code == 0
    finally:
        sys.argv = before
    (newest,) = sorted((run / "checkpoints").iterdir())[-1:]
    inside = str(newest.relative_to(run))
    seeds = [Seed(f"run {name}", run, JSON, name) for name in ("run.json", "config.json")]
    seeds += [
        Seed(f"step {name}", run, JSON, f"{inside}/{name}", inside)
        for name in ("run.json", "config.json", "preprocessor_config.json")
    ]
    return seeds


# ---- recordings


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    sound = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.05 * np.random.default_rng(0).standard_normal(
        len(time)
    )
    return np.stack([sound * (1 - 0.3 * c) for c in range(channels)], axis=1)


LIBSNDFILE = (
    *(("WAV", "PCM_U8", 8_000, 1), ("WAV", "PCM_16", 16_000, 1), ("WAV", "PCM_24", 16_000, 2)),
    *(("WAV", "PCM_32", 44_100, 1), ("WAV", "FLOAT", 16_000, 1), ("WAV", "DOUBLE", 8_000, 2)),
    *(("WAV", "ULAW", 8_000, 1), ("WAV", "ALAW", 8_000, 1), ("WAV", "IMA_ADPCM", 16_000, 1)),
    *(("WAV", "MS_ADPCM", 16_000, 1), ("WAV", "GSM610", 8_000, 1), ("WAVEX", "PCM_24", 48_000, 2)),
    *(("RF64", "PCM_16", 16_000, 1), ("W64", "PCM_16", 16_000, 2), ("AIFF", "PCM_16", 16_000, 1)),
    *(("AIFF", "FLOAT", 16_000, 1), ("AU", "PCM_16", 16_000, 1), ("AU", "ULAW", 8_000, 1)),
    *(("CAF", "PCM_16", 16_000, 1), ("CAF", "ALAC_16", 16_000, 1), ("FLAC", "PCM_16", 16_000, 2)),
    *(("FLAC", "PCM_24", 48_000, 1), ("OGG", "VORBIS", 16_000, 1), ("OGG", "OPUS", 16_000, 2)),
    *(("MP3", "MPEG_LAYER_III", 16_000, 1), ("NIST", "PCM_16", 16_000, 1)),
    *(("VOC", "PCM_16", 16_000, 1), ("SVX", "PCM_16", 16_000, 1), ("IRCAM", "FLOAT", 16_000, 1)),
)
"""Format, encoding, Hz and channels of what soundfile writes."""
PYAV = (
    *(
        ("mp4", "aac", "m4a", 44_100),
        ("adts", "aac", "aac", 16_000),
        ("webm", "libopus", "", 48_000),
    ),
    *(
        ("matroska", "libmp3lame", "mka", 44_100),
        ("matroska", "flac", "mkv", 16_000),
        ("asf", "wmav2", "wma", 44_100),
    ),
    *(("ac3", "ac3", "", 48_000), ("mp2", "mp2", "", 44_100), ("tta", "tta", "", 16_000)),
    *(("wv", "wavpack", "", 16_000), ("flv", "aac", "", 44_100), ("avi", "pcm_s16le", "", 16_000)),
    *(
        ("mpegts", "mp2", "ts", 44_100),
        ("ogg", "flac", "oga", 16_000),
        ("mp4", "alac", "mp4", 16_000),
    ),
    *(
        ("mp3", "libmp3lame", "mp3", 44_100),
        ("mov", "pcm_s16be", "mov", 16_000),
        ("caf", "alac", "caf", 16_000),
    ),
)
"""Container, codec, suffix (the container's name by default) and Hz of what PyAV writes."""


def recordings(folder: Path) -> list[Seed]:
    """A third of a second of sound in every format that a library here can write."""
    return [Seed(path.name, path, BYTES) for path in _recordings(folder)]


def _recordings(folder: Path) -> Iterator[Path]:
    for kind, subtype, rate, channels in LIBSNDFILE:
        path = folder / f"{kind}_{subtype}.{kind}".lower()
        soundfile.write(path, tone(0.3, rate, channels), rate, format=kind, subtype=subtype)
        yield path
    from importlib.util import find_spec

    if find_spec("av") is None:
        return
    for container, codec, suffix, rate in PYAV:
        path = folder / f"{container}_{codec}.{suffix or container}"
        if written := encoded(container, codec, rate):
            path.write_bytes(written)
            yield path


def encoded(container: str, codec: str, rate: int, seconds: float = 0.3) -> bytes:
    """A tone as a container of PyAV; nothing where the codec is not there."""
    import av

    if codec not in av.codecs_available:
        return b""
    held = io.BytesIO()
    with av.open(held, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64_000
        kind = stream.codec_context.format or av.AudioFormat("s16")
        frame = av.AudioFrame.from_ndarray(
            (tone(seconds, rate).T * 32_767).astype(np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = rate
        converter = av.AudioResampler(kind.name, "mono", rate, stream.codec_context.frame_size)
        for part in (*converter.resample(frame), *converter.resample(None), None):
            output.mux([packet for packet in stream.encode(part) if packet.size])
    return held.getvalue()


# ---- tables, indexes and recipes


def tables(folder: Path) -> list[Seed]:
    """Manifests in every form that is understood, shards and recipes."""
    return [*_manifests(folder), *_packed(folder), *_recipes(folder)]


def _manifests(folder: Path) -> Iterator[Seed]:
    names = [f"{n}.wav" for n in range(4)]
    forms = {
        "labels.csv": ["path,label", *(f"{name},{'ab'[n % 2]}" for n, name in enumerate(names))],
        "splits.csv": [
            "path,label,split,start,seconds",
            *(f"{name},a,{split},0,0.2" for name in names for split in ("train",)),
        ],
        "times.csv": [
            "path,label,start,end",
            *(
                f"{name},{label},{s},{s + 0.1}"
                for name in names
                for s, label in ((0, "a"), (0.1, "b"))
            ),
        ],
        "several.csv": [
            "path,labels",
            *(f'{name},"a;b"' for name in names[:2]),
            "2.wav,a",
            "3.wav,",
        ],
        "metadata.csv": ["file_name,label", *(f"{name},a" for name in names)],
        "raven.csv": [
            "Begin File,Begin Time (s),End Time (s),label",
            *(f"{name},0.0,0.2,a" for name in names),
        ],
        "train.tsv": [".", *(f"{name}\t3200" for name in names)],
        "label_descriptors.csv": ["0,/m/a,Speech", "1,/m/b,Dog"],
        "train.lbl": ["0\t/m/a", "1\t/m/b", "2\t/m/a,/m/b", "3\t/m/b"],
        "statistics.json": ['{"mean": -4.2, "std": 2.5}'],
    }
    one = folder / "manifests"
    one.mkdir()
    for number, name in enumerate(names):
        soundfile.write(one / name, tone(0.2, 16_000) * (1 + number), 16_000)
    for name, lines in forms.items():
        (one / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in forms:
        opened = name if name.endswith((".csv", ".tsv")) else "train.tsv"
        opened = "train.tsv" if name == "label_descriptors.csv" else opened
        kind = JSON if name.endswith(".json") else TABLE
        yield from [Seed(f"manifests {name}", one, kind, name, opened)] * 3

    words = folder / "words"
    for word in ("yes", "no"):
        (words / word).mkdir(parents=True)
        for n in range(3):
            shutil.copy(one / f"{n}.wav", words / word / f"{n}.wav")
    (words / "testing_list.txt").write_text("yes/0.wav\nno/0.wav\n", encoding="utf-8")
    (words / "validation_list.txt").write_text("yes/1.wav\n", encoding="utf-8")
    for name in ("testing_list.txt", "validation_list.txt"):
        yield Seed(f"words {name}", words, TABLE, name)

    esc = folder / "esc"
    (esc / "meta").mkdir(parents=True)
    shutil.copytree(
        one, esc / "audio", ignore=lambda _, found: [n for n in found if ".wav" not in n]
    )
    lines = [f"{n}.wav,{n + 1},{n % 2},{('dog', 'rain')[n % 2]},True,1,A" for n in range(4)]
    (esc / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n" + "\n".join(lines) + "\n"
    )
    yield from [Seed("esc meta", esc, TABLE, "meta/esc50.csv")] * 2

    urban = folder / "urban"
    (urban / "metadata").mkdir(parents=True)
    for n in range(4):
        (urban / "audio" / f"fold{n + 1}").mkdir(parents=True)
        shutil.copy(one / f"{n}.wav", urban / "audio" / f"fold{n + 1}" / f"{n}.wav")
    lines = [f"{n}.wav,{n},0.0,0.2,1,{n + 1},{n % 2},{('dog', 'rain')[n % 2]}" for n in range(4)]
    (urban / "metadata" / "UrbanSound8K.csv").write_text(
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n" + "\n".join(lines) + "\n"
    )
    yield from [Seed("urban metadata", urban, TABLE, "metadata/UrbanSound8K.csv")] * 2


def _packed(folder: Path) -> Iterator[Seed]:
    from eat_audio.data.datasets import open_corpus
    from eat_audio.data.shards import pack

    pack(open_corpus(folder / "manifests" / "labels.csv"), folder / "packed")
    yield from [Seed("packed index", folder / "packed", BYTES, "index.parquet")] * 8
    yield from [Seed("packed about", folder / "packed", JSON, "shards.json")] * 5


def _recipes(folder: Path) -> Iterator[Seed]:
    (folder / "mine.yaml").write_text(
        "extends: eat_tiny\nencoder: {embed_dim: 32, depth: 1, num_heads: 2}\nbatch: 4\n"
        "tau: {start: 0.99, end: 0.998, steps: 480}\nclips: {seconds: 2.0}\n"
        "optim: {lr: 2.0e-3, warmup: 6}\nsteps: 60\ndata: nowhere\n"
    )
    (folder / "chain.yaml").write_text(
        "stages: [beats_tiny_iter1, beats_tiny_tokenizer, beats_tiny_iter2]\n"
    )
    yield from [Seed("mine.yaml", folder / "mine.yaml", RECIPE)] * 10
    yield from [Seed("chain.yaml", folder / "chain.yaml", RECIPE)] * 2


KINDS: dict[str, Callable[[Path], list[Seed]]] = {
    "checkpoints": checkpoints,
    "recordings": recordings,
    "tables": tables,
}
