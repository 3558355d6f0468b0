"""Read files at URLs: by ranges, with a few tries, time limits and bounded sizes.

Web servers are read with the standard library. Stores (`s3://`, `gs://`, ...) are fsspec's; those
of S3 sign URLs, which are then read like any other, so that the same limits hold.
"""

import io
import os
import posixpath
import shutil
import tempfile
import threading
import time
import urllib.request
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote

from eat_audio.audio import AUDIO_SUFFIXES, AudioFile
from eat_audio.errors import AudioError, DataError, EatError
from eat_audio.text import shortened

WAIT = 30.0
"""Seconds until a server that sends nothing is given up; also for one call of a store."""
SLOWEST = 1_000.0
"""Bytes a second: for so many more that came, a server has a second more."""
TRIES, BACKOFF = 4, 0.5
"""Requests until a busy server is given up, and seconds before the second one, then doubled."""
BUSY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP codes of servers that may answer the next time."""
HEAD, IN_PARTS = 16, (b"RIFF", b"RIFX", b"RF64", b"fLaC")
"""Bytes by which formats are distinguished, and those that can be read in parts."""
LARGEST = 2**32
"""Bytes of a recording that is copied."""
BLOCK, BLOCKS = 4 * 2**20, 4
"""Bytes of a recording that are read at a time, and how many such blocks are kept."""
UNDIVIDED = 2**28
"""The most bytes of a recording in memory, as where a server does not send parts."""
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, TimeoutError)
"""Errors of stores after which another try is no use."""
CHANGED = ("LastModified", "last_modified", "mtime", "updated", "created")
"""Names that stores give to the time of the last change."""
SIGNED_SECONDS = 3_600
"""How long a signed URL is valid."""
LEGAL = "%:/?#[]@!$&'()*+,;=~"
"""Characters that stay as they are in a URL; spaces and letters beyond ASCII are quoted."""
SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
"""Where a manifest may point to, if it may at all."""

T = TypeVar("T")


def is_url(path: str | Path) -> bool:
    """Return whether a file is named by a URL ("s3://bucket/key") and not by a path."""
    return isinstance(path, str) and "://" in path


def read_url(url: str, first: int = 0, size: int | None = None, *, most: int) -> bytes:
    """Return `size` bytes of a URL from `first` on, or all of it if that is not more than `most`.

    Raises:
        DataError: It cannot be read, is too large, comes too slowly, or in another size.
    """
    if size is not None and size > most:
        raise too_large(url, most)
    if web := _web_url(url):
        request = _Request(url, web, first, most if size is None else size, size is not None)
        return request.run()
    store, path = _store(url)
    length = _within(url, partial(store.size, path))
    if size is None:
        size = length - first
    if not 0 <= first <= first + size <= length:
        raise DataError(f"{url}: no bytes {first} to {first + size}, which has {length}")
    if size > most:
        raise too_large(url, most)
    parts = []
    for start in range(first, first + size, BLOCK):
        end = min(start + BLOCK, first + size)
        parts.append(_within(url, partial(store.cat_file, path, start=start, end=end)))
    return b"".join(parts)


def recording_at(url: str) -> AudioFile:
    """Return the recording at a URL.

    Of WAV and FLAC, only what is decoded is read. Others, whose length or whose ends have to be
    searched for, are copied to a temporary file; the last copy is kept.
    """

    def open_url() -> io.RawIOBase:
        try:
            copy: _Copy | None = getattr(_last, "copy", None)
            if copy is None or copy.url != url:
                file = RangeFile(url)
                if file.head.startswith(IN_PARTS):
                    return file
                _last.copy = None
                with file:
                    copy = _Copy(file)
                _last.copy = copy  # only now: an error while it was copied is raised at the end
            return open(copy.path, "rb", buffering=0)
        except DataError as error:
            raise AudioError(*error.args) from error
        except OSError as error:
            reason = error.strerror or error
            raise AudioError(f"{url}: cannot be copied to a temporary file ({reason})") from error

    return AudioFile(url, open_url)


def recordings_below(url: str) -> list[str]:
    """Return the URLs of the recordings in a folder of a store, or that match a pattern.

    One that ends like a recording, and any of a web server, is returned as it is.

    Raises:
        DataError: The store cannot be listed.
        AudioError: There are no recordings.
    """
    is_pattern = any(mark in url for mark in "*?[")
    is_web = url.lower().startswith(("http://", "https://"))
    if is_web or (_is_audio(url) and not is_pattern):
        return [url]
    store, path = _store(url)
    names = _within(url, partial(store.glob if is_pattern else store.find, path), WAIT * TRIES)
    urls = [store.unstrip_protocol(one) for one in sorted(names) if _is_audio(one)]
    if not urls:
        raise AudioError(f"{url}: no recordings there")
    return urls


def version_of(url: str) -> tuple[int, int] | None:
    """Return the size and the time of the last change (ns) of a file; None if they are not known.

    What cannot be reached is not known either: reading it will say why.
    """
    try:
        if url.lower().startswith(("http://", "https://")):
            return _answer(partial(_version_on_web, url), WAIT)
        store, path = _store(url)
        info = _answer(partial(store.info, path), WAIT)
    except Exception:  # every kind of store has its own
        return None
    changed = next((info[name] for name in CHANGED if info.get(name)), None)
    seconds = changed.timestamp() if isinstance(changed, datetime) else None
    return None if seconds is None else (int(info["size"]), round(seconds * 1e9))


def _version_on_web(url: str) -> tuple[int, int] | None:
    request = urllib.request.Request(quote(url, safe=LEGAL), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as response:
            size, changed = (response.headers.get(n) for n in ("Content-Length", "Last-Modified"))
    except HTTPError as error:
        error.close()
        return None
    if not size or not changed:
        return None
    return int(size), round(parsedate_to_datetime(changed).timestamp() * 1e9)


def joined_url(folder: str, name: str) -> str:
    """Return the URL of a file below a folder's.

    Raises:
        DataError: It would not be below.
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "..")) or "?" in path or "#" in path:
        raise DataError(f"{name!r} is not below {folder}")
    return f"{folder.rstrip('/')}/{path}"


