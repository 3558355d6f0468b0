"""Recognize files by how they begin: formats of audio, and what is plainly no audio."""

CONTAINERS = (  # what libsndfile does not read: its mark, where that is, ffmpeg's name, a name
    (b"ftyp", 4, "mov", "MPEG-4 (m4a, mp4)"),
    (b"\x1a\x45\xdf\xa3", 0, "matroska", "WebM or Matroska"),
    (b"\xff\xf1", 0, "aac", "AAC (ADTS)"),
    (b"\xff\xf9", 0, "aac", "AAC (ADTS)"),
    (b"\x30\x26\xb2\x75", 0, "asf", "Windows Media (wma)"),
    (b"#!AMR", 0, "amr", "AMR"),
    (b"\x0b\x77", 0, "ac3", "AC-3"),
)
SNDFILE_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"OggS", b"fLaC", b".snd", b"caff", b"riff")
"""How files begin that are certainly no MPEG audio."""
PAGE = "is a web page (HTML), not sound"
ANNEX = "is a pointer of git-annex, not sound: run git annex get"
TEXTS = (  # the beginning, in lower case; the sentence
    (b"version https://git-lfs.github", "is a Git LFS pointer, not sound: run git lfs pull"),
    (b"/annex/objects/", ANNEX),
    (b"../.git/annex/objects/", ANNEX),
    (b".git/annex/objects/", ANNEX),
    (b"<!doctype html", PAGE),
    (b"<html", PAGE),
    (b"<?xml", "is XML, not sound"),
    (b"{\\rtf", "is a text (RTF), not sound"),
    (b"{", "is JSON, not sound"),
    (b"[", "is JSON, not sound"),
    (b"%pdf-", "is a PDF, not sound"),
)
BINARIES = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"MThd", "MIDI: notes, not sound"),
    (b"\x89HDF", "HDF5"),
    (b"PAR1", "Parquet"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3", "a database"),
)


def not_audio(head: bytes, name: str) -> str | None:
    """Return what a file is that is plainly no audio, as a sentence; None if it may be.

    Args:
        head: Its first `HEAD` bytes.
        name: Its name.
    """
    for mark, kind in BINARIES:
        if head.startswith(mark):
            return f"cannot be read as audio (it is {kind})"
    text = _text(head, "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    if text is None:
        return None
    begins = text.strip().lower().encode()
    for mark, sentence in TEXTS:
        if begins.startswith(mark):
            return sentence
    line = text.strip().splitlines()[0] if text.strip() else ""
    table = name.lower().endswith((".csv", ".tsv", ".tab")) or "\t" in line or line.count(",") > 1
    kind = "a table" if table and line else "text"
    return f"cannot be read as audio (it is {kind}; a recording is expected)"


def _text(head: bytes, encoding: str) -> str | None:
    """The text of a file that begins with these bytes; None if it is none."""
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = head[: error.start].decode(encoding, errors="replace")
    return text if text.translate({9: None, 10: None, 13: None}).isprintable() else None
