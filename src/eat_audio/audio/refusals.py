"""What is plainly something else than sound, so that it can be named."""

TEXTS = (  # how it begins, in lower case; what it is
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, not sound: run git lfs pull",
    ),
    (b"/annex/objects/", "is a pointer of git-annex, not sound: run git annex get"),
    (b"../.git/annex/objects/", "is a pointer of git-annex, not sound: run git annex get"),
    (b".git/annex/objects/", "is a pointer of git-annex, not sound: run git annex get"),
    (b"<!doctype html", "is a web page (HTML), not sound"),
    (b"<html", "is a web page (HTML), not sound"),
    (b"<?xml", "is XML, not sound"),
    (b"{\\rtf", "is a text (RTF), not sound"),
    (b"{", "is JSON, not sound"),
    (b"[", "is JSON, not sound"),
    (b"%pdf-", "is a PDF, not sound"),
)
OTHERS = (
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


def no_sound(head: bytes, name: str) -> str | None:
    """Say what a file is that begins with these bytes, if it is plainly something else than sound.

    Args:
        head: Its first `HEAD` bytes.
        name: What it is called.
    """
    for mark, kind in OTHERS:
        if head.startswith(mark):
            return f"cannot be read as audio (it is {kind})"
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = _text(head, encoding)
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
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = head[: error.start].decode(encoding, errors="replace")
    return (
        text if text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable() else None
    )