def allow_remote(allowed: bool = True) -> None:
    """Let manifests name files by URLs: the files would be requested from where they say."""
    _allowed.set(allowed)


_allowed: ContextVar[bool] = ContextVar("allowed", default=False)


def remote_file(url: str, where: str) -> str:
    """Return the URL of a file that a manifest names, if that is allowed.

    Raises:
        DataError: It is not, or it is no URL of another machine.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES or "::" in url:
        known = ", ".join(SCHEMES)
        raise DataError(f"{where}: {shortened(url)}: expected a file or a URL of {known}")
    if not _allowed.get():
        raise DataError(
            f"{where}: {shortened(url)} is a URL; expected a file on this machine (--allow-remote "
            "reads files from where a manifest says)"
        )
    return url


def too_large(location: object, most: int) -> DataError:
    return DataError(f"{location}: is larger than the {most} bytes that are expected at most")


def unreadable(location: object, reason: object) -> DataError:
    return DataError(f"{location}: cannot be read ({reason})")


class _Copy:
    """A temporary copy of a file, which is removed with this object."""

    def __init__(self, remote: "RangeFile") -> None:
        self.url = remote.url
        descriptor, self.path = tempfile.mkstemp(prefix="eat_audio_")
        weakref.finalize(self, os.unlink, self.path)
        with open(descriptor, "wb") as file:
            if remote.seek(0, io.SEEK_END) > LARGEST:
                raise too_large(self.url, LARGEST)
            remote.seek(0)
            shutil.copyfileobj(remote, file, BLOCK)


_last = threading.local()
"""The copy of the last recording that a thread has opened."""


class RangeFile(io.RawIOBase):
    """A file at a URL, opened to be read: blocks are fetched when they are needed.

    Decoders in C cannot pass errors on. So an error ends the file, and is raised when the file is
    closed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._error: DataError | None = None
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._size = self._open()

    def _open(self) -> int:
        """Fetch the first block; return the size of the file."""
        if web := _web_url(self.url):
            request = _Request(self.url, web, 0, BLOCK, False, ranged=True)
            self._blocks[0] = request.run()
            if request.total is None and request.ranged:
                raise unreadable(self.url, "the server does not say how long it is")
            return len(self._blocks[0]) if request.total is None else request.total
        store, path = _store(self.url)
        return _within(self.url, partial(store.size, path))

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            first = number * BLOCK
            size = min(BLOCK, self._size - first)
            self._blocks[number] = read_url(self.url, first, size, most=BLOCK)
            while len(self._blocks) > BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    @property
    def head(self) -> bytes:
        """The first bytes, or all of a small file."""
        return self._block(0)[:HEAD]

    def readall(self) -> bytes:
        """Return all bytes that are left, if memory may hold them."""
        if self._size - self._position > UNDIVIDED:
            self._error = too_large(self.url, UNDIVIDED)
            return b""
        return super().readall()

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as bytes are left: decoders take less for the end."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and self._position < self._size and self._error is None:
            whole = len(self._blocks.get(0, b"")) > BLOCK  # of a server that sends no parts
            number = 0 if whole else self._position // BLOCK
            try:
                block = self._block(number)
            except DataError as error:
                self._error = error
                break
            first = self._position - number * BLOCK
            part = block[first : first + len(view) - filled]
            view[filled : filled + len(part)] = part
            self._position += len(part)
            filled += len(part)
        return filled

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        interrupted = kind is not None and not issubclass(kind, Exception)
        if self._error is not None and not interrupted:
            raise AudioError(*self._error.args) from error


