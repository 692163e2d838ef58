"""What can go wrong, in the user's words, with the exit code that goes with it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import IntEnum

from installer.base.language import first_line, masked, tr


class Exit(IntEnum):
    DONE = 0
    BUG = 1
    USAGE = 2
    REFUSED = 3
    NOT_RUNNING = 3  # status alone: what systemctl status exits with for a unit that is down
    ENGINE = 4
    MODEL = 5
    NOT_PROVED = 6
    NOT_RESTORED = 7
    FAULTS_FOUND = 8
    INTERRUPTED = 130


class InstallError(Exception):
    """A foreseeable fault: what happened and why, the command that helps, and how the process exits.

    It is shown, logged and recorded, and repeats what was typed: a password in a URL is not.
    """

    def __init__(self, message: str, hint: str = "", exit_code: Exit = Exit.BUG) -> None:
        self.message, self.hint = masked(message), masked(hint)
        super().__init__(self.message)
        self.exit_code = exit_code


class UsageError(InstallError):
    """What the user typed or wrote into a file is not valid."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, Exit.USAGE)


class Refused(InstallError):
    """A precondition does not hold; nothing was changed."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, Exit.REFUSED)


class CommandFailed(InstallError):
    """A command we ran exited non-zero; carries what it said last."""

    def __init__(self, argv: tuple[str, ...], returncode: int, output: str) -> None:
        tail = "\n".join(output.strip().splitlines()[-12:])
        failed = tr("{command} failed with exit status {status}", command=argv[0], status=returncode)
        super().__init__(tr("{what}:\n{said}", what=failed, said=tail) if tail else failed)
        self.argv = argv
        self.returncode = returncode
        self.output = output


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived; raised so that clean-up runs.

    No InstallError: whoever goes on without a probe that failed must not go on after Ctrl-C.
    """

    exit_code = Exit.INTERRUPTED

    def __init__(self, signal_name: str) -> None:
        super().__init__(tr("interrupted by {signal}", signal=signal_name))


def explain(error: BaseException) -> InstallError | None:
    """The InstallError a foreign exception amounts to, or None where only a traceback is honest."""
    if isinstance(error, InstallError):
        return error
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted("SIGINT")
    if isinstance(error, Interrupted):
        hint = tr("run the same command again: it continues where this one stopped")
        return InstallError(str(error), hint, error.exit_code)
    if isinstance(error, OSError):
        return _explain_os_error(error)
    return None


def undone(error: Exception, put_back: Callable[[str], str]) -> Exception:
    """What a change that failed ends with: its cause, and what became of the host when it was put back."""
    cause = explain(error)
    summary = first_line(cause.message) if cause else repr(error)
    try:
        outcome = put_back(summary)
    except Exception as raised:
        second = explain(raised)
        message = tr(
            "{summary}\nand the host could not be put back: {reason}",
            summary=summary,
            reason=second.message if second else repr(raised),
        )
        return InstallError(message, second.hint if second else "", Exit.NOT_RESTORED)
    if cause is None:
        return error
    code = cause.exit_code if cause.exit_code != Exit.BUG else Exit.NOT_PROVED
    both = tr("{cause}; {outcome}", cause=cause.message, outcome=outcome)
    if "\n" in cause.message:
        both = f"{cause.message}\n{outcome}"
    return InstallError(both, cause.hint, code)


def _explain_os_error(error: OSError) -> InstallError | None:
    where = error.filename or tr("a file")
    if error.errno == errno.ENOSPC:
        return InstallError(
            tr("the disk is full while writing {where}", where=where),
            tr("free some space (df -h) and run the command again"),
            Exit.REFUSED,
        )
    if error.errno == errno.EROFS:
        return InstallError(
            tr("{where} is on a read-only file system", where=where),
            tr("remount it read-write and run the command again"),
            Exit.REFUSED,
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return InstallError(
            tr("no permission for {where}", where=where), tr("run the command as root (sudo)"), Exit.REFUSED
        )
    if error.errno == errno.EPIPE:
        return InstallError(
            tr("nobody reads any more what is said"), tr("let what the command prints be read to its end")
        )
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(
            tr("{where} cannot be a path: {reason}", where=f"{where}"[:80], reason=error.strerror),
            tr("name the file or directory itself, by its full path"),
        )
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
        return InstallError(
            tr("{where} is not what it has to be: {reason}", where=where, reason=error.strerror),
            tr("move it away: mv {where} {where}.before", where=where),
            Exit.REFUSED,
        )
    return None
