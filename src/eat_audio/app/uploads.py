"""Take recordings from requests: bounded in size, time and memory, never by a path or an address.

Large uploads wait on disk; the bytes of one are in memory while a thread decodes it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from eat_audio.app.tasks import LoadedClip
from eat_audio.audio import SAMPLE_RATE, AudioBytes, audio_claims, collected_warnings, load_int16
from eat_audio.errors import AudioError
from eat_audio.text import sentence

MULTIPART = "multipart/form-data"
RAW_TYPES = ("audio/*", "video/*", "application/ogg", "application/octet-stream")
"""Types of a body that is the file itself."""
UNNAMED = "the recording"
"""The name in messages of an upload that came without one."""
FIELDS = 8
"""The most fields of a form beside the file."""
DISCARD_SECONDS = 1.0
"""How long the body of a refused request is read on, so that its client reads the answer."""


class TooLarge(AudioError):
    """An upload of more bytes or seconds than the service takes."""


class NotAudio(AudioError):
    """An upload of a type or format that is not that of a recording."""


@dataclass(frozen=True)
class Upload:
    """A file that came with a request."""

    name: str
    file: IO[bytes]

    def load(self, seconds: float) -> LoadedClip:
        """Decode the file, no more than `seconds` of it, and close it.

        Raises:
            NotAudio: It is not audio.
            TooLarge: It is longer.
            AudioError: It is empty, cut, or holds no usable sound.
        """
        with self.file as file:
            source = AudioBytes(self.name, file.read())
        with collected_warnings() as warnings:
            try:
                waveform = load_int16(source, seconds=seconds + 1)
            except AudioError as error:
                raise (_without_format(source) or error) from error
        if len(waveform) > seconds * SAMPLE_RATE:
            raise TooLarge(f"{source}: lasts more than {seconds:g} s; expected at most that")
        return LoadedClip(self.name, waveform, warnings)


def _without_format(source: AudioBytes) -> NotAudio | None:
    """Return why bytes are no recording; None if they are one, empty or damaged."""
    if not source.data:
        return None
    try:
        audio_claims(source)
    except AudioError as error:
        return NotAudio(str(error))
    return None


async def receive_upload(request: Request, limit: int) -> Upload:
    """Return the recording in a request's body: a form with a part "file", or the file itself.

    Raises:
        TooLarge: The body has more than `limit` bytes, or says so.
        NotAudio: Its type is another one.
        HTTPException: The form cannot be read (422).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        return await _from_form(request, limit)
    if kind and kind not in RAW_TYPES and not kind.startswith(("audio/", "video/")):
        raise NotAudio(
            f"Content-Type {sentence(kind)[:60]}: expected {MULTIPART} with a part named file, or "
            f"the bytes of a recording as {', '.join(RAW_TYPES[:-1])} or {RAW_TYPES[-1]}"
        )
    file = SpooledTemporaryFile(MultiPartParser.spool_max_size)
    try:
        async for chunk in _bounded(request, limit):
            file.write(chunk)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return Upload(UNNAMED, file)


async def _from_form(request: Request, limit: int) -> Upload:
    stream = _bounded(request, limit)
    try:
        parser = MultiPartParser(request.headers, stream, max_files=1, max_fields=FIELDS)
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(422, f"the form cannot be read ({error.message})") from error
    part = form.get("file")
    if isinstance(part, UploadFile) and len(form.multi_items()) == 1:
        return Upload(part.filename or UNNAMED, part.file)
    await form.close()
    names = ", ".join(form) or "nothing"
    raise HTTPException(422, f"the form holds {sentence(names)}; expected one file named file")


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield a body up to `limit` bytes; what is little more is read and dropped.

    A client that is still sending would not read the answer.
    """
    claimed = request.headers.get("content-length", "")
    size = int(claimed) if claimed.isdecimal() else 0
    received = 0
    if size <= 2 * limit:
        async for chunk in request.stream():
            received += len(chunk)
            if received <= limit:
                yield chunk
            elif received > 2 * limit:
                break
    if max(size, received) > limit:
        raise TooLarge(f"the upload has more than {limit:,} bytes; expected at most that")


async def discard_body(request: Request) -> None:
    """Read what is left of a small body, so that the client reads the answer."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_SECONDS):
            async for _ in request.stream():
                pass