class _Request:
    """Bytes of a web server, read by a thread with a deadline that moves on with what came.

    A server may send headers, or anything else, a byte at a time; no socket timeout ends that.
    A request that breaks off goes on from where it was.

    Args:
        url: Its name in messages.
        web: What is requested.
        first: Where to begin, in bytes.
        size: How many bytes at most.
        exact: Whether exactly so many are expected.
        ranged: Whether only a part is requested though the size is not known.
    """

    def __init__(
        self, url: str, web: str, first: int, size: int, exact: bool, *, ranged: bool = False
    ) -> None:
        self.url, self.web, self.first, self.size, self.exact = url, web, first, size, exact
        self.ranged = ranged or exact
        self.total: int | None = None
        """The length of the file, if the server says so."""
        self.data = bytearray()
        self.most = size
        self.stopped = threading.Event()

    def run(self) -> bytes:
        """Return the bytes, or raise DataError."""
        errors: list[Exception] = []

        def work() -> None:
            try:
                self._tries()
            except Exception as error:
                errors.append(error)

        thread, start = threading.Thread(target=work, daemon=True), time.monotonic()
        thread.start()
        while thread.is_alive():
            spent = time.monotonic() - start
            left = WAIT + len(self.data) / SLOWEST - spent
            if left <= 0:
                self.stopped.set()
                raise unreadable(self.url, f"{len(self.data)} bytes came in {spent:.0f} seconds")
            thread.join(left)
        for error in errors:
            if isinstance(error, OSError | ValueError | HTTPException):
                raise unreadable(self.url, getattr(error, "reason", error) or error) from error
            raise error
        if len(self.data) > self.most:
            raise too_large(self.url, self.most)
        if self.exact and len(self.data) != self.size:
            raise DataError(f"{self.url}: {len(self.data)} bytes came, {self.size} were expected")
        return bytes(self.data)

    def _tries(self) -> None:
        for number in range(TRIES):
            try:
                self._try()
                return
            except (OSError, HTTPException) as error:
                if isinstance(error, HTTPError):
                    error.close()
                busy = not isinstance(error, HTTPError) or error.code in BUSY
                if number + 1 == TRIES or not busy or self.stopped.wait(BACKOFF * 2**number):
                    raise

    def _try(self) -> None:
        headers = {}
        start = self.first + len(self.data)
        if self.ranged or self.data:
            end = "" if not self.ranged else self.first + self.size - 1
            headers["Range"] = f"bytes={start}-{end}"
        request = urllib.request.Request(self.web, headers=headers)
        with urllib.request.urlopen(request, timeout=WAIT) as response:
            part = response.headers.get("Content-Range", "")
            if headers and not (response.status == 206 and part.startswith(f"bytes {start}-")):
                if self.exact:
                    raise DataError(f"{self.url}: the server does not send parts of files")
                self.data.clear()
                self.most = UNDIVIDED if self.ranged else self.most
                self.ranged, part = False, ""
            if part.rpartition("/")[2].isdecimal():
                self.total = int(part.rpartition("/")[2])
            expected = response.length
            begun = len(self.data)
            while not self.stopped.is_set() and len(self.data) <= self.most:
                if not (block := response.read1(2**16)):
                    break
                self.data.extend(block)
        if self.ranged:
            del self.data[self.size :]
        if expected is not None and len(self.data) < min(begun + expected, self.most):
            raise ConnectionError(f"{len(self.data)} bytes came, then the connection ended")


def _web_url(url: str) -> str | None:
    """Return where a URL can be read from a web server; None if only its store can read it."""
    if url.lower().startswith(("http://", "https://")):
        return quote(url, safe=LEGAL)
    store, path = _store(url)
    if "s3" not in (store.protocol if isinstance(store.protocol, tuple) else (store.protocol,)):
        return None
    return str(_within(url, partial(store.sign, path, expiration=SIGNED_SECONDS)))


def _store(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise EatError(f"{url}: needs fsspec; install it (pip install 'eat-audio[data]')") from None
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise EatError(f"{url}: needs a package for its store ({error})") from None
    except Exception as error:  # every kind of store has its own
        raise unreadable(url, str(error) or type(error).__name__) from error


def _within(url: str, call: Callable[[], T], seconds: float | None = None) -> T:
    """Return what a store answers, with a few tries, each within a time."""
    for number in range(TRIES):
        try:
            return _answer(call, WAIT if seconds is None else seconds)
        except Exception as error:  # every kind of store has its own
            reason = str(error) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                reason = f"no such file ({error})"
            is_final = isinstance(error, FINAL) or not isinstance(error, OSError)
            if is_final or number + 1 == TRIES:
                raise unreadable(url, reason) from error
        time.sleep(BACKOFF * 2**number)
    raise AssertionError("the last try returns or raises")


def _answer(call: Callable[[], T], seconds: float) -> T:
    """Return what a function returns in time; what comes later is dropped."""
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    if not results:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return results[0]


def _is_audio(name: str) -> bool:
    return posixpath.splitext(name.partition("?")[0])[1].lower() in AUDIO_SUFFIXES
