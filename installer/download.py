"""Fetching files into a hub cache: several at once, continued at the byte where they stopped, checked before use."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from installer.hub import ModelError, Origin, explain, is_passing, retry_after
from installer.report import Advance, size

if TYPE_CHECKING:
    from huggingface_hub.utils import httpx

WORKERS = 4  # more cost memory and bring nothing, measured against a local hub
CHUNK = 1024 * 1024
# A stalled connection is left after this many seconds and taken up again at the byte it had reached.
STALLED = 10.0
# Waits before the tries that follow a failed one; a try that brought bytes starts the count anew.
RETRY_DELAYS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
MODE = 0o644  # the service's user reads it


@dataclass(frozen=True)
class Blob:
    """A file to fetch: whence, whereto, and what it must be."""

    name: str
    url: str
    path: Path
    size: int
    digest: str

    @property
    def partial(self) -> Path:
        return partial_path(self.path)


def partial_path(blob: Path) -> Path:
    """Where the bytes that have arrived so far are kept, always a beginning of the file."""
    return blob.with_name(blob.name + ".incomplete")


def fetch_all(blobs: Sequence[Blob], origin: Origin, advance: Advance) -> None:
    """Fetch every blob, or raise the first fault; what has arrived by then stays for the next try."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from huggingface_hub.utils import build_hf_headers

    transfer = Transfer(origin, build_hf_headers(), advance)
    with ThreadPoolExecutor(WORKERS) as pool:
        # The largest first, so that no long file is left over for a single connection at the end.
        futures = [pool.submit(transfer.fetch, blob) for blob in sorted(blobs, key=lambda b: -b.size)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            transfer.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Stopped(Exception):
    """Another file failed, or the user interrupted."""


class _Again(Exception):
    """This try failed in a way that another may not."""

    def __init__(self, cause: Exception, wait: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.wait = wait


class _Short(Exception):
    """The server's file ends before ours should."""


class _Partial:
    """The beginning of a file on disk, with the checksum of exactly what is there."""

    def __init__(self, file: FileIO, blob: Blob) -> None:
        self.file = file
        self.blob = blob
        self._start()
        if os.fstat(file.fileno()).st_size > blob.size:
            file.truncate(0)
        file.seek(0)
        while chunk := file.read(CHUNK):
            self._count(chunk)

    def _start(self) -> None:
        self.have = 0
        if len(self.blob.digest) == 64:
            self.checksum = hashlib.sha256()
        else:
            self.checksum = hashlib.sha1(b"blob %d\0" % self.blob.size)  # noqa: S324 git's own

    def _count(self, chunk: bytes) -> None:
        self.checksum.update(chunk)
        self.have += len(chunk)

    def append(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[self.file.write(rest) :]
        self._count(chunk)

    def reset(self) -> None:
        self.file.truncate(0)
        self.file.seek(0)
        self._start()

    @property
    def is_right(self) -> bool:
        return self.have == self.blob.size and self.checksum.hexdigest() == self.blob.digest


class Transfer:
    """What the files fetched together share: headers, the progress display, and when to stop."""

    def __init__(self, origin: Origin, headers: Mapping[str, str], advance: Advance) -> None:
        self.origin = origin
        self.headers = dict(headers) | {"accept-encoding": "identity"}
        self.stop = threading.Event()
        self._advance = advance
        self._lock = threading.Lock()

    def fetch(self, blob: Blob) -> None:
        try:
            with blob.partial.open("a+b", buffering=0) as file:
                self._fill(_Partial(file, blob))
                os.fchmod(file.fileno(), MODE)
                os.fsync(file.fileno())
        except _Stopped:
            return
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise explain(error, self.origin) or error from None
            raise ModelError(
                f"the disk is full: {blob.name} ({size(blob.size)}) does not fit into {blob.path.parent}",
                "free some space (df -h) and run the command again: it continues where it stopped",
            ) from None
        blob.partial.replace(blob.path)

    def _fill(self, partial: _Partial) -> None:
        """Bring the file to its full length with the right bytes; wrong bytes are fetched anew, once."""
        for last in (False, True):
            self._receive(partial)
            if partial.is_right:
                return
            found = f"{partial.have} bytes with the checksum {partial.checksum.hexdigest()}"
            self._report(-partial.have)
            partial.reset()
            if last:
                blob = partial.blob
                raise ModelError(
                    f"{blob.name} arrived with wrong bytes twice: {found}, not {blob.size} with {blob.digest}",
                    f"run the command again later, or use another source (--hf-endpoint) than {self.origin.server}",
                )

    def _receive(self, partial: _Partial) -> None:
        misses, best = 0, partial.have
        while partial.have < partial.blob.size:
            try:
                self._continue(partial)
            except _Short:
                return
            except _Again as failure:
                misses = 0 if partial.have > best else misses + 1
                best = max(best, partial.have)
                if misses > len(RETRY_DELAYS):
                    raise explain(failure.cause, self.origin) or failure.cause from None
                self._pause(max(failure.wait, RETRY_DELAYS[max(misses - 1, 0)]))

    def _continue(self, partial: _Partial) -> None:
        """One request for what is missing."""
        from huggingface_hub.utils import get_session, httpx

        headers = self.headers | ({"range": f"bytes={partial.have}-"} if partial.have else {})
        timeout = httpx.Timeout(STALLED)
        try:
            with get_session().stream("GET", partial.blob.url, headers=headers, timeout=timeout) as response:
                self._check(response, partial)
                for chunk in response.iter_raw():
                    self._take(chunk, partial)
                    if partial.have == partial.blob.size:
                        return
        except httpx.RequestError as error:
            raise _Again(error) from None
        raise _Again(httpx.RemoteProtocolError("the connection ended before the file did"))

    def _take(self, chunk: bytes, partial: _Partial) -> None:
        if self.stop.is_set():
            raise _Stopped
        chunk = chunk[: partial.blob.size - partial.have]
        partial.append(chunk)
        self._report(len(chunk))

    def _check(self, response: httpx.Response, partial: _Partial) -> None:
        """Go on only with a response whose body begins where our file ends."""
        status = response.status_code
        if status == 416:
            raise _Short
        if status >= 400:
            self._refused(response)
        span = re.match(r"bytes (\d+)-", response.headers.get("content-range", "")) if status == 206 else None
        begins = int(span[1]) if span else 0
        if begins == partial.have:
            return
        # No ranges here: the whole file comes, or something else than was asked for.
        self._report(-partial.have)
        partial.reset()
        if begins:
            raise _Again(ValueError("the server answered with another range than was asked for"))

    def _refused(self, response: httpx.Response) -> None:
        from huggingface_hub.utils import hf_raise_for_status

        response.read()
        try:
            hf_raise_for_status(response)
        except Exception as error:
            if is_passing(response.status_code):
                raise _Again(error, retry_after(response.headers.get("retry-after"))) from None
            raise explain(error, self.origin) or error from None

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise _Stopped

    def _report(self, count: int) -> None:
        with self._lock:
            self._advance(count)
