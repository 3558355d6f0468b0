"""Pages of the documentation, cut into blocks, and the folder that their reader has.

A block of `sh`, `python` or `yaml` runs as it stands, in the order of its page; one below a comment
`<!-- not run: REASON -->` does not, but its commands are parsed. All others are `text`.
"""

import re
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from conftest import ROOT, golden_sets
from eat_audio.data.synthetic import write_corpus
from eat_audio.models.common.feature_extraction import EATFeatureExtractor
from eat_audio.models.eat.modeling import EATConfig, EATForAudioClassification, EATModel

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if "_build" not in path.parts
)
BLOCK = re.compile(
    r"(?:^ *<!-- not run: ([^>]*) -->\n)?^( *)```([^\n`]*)\n(.*?)^\2```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it does not run ("" if it does)."""

    language: str
    text: str
    reason: str

    def lines(self) -> list[list[str]]:
        """Words of every line of a shell, without comments."""
        joined = self.text.replace("\\\n", " ")
        lines = (shlex.split(line, comments=True) for line in joined.splitlines())
        return [words for words in lines if words]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in their order."""
    found = BLOCK.findall(text_of(page))
    return [Block(language, text, reason) for reason, _, language, text in found]


def eat_words(words: list[str]) -> list[str]:
    """The words of an `eat` command, however it is started; none for another program."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[:1] == ["torchrun"]:
        words = ["eat", *words[words.index("eat_audio") + 1 :]]
    words = words[: words.index(">")] if ">" in words else words
    return words if words[:1] == ["eat"] else []


def write_sounds(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        seed = list(f"{root.name}/{name}".encode())
        soundfile.write(root / name, np.random.default_rng(seed).uniform(-0.5, 0.5, 17_600), 16_000)


def write_model(folder: Path, *, labels: bool) -> None:
    """A small EAT with random weights."""
    small = {"embed_dim": 12, "depth": 1, "num_heads": 3, "id2label": {0: "cat", 1: "dog"}}
    config = EATConfig(**small, problem_type="single_label_classification")
    (EATForAudioClassification if labels else EATModel)(config).save_pretrained(folder)
    EATFeatureExtractor().save_pretrained(folder)


def write_folder(root: Path) -> None:
    """Recordings, and corpora in the layouts of the page about data."""
    write_sounds(root, "dog.wav")
    write_sounds(root / "recordings", "dog/a.wav", "dog/b.flac", "cat/c.wav", "cat/d.wav")
    write_corpus(root / "ESC-10", clips_per_family=3, seconds=1.0, seed=0)
    for name in ("dog", "rain"):
        write_sounds(root / "labeled", *(f"{name}/{n}.wav" for n in range(1, 6)))
    for folder in ("pool", "mine", "birds"):
        write_sounds(root / folder, *(f"{n}.wav" for n in range(4)))
    rows = ["file,onset,offset,label", "recordings/dog/a.wav,0.2,0.6,dog"]
    rows += ["recordings/cat/c.wav,0,1,cat", "recordings/dog/b.flac,,,", "recordings/cat/d.wav,,,"]
    (root / "annotated.csv").write_text("\n".join(rows), encoding="utf-8")
    write_audioset(root)
    write_esc50(root / "ESC-50")
    write_sounds(root / "speech_commands", "yes/a.wav", "no/b.wav", "_background_noise_/hum.wav")
    for name in ("validation_list.txt", "testing_list.txt"):
        (root / "speech_commands" / name).write_text("yes/a.wav\n", encoding="utf-8")
    clips = [f"pool/{n}.wav\t17600" for n in range(4)]
    (root / "as2m.tsv").write_text("\n".join([str(root), *clips]) + "\n", encoding="utf-8")
    (root / "tars").mkdir()
    with tarfile.open(root / "tars" / "a.tar", "w") as tar:
        for n in range(4):
            tar.add(root / "pool" / f"{n}.wav", f"{n}.wav")
    shutil.copy(golden_sets("fp16_pretrain.pt")[0], root / "released.pt")
    (root / "examples").symlink_to(ROOT / "examples")


def write_audioset(root: Path) -> None:
    sounds = ("anything/you/like/-0RWZT-miFs.wav", "Y_0RWZT-miFs_30.000.flac")
    write_sounds(root / "audioset", *sounds)
    for folder, lists in {"audioset": ["unbalanced_train", "eval"], "lists": ["eval"]}.items():
        (root / folder).mkdir(exist_ok=True)
        for name, clip in zip(reversed(lists), ("-0RWZT-miFs", "_0RWZT-miFs"), strict=False):
            text = f'# YTID, start_seconds, ...\n{clip}, 30.000, 40.000, "/m/09x0r,/m/0bt9lr"\n'
            (root / folder / f"{name}_segments.csv").write_text(text, encoding="utf-8")


def write_esc50(folder: Path) -> None:
    clips = [f"{fold}-100032-A-{target}.wav" for fold in (1, 2) for target in (0, 38)]
    write_sounds(folder / "audio", *clips)
    (folder / "meta").mkdir()
    rows = [f"{clip},{clip[0]},{clip.split('-')[-1][:-4]},class {clip[-6:-4]}\n" for clip in clips]
    table = "filename,fold,target,category\n" + "".join(rows)
    (folder / "meta" / "esc50.csv").write_text(table, encoding="utf-8")
