"""Files and folders -> recordings."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from eat_audio.errors import AudioError

AUDIO_SUFFIXES = frozenset(
    ".wav .wave .w64 .rf64 .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf "
    ".m4a .m4b .mp4 .mov .3gp .aac .webm .mka .mkv .wma .amr .ac3 "
    ".mp2 .wv .tta .ape .avi .flv .mpg".split()
)
"""What a folder is searched for, in lower case."""


def find_audio(places: Iterable[str | Path]) -> list[Path]:
    """All recordings among files (as given) and in folders (at any depth, by `AUDIO_SUFFIXES`).

    Links are followed. Two names are two recordings, even if both are links to the same file, as in
    stores that keep equal files once; a folder that links lead to again is searched once.

    Returns:
        Sorted paths, each once; dangling links are left out.

    Raises:
        AudioError: A place does not exist, or a folder cannot be listed.
    """
    found: list[Path] = []
    folders: set[str] = set()  # real paths of those already searched: links can lead in circles
    for place in map(Path, places):
        if os.path.isdir(place):
            found += _in_folder(place, folders)
        elif os.path.exists(place):
            found.append(place)
        else:
            raise AudioError(f"{place}: no such file or folder")
    real: dict[str, str] = {}  # folder -> real folder

    def once(path: Path) -> tuple[str, str]:
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        return real[folder], name

    return sorted({once(path): path for path in sorted(found, reverse=True)}.values())


def _in_folder(place: Path, searched: set[str]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise AudioError(f"{error.filename}: cannot be searched ({error.strerror})") from error

    for folder, below, names in os.walk(place, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(folder)) in searched:
            below.clear()
            continue
        searched.add(real)
        below.sort()
        paths = (Path(folder, name) for name in names)
        yield from (p for p in paths if p.suffix.lower() in AUDIO_SUFFIXES and os.path.isfile(p))
