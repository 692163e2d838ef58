"""The file of what keys have used: opened, locked, made, and made anew where somebody has written over it. Stdlib only.

It is read and written by pread and pwrite: where a disk is full or the file was cut short, these fail, and a store
through mmap would end the process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from installer.runtime import vllm_usage as form
else:
    import vllm_usage as form

log = logging.getLogger("vllm.guard")

TRIES, PAUSES, PAUSE = 50, 200, 0.0005  # for the lock, which a busy host may keep a process from giving back at once


def opened(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no file")
        locked(descriptor, is_patient=True)  # somebody else may be making it
        status = os.fstat(descriptor)
        if status.st_size != form.SIZE or not is_whole(descriptor):
            made_anew(descriptor, path, is_new=not status.st_size)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def locked(descriptor: int, *, is_patient: bool) -> bool:
    for tried in range(TRIES + PAUSES if is_patient else TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if tried >= TRIES:
                time.sleep(PAUSE)
        else:
            return True
    return False


def is_sound(path: str, descriptor: int) -> bool:
    """Whether what is open is what lies there, and still the table that it was."""
    try:
        there, here = os.lstat(path), os.fstat(descriptor)
    except OSError:
        return False
    return os.path.samestat(there, here) and here.st_size == form.SIZE and is_whole(descriptor)


def in_memory() -> int:
    descriptor = os.memfd_create(form.FILE)
    os.ftruncate(descriptor, form.SIZE)
    os.pwrite(descriptor, form.HEADER, 0)
    return descriptor


def is_whole(descriptor: int) -> bool:
    return os.pread(descriptor, len(form.HEADER), 0) == form.HEADER


def made_anew(descriptor: int, path: str, *, is_new: bool = False) -> None:
    """All of its room is taken now: later a full disk takes nothing from those who are counted."""
    if not is_new:
        log.error("%s is no table of usage: it is made anew, and what was counted is lost", path or form.FILE)
    os.ftruncate(descriptor, 0)
    try:
        os.posix_fallocate(descriptor, 0, form.SIZE)
    except OSError:
        os.ftruncate(descriptor, 0)
        raise
    os.pwrite(descriptor, form.HEADER, 0)


# The records in it


def find(descriptor: int, name: bytes, path: str) -> tuple[int, bytes]:
    """The record of a key; if there is none, the first that is free, or the one that nobody used for longest."""
    if os.fstat(descriptor).st_size != form.SIZE or not is_whole(descriptor):
        made_anew(descriptor, path)  # somebody has written over it
    oldest = (form.MOST + 1, form.RECORDS_AT)
    for place in range(form.RECORDS_AT, form.SIZE, form.STRIDE):
        head = os.pread(descriptor, form.NAME_SIZE + form.WORD, place)
        if head[: form.NAME_SIZE] == name:
            return place, os.pread(descriptor, form.HEAD_SIZE, place)
        if form.NAME.fullmatch(head[: form.NAME_SIZE]) is None:
            return place, make(descriptor, place, name)
        oldest = min(oldest, (int.from_bytes(head[form.NAME_SIZE :], "little"), place))
    return oldest[1], make(descriptor, oldest[1], name)


def places_in_use(descriptor: int) -> Iterator[int]:
    for place in range(form.RECORDS_AT, form.SIZE, form.STRIDE):
        if not any(os.pread(descriptor, form.NAME_SIZE, place)):
            return
        yield place


def make(descriptor: int, place: int, name: bytes) -> bytes:
    """A record without numbers; its name comes last, and until then there is none."""
    os.pwrite(descriptor, bytes(form.STRIDE), place)
    head = name.ljust(form.HEAD_SIZE, b"\0")
    os.pwrite(descriptor, head, place)
    return head


def padded(name: str) -> bytes:
    return name.encode(errors="replace")[: form.NAME_SIZE].ljust(form.NAME_SIZE, b"\0")
