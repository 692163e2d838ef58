"""Fetching files into a hub cache: by several connections, continued where they stopped, checked before use."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from installer.base.language import tr
from installer.base.report import Advance
from installer.spec.model import Origin
from installer.weights.addresses import headers_of, server_of, url_of
from installer.weights.hub import fault_of, is_passing, no_answer, retry_after
from installer.weights.incoming import CHUNK, Abandoned, Blob, Incoming, Lease
from installer.weights.partial import BLOCK
from installer.weights.wire import LineFault, Response, Wire

__all__ = ["Blob", "fetch_all"]

# A part takes a connection about a second: the sum follows the file's front, which is as far back as the oldest part.
LEASE_SECONDS = 1.0
FIRST_LEASE, LONGEST_LEASE = 4 * BLOCK, 32 * BLOCK
# Waits before the tries that follow a failed one; a try that brought bytes starts the count anew.
RETRY_DELAYS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
REPORT_EVERY = 0.1
GOODBYE = 2.0
FIRST_CONNECTIONS = 4
PACE_EVERY = 0.5  # seconds over which a number of connections shows what it brings
WORTH = 1.2  # by how much more must come for more connections to be tried


def fetch_all(blobs: Sequence[Blob], origin: Origin, connections: int, advance: Advance) -> None:
    """Fetch every blob, or raise the first fault; what has arrived by then stays for the next try."""
    # The largest first, so that no long file is left over at the end.
    files = [Incoming(blob, connections) for blob in sorted(blobs, key=lambda b: -b.size)]
    Transfer(files, origin, connections, headers_of(origin)).run(advance)


class _Again(Exception):
    """This try failed in a way that another may not."""

    def __init__(self, cause: Exception, wait: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.wait = wait


class _Pace:
    """How many connections are worth having: more of them as long as more of them bring more.

    A source that limits each of them gets all; where the source or this host is the limit, more would only cost.
    """

    def __init__(self, most: int, have: int) -> None:
        self.most = most
        self.connections = min(FIRST_CONNECTIONS, most)
        self.lease = FIRST_LEASE
        self._best = 0.0
        self._since, self._from = time.monotonic(), have

    def grows(self, have: int) -> bool:
        """Told regularly how much has come; whether there are to be more connections from now on."""
        now, before = time.monotonic(), self.connections
        if now - self._since < PACE_EVERY:
            return False
        rate = (have - self._from) / (now - self._since)
        self.lease = min(max(int(rate / self.connections * LEASE_SECONDS), BLOCK), LONGEST_LEASE)
        if rate > self._best * WORTH:
            self._best, self.connections = rate, min(self.connections * 2, self.most)
        self._since, self._from = now, have
        return self.connections > before


class Transfer:
    """All files of one download: who fetches what next, when to try again, and when to stop."""

    def __init__(self, files: Sequence[Incoming], origin: Origin, connections: int, headers: Mapping[str, str]) -> None:
        self.files = files
        self.origin = origin
        self.connections = connections
        self.headers = {**headers, "accept-encoding": "identity"}
        self.fault: BaseException | None = None
        self._pace = _Pace(connections, sum(file.have for file in files))
        self._most_served = 0  # connections at once
        self._changed = threading.Condition()
        self._wires: list[Wire] = []
        self._threads: list[threading.Thread] = []

    def run(self, advance: Advance) -> None:
        reported, done = sum(file.have for file in self.files), 0
        for number in range(self.connections):
            self._start(partial(self._work, number))
        try:
            is_over = False
            while not is_over:
                with self._changed:
                    self._changed.wait(REPORT_EVERY)
                is_over = self._is_over()
                have, whole = sum(file.have for file in self.files), sum(file.is_done for file in self.files)
                advance(have - reported, whole - done)
                reported, done = have, whole
                if self._pace.grows(have):
                    with self._changed:
                        self._changed.notify_all()
        except BaseException as error:
            self._end(error)
            raise
        finally:
            self._goodbye()
        if self.fault:
            raise self.fault

    def _start(self, task: Callable[[], None]) -> None:
        """A thread whose fault is everybody's."""

        def guarded() -> None:
            try:
                task()
            except Abandoned:
                pass
            except BaseException as error:
                self._end(error)

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _is_over(self) -> bool:
        return self.fault is not None or all(file.is_done for file in self.files)

    def _end(self, fault: BaseException) -> None:
        with self._changed:
            self.fault = self.fault or fault
            self._changed.notify_all()

    def _goodbye(self) -> None:
        """Wake every thread, so that each sees that it is over, and close the files that stay unfinished."""
        for wire in self._wires:
            wire.abort()
        with self._changed:
            self._changed.notify_all()
        for file in self.files:
            file.wake()
        until = time.monotonic() + GOODBYE
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        if not any(thread.is_alive() for thread in self._threads):
            for file in self.files:
                file.close()

    # one connection

    def _work(self, number: int) -> None:
        wire = Wire(url_of(self.origin, "main", "x"), self.headers)
        self._wires.append(wire)
        buffer = memoryview(bytearray(CHUNK))
        while (lease := self._take(number)) is not None:
            began = lease.at
            try:
                self._carry_out(lease, wire, buffer)
                failure = None
            except Abandoned:
                failure = None
            except LineFault as fault:
                failure = _Again(fault)
            except _Again as again:
                failure = again
            lease.file.give_back(lease)
            self._learn(lease, began, failure)
        wire.close()

    def _take(self, number: int) -> Lease | None:
        """The next part to fetch, as soon as there is one for this connection; None when there is none any more."""
        with self._changed:
            while not self._is_over():
                now = time.monotonic()
                is_wanted = number < self._pace.connections and self._under_way() < self._pace.connections
                lease = self._next(now) if is_wanted else None
                if lease:
                    return lease
                waits = [file.not_before - now for file in self.files if file.not_before > now]
                self._changed.wait(min(waits, default=None))
        return None

    def _under_way(self) -> int:
        return sum(len(file.leases) for file in self.files)

    def _served(self) -> int:
        return sum(lease.is_served for file in self.files for lease in file.leases)

    def _next(self, now: float) -> Lease | None:
        at_work = [file for file in self.files if file.is_open and not file.is_done]
        unopened = next((file for file in self.files if not file.is_open and not file.is_done), None)
        if unopened and len(at_work) < self._pace.connections:
            unopened.open()
            self._start(lambda: self._follow(unopened))
            at_work.append(unopened)
        # Short parts towards the end, so that all connections finish together.
        length = sum(file.missing_unasked() for file in self.files if file.is_open) // (2 * self._pace.connections)
        for file in sorted(at_work, key=lambda file: len(file.leases)):
            if file.not_before <= now and (lease := file.lease(min(length, self._pace.lease))):
                return lease
        return None

    def _follow(self, file: Incoming) -> None:
        while not file.is_done and not self._is_over():
            file.follow(self._is_over, server_of(self.origin))
            with self._changed:
                self._changed.notify_all()

    def _serves(self, lease: Lease) -> None:
        """The bytes of a part begin to come."""
        with self._changed:
            lease.is_served = True
            self._most_served = max(self._most_served, self._served())

    def _learn(self, lease: Lease, began: int, failure: _Again | None) -> None:
        """What a try says about the next ones: how long to wait, and how many connections this server likes."""
        file = lease.file
        with self._changed, file.lock:
            if failure is None:
                file.misses = 0
                file.limit = min(file.limit + 1, self.connections) if file.ranged else file.limit
            elif file.have > file.best or (file.ranged and lease.at > began):
                file.misses = 0
            elif file.leases:
                file.limit = len(file.leases)  # the others are served: this was one too many
            elif 0 < self._most_served <= (served := self._served()):
                # Other files are, by as many connections as ever: they are all that this server gives.
                self._pace.connections = min(served, self._pace.connections)
            else:
                file.misses += 1
                self._most_served = self._served()  # that more were once is no proof any longer
            file.best = max(file.best, file.have)
            if failure:
                if file.misses > len(RETRY_DELAYS):
                    raise self._explained(failure.cause) from None
                delay = max(failure.wait, RETRY_DELAYS[max(file.misses - 1, 0)])
                file.not_before = time.monotonic() + delay
            self._changed.notify_all()

    def _explained(self, cause: Exception) -> Exception:
        if isinstance(cause, LineFault):
            return no_answer(self.origin, cause)
        return fault_of(cause, self.origin) or cause

    # one request

    def _carry_out(self, lease: Lease, wire: Wire, buffer: memoryview) -> None:
        file, is_known = lease.file, bool(lease.file.location)
        whole = lease.at == 0 and lease.end == file.blob.size
        headers = {} if whole else {"Range": f"bytes={lease.at}-{lease.end - 1}"}
        with wire.get(file.location or file.blob.url, headers) as answer:
            if is_known and answer.status in (401, 403, 404, 410):
                file.location = ""  # such addresses are good for a while only
                raise _Again(ValueError("the address behind the redirect is not good any more"))
            if answer.status >= 400 and answer.status != 416:
                self._refused(answer)
            self._check(answer, lease, whole)
            file.location = answer.url
            self._serves(lease)
            while lease.left > 0:
                count = answer.fill(buffer[: min(CHUNK, file.room(lease))])
                if self.fault:
                    raise Abandoned
                if not count:
                    raise _Again(LineFault(tr("the connection ended before the file did")))
                file.write(lease, buffer[:count])
                file.write_out(lease)

    def _check(self, answer: Response, lease: Lease, whole: bool) -> None:
        """Go on only with a response whose body begins where the part does."""
        file, size = lease.file, lease.file.blob.size
        span = re.match(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("content-range", ""))
        if answer.status == 416:
            total = re.match(r"bytes \*/(\d+)", answer.headers.get("content-range", ""))
            found = tr("{count} bytes", count=total[1]) if total else tr("fewer bytes")
            file.spoil(lease.round, found, server_of(self.origin))
            raise Abandoned
        if answer.status == 206 and span and int(span[1]) == lease.at and not whole:
            if span[2] not in ("*", str(size)):
                file.spoil(lease.round, tr("{count} bytes", count=span[2]), server_of(self.origin))
                raise Abandoned
            file.allow_ranges()
            with self._changed:
                self._changed.notify_all()
            return
        if answer.status != 200:
            raise _Again(ValueError("the server answered with another range than was asked for"))
        if answer.length not in (None, size):
            file.spoil(lease.round, tr("{count} bytes", count=answer.length), server_of(self.origin))
            raise Abandoned
        # No ranges here: the whole file comes.
        if not whole and not file.take_whole(lease):
            raise _Again(ValueError("the server answered with the whole file, not with the range asked for"))

    def _refused(self, answer: Response) -> None:
        from huggingface_hub.utils import hf_raise_for_status, httpx

        request = httpx.Request("GET", answer.url)
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() != "content-encoding"]
        response = httpx.Response(answer.status, headers=headers, content=answer.text(), request=request)
        try:
            hf_raise_for_status(response)
        except Exception as error:
            if is_passing(answer.status):
                raise _Again(error, retry_after(response.headers.get("retry-after"))) from None
            raise fault_of(error, self.origin) or error from None
