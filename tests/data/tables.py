"""Small manifests and tables."""

from pathlib import Path

from hypothesis import strategies as st

from eat_audio.data.corpus import Corpus


def labels_by_id(corpus: Corpus) -> dict[str, list[str]]:
    return {clip.id: [corpus.label_names[n] for n in clip.labels] for clip in corpus.clips}


def table(folder: Path, text: str) -> Path:
    (folder / "clips.csv").write_text(text, encoding="utf-8", newline="")
    return folder / "clips.csv"


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30
).filter(lambda name: name not in (".", "..") and name.strip())
