"""What the house promises of its walls: side effects lie in few places, vendors of GPUs in one."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from installer.base.assets import PACKAGE

# Modules with side effects, and why each has its own.
MAY = {
    "base/host.py": "the place for all others, which starts processes",
    "base/files.py": "the host's files",
    "base/locks.py": "the host's locks, and who holds them",
    "base/trees.py": "removes trees for files.py, by open directories",
    "airgap/pack.py": "streams an archive of gigabytes into a file of the user's own or into a pipe",
    "airgap/bundle_file.py": "streams an archive's members to their places, or links them there",
    "airgap/wheelhouse.py": "collects wheels beside the archive that they go into",
    "weights/partial.py": "streams a download into its file, in pieces and any order",
    "weights/handover.py": "streams blobs to another host's cache",
    "weights/wire.py": "opens the connections of downloads",
    "weights/hub.py": "asks the hub, by its own client",
    "units/api.py": "asks the service over HTTP",
    "group/ssh.py": "asks the resolver and the kernel whether a name is this host's",
    "group/session.py": "answers the host that asks, and ends what it does when that one is gone",
    "checks/gateway.py": "asks the resolver where the names of a certificate lead",
    "look/client.py": "asks resolver and kernel for the way to a client; sends nothing there",
    "monitor/ship.py": "remembers what was sent, in its own unit's directory and as a user who is nobody",
}
WRITING_MODES = frozenset("wax+")
WRITING_FLAGS = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND")
OF_OS = {
    "chmod", "chown", "copy_file_range", "execl", "execle", "execlp", "execv", "execve", "execvp", "execvpe", "fchmod",
    "fchown", "fork", "forkpty", "fsync", "ftruncate", "kill", "killpg", "lchown", "link", "makedirs", "mkdir",
    "mkfifo", "mknod", "popen", "posix_fallocate", "posix_spawn", "posix_spawnp", "pwrite", "pwritev", "remove",
    "removedirs", "removexattr", "rename", "renames", "replace", "rmdir", "sendfile", "setxattr", "symlink", "system",
    "truncate", "umask", "unlink", "utime", "write", "writev",
}  # fmt: skip
OF_OBJECTS = {
    "chmod", "hardlink_to", "kill", "lchmod", "mkdir", "rename", "rmdir", "send_signal", "symlink_to", "terminate",
    "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip
HARMLESS = frozenset(("shutil.which", "shutil.disk_usage", "socket.AF_INET", "socket.AF_INET6"))
MODULES = ("subprocess", "tempfile", "shutil", "socket", "multiprocessing", "asyncio")  # whatever is called of them
CLIENTS = ("HTTPConnection", "HTTPSConnection", "HfApi", "get_session", "urlopen", "urlretrieve", "Popen")


def effects(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each call that writes, starts a process, ends one or opens a connection."""
    tree = ast.parse(source)
    imported = {
        name.asname or name.name: f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if _has_effect(node, imported.get(called, called)):
                yield node.lineno, ast.unparse(node)


def _has_effect(call: ast.Call, called: str) -> bool:
    module, _, name = called.rpartition(".")
    words = [
        ast.unparse(word.value if isinstance(word, ast.keyword) else word) for word in (*call.args, *call.keywords)
    ]
    if called == "os.open":
        return any(flag in word for word in words for flag in WRITING_FLAGS)
    if name in ("open", "fdopen", "File", "ZipFile"):
        modes = [word.strip("'") for word in words if word.startswith("'") and len(word) < 7]
        return any(WRITING_MODES & set(mode) and set(mode) <= WRITING_MODES | set("rbt") for mode in modes)
    if module == "os":
        return name in OF_OS
    if called.partition(".")[0] in MODULES:
        return called not in HARMLESS
    if name == "replace":  # a path's takes one word, a text's two
        return bool(module) and len(call.args) == 1 and not call.keywords
    return name in CLIENTS or (bool(module) and name in OF_OBJECTS)


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')", "path.open('ab')", "Path('x').open(mode='r+b')", "os.open(path, os.O_RDONLY | os.O_CREAT)",
        "path.write_text('x')", "host.at(path).unlink()", "partial.replace(out)", "os.replace(a, b)", "path.mkdir()",
        "subprocess.run(['true'])", "from subprocess import run\nrun(['true'])", "os.fork()", "os.kill(1, 9)",
        "socket.create_connection(x)", "from http.client import HTTPConnection as C\nC('x')", "tempfile.mkdtemp()",
        "shutil.copyfile(a, b)", "process.kill()", "os.fdopen(handle, 'wb')", "click.File('w', encoding='utf-8')",
    ],
)  # fmt: skip
def test_a_side_effect_is_seen(line: str) -> None:
    assert list(effects(line))


@pytest.mark.parametrize(
    "line",
    [
        "open(path)", "path.open('rb')", "os.open(path, os.O_RDONLY)", "text.replace('a', 'b')", "shutil.which('uv')",
        "host.write(path, text)", "dataclasses.replace(state, pending=None)", "host.remove(path)", "click.File()",
    ],
)  # fmt: skip
def test_what_only_reads_or_asks_the_host_is_none(line: str) -> None:
    assert not list(effects(line))


def test_side_effects_are_in_the_host_and_in_these_modules_alone() -> None:
    found: dict[str, list[tuple[int, str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("runtime/") and (seen := list(effects(path.read_text()))):
            found[name] = seen
    assert {name: seen for name, seen in found.items() if name not in MAY} == {}
    assert set(MAY) - set(found) == set(), "what needs no place here any more goes from the list"


def test_names_of_vendors_and_their_engines_are_data_in_one_place() -> None:
    """Beside it engines are named where they are built, and where a user names one."""
    engines = (
        "spec/settings.py",
        "families/",
        "checks/preflight.py",
        "model/formats.py",
        "forms/",
    )
    found = {
        (name, node.value)
        for path in PACKAGE.rglob("*.py")
        if not (name := path.relative_to(PACKAGE).as_posix()).startswith("runtime/")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ("nvidia", "amd", "cuda", "rocm")
    }
    kinds = {(name, word) for name, word in found if name.startswith(engines) and word in ("cuda", "rocm")}
    assert {name for name, _ in found - kinds} == {"spec/vendors.py"}


def evaluated_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """All of a module but the bodies of its functions."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            outside: list[ast.expr] = [default for default in child.args.defaults + child.args.kw_defaults if default]
            outside += [] if isinstance(child, ast.Lambda) else child.decorator_list
            for part in outside:
                yield from evaluated_at_import(part)
        else:
            yield from evaluated_at_import(child)


def test_nothing_is_translated_while_modules_load() -> None:
    """The language is known only when the command runs: what is said at import is mark()ed and said by tr() later."""
    found = [
        (path.relative_to(PACKAGE).as_posix(), node.lineno)
        for path in PACKAGE.rglob("*.py")
        for node in evaluated_at_import(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tr"
    ]
    assert found == []
