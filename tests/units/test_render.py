"""Every rendered file: its exact text, systemd's own opinion of it, and that no value reaches beyond its place."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from installer import __version__
from installer.base.assets import asset_dir
from installer.base.errors import UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.families.known import family_of
from installer.spec.keys import Key, digest
from installer.spec.settings import Settings
from installer.spec.target import Place, Placed, Target
from installer.spec.vendors import KINDS, VENDORS, Vendor
from installer.units.render import process_digest, render, runtime_dir, unit, without_keys
from installer.units.syntax import exec_line, quote_exec, split_exec
from tests.kit.boot.surroundings import REPO
from tests.kit.golden import golden
from tests.kit.samples import TEXTS, any_settings
from tests.kit.targets import DEFAULT_KEY, KEYS, PROBE_KEY, boxed, replicated, target

LAYOUT = Layout("qwen3vl")
SYSTEM_UNITS = Path("/usr/lib/systemd/system")

BASE = Settings()


def placed(kind: str, *gpus: Placed) -> Target:
    return dataclasses.replace(target(dataclasses.replace(BASE, tensor_parallel_size=len(gpus)), kind=kind), gpus=gpus)


def grouped(rank: int) -> Target:
    together = dataclasses.replace(BASE, group_hosts=("10.0.0.1", "10.0.0.2"), group_key_file="/etc/vllm-install/key")
    return dataclasses.replace(target(together), place=Place(rank, "enp5s0"))


CASES = {
    "cuda": target(),
    "cpu": target(dataclasses.replace(BASE, model="builtin:tiny"), kind="cpu"),
    "rocm": target(
        dataclasses.replace(
            BASE, max_model_len=None, drain=90, host="::1", served_model_name=('it\'s 100% "$HOME" \\ 1',),
            allowed_media_domains=("images.example", "cdn.example"),
            vllm_args=("--hf-overrides", '{"rope": [1, "${x}"]}', "--empty", "", "--path", "C:\\new", "--semi", ";"),
        ),
        kind="rocm", path=Path("/home/ana/my models: new/qwen"),
    ),
    "cuda-two-gpus": placed("cuda", Placed("GPU-8932f937", "NVIDIA H200", "/dev/nvidia4"),
                            Placed("GPU-5d5ba0d6", "NVIDIA H200", "/dev/nvidia1")),
    "podman-cpu": boxed("cpu", dataclasses.replace(BASE, model="builtin:tiny", host="::1")),
    "podman-cuda": boxed("cuda", BASE, Placed("GPU-8932f937", "NVIDIA H200", "/dev/nvidia4")),
    "group-head": grouped(0),
    "group-follower": grouped(1),
    "rocm-one-gpu": placed("rocm", Placed("GPU-00000000000000ff", "AMD gfx942", "/dev/dri/renderD129")),
}  # fmt: skip


def stable(text: str, made: Target) -> str:
    """Without what changes with every release or edit of the launcher: golden files show the rest."""
    text = text.replace(str(runtime_dir(LAYOUT)), "/opt/vllm-install/runtime/VERSION")
    text = text.replace(f"vllm-install {__version__};", "vllm-install VERSION;")
    return text.replace(process_digest(made, LAYOUT), "DIGEST")


# The text


@pytest.mark.parametrize("case", CASES)
def test_units_are_the_golden_ones(case: str) -> None:
    text = stable(unit(CASES[case], LAYOUT), CASES[case])
    assert text == golden(f"{case}.service", text)


@pytest.mark.parametrize(("case", "kind"), [("replica", "cuda"), ("replica-cpu", "cpu")])
def test_the_unit_of_a_replica_is_the_golden_one(case: str, kind: str) -> None:
    gpus = (Placed("GPU-8932f937", "NVIDIA H200", "/dev/nvidia4"),) if kind == "cuda" else ()
    made = replicated(gpus, gpus, kind=kind, gpu_memory_utilization=0.4).target
    text = stable(unit(made, LAYOUT, 2), made).replace(process_digest(made, LAYOUT, 2), "DIGEST")
    assert text == golden(f"{case}.service", text)


EVERY_NODE = "BindPaths=" + " ".join(f"-/dev/nvidia{number}" for number in range(16))


@pytest.mark.parametrize(
    ("kind", "gpu", "variable", "nodes"),
    [
        ("cuda", Placed("MIG-c6d4f1ef", "H200 MIG 2g.35gb", "/dev/nvidia7"), "CUDA", "BindPaths=-/dev/nvidia7"),
        ("cuda", Placed("GPU-8932f937", "NVIDIA L4"), "CUDA", EVERY_NODE),  # the driver does not say which is its own
        ("rocm", Placed("GPU-00ff", "AMD gfx942"), "ROCR", "BindPaths=-/dev/dri"),
        ("rocm", Placed("0000:03:00.0", "AMD gfx1100", "/dev/dri/renderD1"), "", "BindPaths=-/dev/dri/renderD1"),
    ],
)
def test_a_unit_shows_its_gpus_and_no_others(kind: str, gpu: Placed, variable: str, nodes: str) -> None:
    lines = unit(placed(kind, gpu), LAYOUT).splitlines()
    visible = [line for line in lines if "VISIBLE_DEVICES" in line]
    assert visible == ([f"Environment={variable}_VISIBLE_DEVICES={gpu.uuid}"] if variable else [])
    assert nodes in lines


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.kind)
def test_the_sandbox_lets_in_what_the_engines_of_every_vendor_need(vendor: Vendor) -> None:
    lines = unit(placed(vendor.kind, Placed("GPU-1", "One", "/dev/given")), LAYOUT).splitlines()
    beside = " ".join(f"-{node}" for node in vendor.nodes_beside)
    assert [line for line in lines if line.startswith("BindPaths=-/dev")] == [
        f"BindPaths={beside}",
        "BindPaths=-/dev/given",
    ]
    assert {f"DeviceAllow=char-{name} rw" for name in vendor.device_classes} <= set(lines)


def test_a_unit_without_a_choice_of_gpus_is_as_it_was() -> None:
    """What an earlier version deployed is not started anew for the sake of a choice that nobody made."""
    text = unit(target(), LAYOUT)
    assert "VISIBLE_DEVICES" not in text
    assert EVERY_NODE in text.splitlines()


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("localhost", True), ("::1", True), ("127.0.0.1", True), ("127.9.0.1", True), ("0.0.0.0", False),
     ("::", False), ("10.127.0.1", False)],
)  # fmt: skip
def test_an_engine_for_this_host_alone_reaches_no_other(host: str, is_local: bool) -> None:
    text = unit(target(dataclasses.replace(BASE, host=host)), LAYOUT)
    assert ("\nIPAddressDeny=any\nIPAddressAllow=localhost\n" in text) == is_local
    assert ("\nIPAddressDeny=link-local\n" in text) != is_local


def test_replicas_on_the_processor_are_not_bound_to_the_same_cores() -> None:
    bound = "Environment=VLLM_CPU_OMP_THREADS_BIND=nobind\n"
    found = [bound in unit(replicated(*gpus).target, LAYOUT, 1) for gpus in (((), ()), ((),))]
    assert found == [True, False], "one alone has them all"


def test_the_account_is_the_golden_one() -> None:
    text = render(CASES["cuda"], LAYOUT)[LAYOUT.sysusers].text
    assert text == golden("sysusers.conf", text)


def test_the_files_are_these_and_readable_by_all() -> None:
    files = render(CASES["cuda"], LAYOUT)
    runtime = runtime_dir(LAYOUT)
    assert set(files) == {
        LAYOUT.sysusers,
        LAYOUT.unit,
        *(
            runtime / f"vllm_{name}.py"
            for name in (
                *("launcher", "listen", "watcher", "guard", "connections", "text", "flags", "drain"),
                *("systemd", "hold", "supervisor", "processes", "handover", "start"),
                *("haproxy", "certificate", "fallback", "gateway"),
                *("usage", "limits", "count", "queue", "meter", "gpus", "notify", "seen", "words", "command"),
                *("callers", "supervision", "main", "successor", "port"),
                *("usage_file", "usage_slots", "usage_record", "usage_table", "channel", "group", "member"),
                *("container", "log", "room", "door"),
            )
        ),
        runtime / "vllm_flags.json",
        runtime / "sglang_serve.py",
        runtime / "sglang_flags.json",
        runtime / "vllm_hold.lua",
        *(LAYOUT.unit.parent / shipped.name for shipped in asset_dir("units").iterdir()),
    }
    needless = LAYOUT.unit.parent / "vllm-nvidia-nodes.service"
    assert set(files) - set(render(CASES["cpu"], LAYOUT)) == {needless}
    assert {file.mode for file in files.values()} == {0o644}
    assert list(files)[-1] == LAYOUT.unit, "what the unit needs is there before it"


def test_no_file_holds_a_key() -> None:
    texts = [file.text for file in render(CASES["cuda"], LAYOUT).values()]
    assert not any(DEFAULT_KEY in text or PROBE_KEY in text for text in texts)


def test_podman_is_never_run_as_root_with_a_home_that_the_service_writes() -> None:
    text = unit(CASES["podman-cpu"], LAYOUT)
    started = [line for line in text.splitlines() if line.startswith("Exec") and "/podman" in line]
    assert started
    assert all("/usr/bin/env HOME=/root /usr/bin/podman" in line for line in started)


# What systemd makes of it


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the distribution's own units, which ours refer to, and the programs that they start."""
    root = tmp_path_factory.mktemp("root")
    for program in ("/bin/sh", "/usr/bin/python3.11", "/usr/bin/podman"):
        Host(root).write(Path(program), "", 0o755)
    shutil.copytree(SYSTEM_UNITS, root / "usr/lib/systemd/system", symlinks=True)
    return root


def install(made: Target, layout: Layout, root: Path) -> None:
    host = Host(root)
    for path, file in render(made, layout).items():
        host.write(path, file.text, file.mode)
    host.write(layout.engines / made.engine.id / "bin/python", "", 0o755)


def analyze(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", f"--root={root}", "--man=no", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", CASES)
def test_systemd_has_nothing_to_say_about_our_units(case: str, distribution: Path) -> None:
    install(CASES[case], LAYOUT, distribution)
    ours = [path.name for path in render(CASES[case], LAYOUT) if path.parent == LAYOUT.unit.parent]
    assert LAYOUT.unit_name in ours
    verified = analyze(distribution, "verify", *ours)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_systemd_would_have_something_to_say(distribution: Path) -> None:
    host = Host(distribution)
    host.write(Path("/etc/systemd/system/wrong.service"), "[Service]\nExecStart=/bin/sh\nNoSuchDirective=1\n")
    host.write(Path("/bin/sh"), "", 0o755)
    verified = analyze(distribution, "verify", "wrong.service")
    assert "NoSuchDirective" in verified.stderr, "an exit status of 0 alone would prove nothing"


def exposure(root: Path, unit_name: str) -> float:
    rated = analyze(root, "security", "--offline=true", unit_name)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", rated.stdout)
    assert found is not None, rated.stderr
    return float(found[1])


def test_the_sandbox_leaves_little_exposed(distribution: Path) -> None:
    scores = {}
    for kind in KINDS:
        for host, bound in (("0.0.0.0", 1.6), ("127.0.0.1", 1.5 if kind == "rocm" else 1.4)):  # AMD takes two groups
            install(target(dataclasses.replace(BASE, host=host), kind=kind), LAYOUT, distribution)
            scores[f"{kind} on {host}"] = exposure(distribution, LAYOUT.unit_name)
            assert scores[f"{kind} on {host}"] <= bound
    for peer in (REPO / "tests/fixtures/peers").iterdir():
        shutil.copy(peer, distribution / "etc/systemd/system")
        scores[peer.stem] = exposure(distribution, peer.name)
    for name, score in scores.items():
        print(f"systemd-analyze security: {score:4.1f}  {name}")
    assert min(scores["ollama"], scores["tutorial"]) > 9


def test_systemd_makes_the_account(distribution: Path) -> None:
    host = Host(distribution)
    host.write(LAYOUT.sysusers, render(CASES["cuda"], LAYOUT)[LAYOUT.sysusers].text)
    for _ in range(2):
        made = subprocess.run(
            ["systemd-sysusers", f"--root={distribution}", LAYOUT.sysusers.name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (made.returncode, made.stdout) == (0, "")
    account = next(line for line in (host.read(Path("/etc/passwd")) or "").splitlines() if line.startswith(LAYOUT.user))
    assert account.split(":")[4:] == ["vLLM service qwen3vl", "/var/cache/qwen3vl", "/usr/sbin/nologin"]


# Command lines

PRINTABLE = TEXTS.filter(str.isprintable)


@given(st.lists(PRINTABLE, min_size=1))
def test_a_command_line_is_read_back(words: list[str]) -> None:
    assert split_exec(quote_exec(words)) == words


@given(st.lists(st.text()))
def test_a_command_line_is_one_line_or_refused(words: list[str]) -> None:
    try:
        line = quote_exec(words)
    except UsageError:
        assert not all(word.isprintable() for word in words)
        return
    assert len(line.splitlines()) <= 1
    assert "\n" not in line


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/bin/a  'b c'\td", ["/bin/a", "b c", "d"]),
        (r'/bin/a "b\"c" d\ e', ["/bin/a", 'b"c', "d e"]),
        ("/bin/a --k=\"v w\" '' $$x 100%%", ["/bin/a", "--k=v w", "", "$x", "100%"]),
        ("", []),
    ],
)
def test_lines_written_by_hand_are_understood(line: str, words: list[str]) -> None:
    assert split_exec(line) == words


def test_the_last_directive_counts_and_lines_may_be_continued() -> None:
    text = "[Service]\nExecStart=/bin/a\n#ExecStart=/bin/no\nExecStart = /bin/b \\\n  c\nExecStartPre=/bin/d\n"
    assert exec_line(text) == ["/bin/b", "c"]
    assert exec_line(text, "ExecReload") == []


# What a value can do

OF_THE_USER = (
    "Description", "ExecStartPre", "ExecStart", "ExecReload", "TimeoutStopSec", "BindReadOnlyPaths", "ProtectHome",
)  # fmt: skip


def directives(text: str) -> Iterator[tuple[str, str, str]]:
    """(section, name, value) as systemd reads a unit: a backslash at a line's end joins it with the next one."""
    section = ""
    for line in re.split(r"\n", re.sub(r"(?<!\\)((?:\\\\)*)\\\n", r"\1 ", text)):
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif stripped and stripped[0] not in "#;":
            name, _, value = stripped.partition("=")
            yield section, name.rstrip(), value.lstrip()


def shape(text: str) -> list[tuple[str, str, str]]:
    numbers = ("UNIT_DIGEST=", "HOLD=", "LIMITS=")
    found = [(s, n, "" if n in OF_THE_USER or v.startswith(numbers) else v) for s, n, v in directives(text)]
    # A model in a home is bound in, and a service for this host alone may talk to nobody else.
    return [one for one in found if one[1] not in ("BindReadOnlyPaths", "IPAddressDeny", "IPAddressAllow")]


PATHS = TEXTS.map(lambda text: Path("/home/" + text if text[:1] == "a" else "/models/" + text))


@settings(deadline=None)
@given(any_settings(), st.sampled_from(KINDS), st.one_of(st.none(), PATHS))
def test_no_value_adds_or_changes_a_directive(chosen: Settings, kind: str, path: Path | None) -> None:
    layout = Layout(chosen.service)
    made = target(chosen, kind=kind, path=path)
    try:
        text = unit(made, layout)
    except UsageError:
        assert path is not None or made.model.id.endswith("\\"), "what passed validation can be rendered"
        return
    told = "https://alerts.example" if chosen.notifies else None
    plain = target(Settings(service=chosen.service, notify_url=told, engine_family=chosen.engine_family), kind=kind)
    assert shape(text) == shape(unit(plain, layout))
    words = exec_line(text)
    assert words[words.index("--") + 1 :] == family_of(chosen).arguments(made)
    keys = [word for word, before in zip(words[1:], words, strict=False) if before == "--api-key"]
    assert keys == [key.argument for key in KEYS]


def test_a_name_cannot_swallow_the_line_after_its_own() -> None:
    with pytest.raises(UsageError, match="joins it with the next line"):
        unit(target(dataclasses.replace(BASE, served_model_name=("a\\",))), LAYOUT)


@pytest.mark.parametrize(
    "path", ["/home/a:b/m", "/home/a b/m", "/home/100%/m", "/home/a'b\"c/m", "/root/a\\b/m", "/home/$x/m"]
)
def test_a_model_in_a_home_is_bound_in_whatever_its_name(path: str, distribution: Path) -> None:
    install(target(path=Path(path)), LAYOUT, distribution)
    verified = analyze(distribution, "verify", LAYOUT.unit_name)
    assert verified.stderr == ""
    bound = [
        value for _, name, value in directives(unit(target(path=Path(path)), LAYOUT)) if name == "BindReadOnlyPaths"
    ]
    assert split_exec(bound[0].replace("$", "$$")) == [path]


# What a restart is due for


def test_keys_do_not_count_and_everything_else_does() -> None:
    before = target()
    rotated = dataclasses.replace(
        before, keys=(Key("default", digest("other")), Key("ops", digest("x"), "admin"), KEYS[1])
    )
    plain = dataclasses.replace(before, keys=(Key("default", digest("p 'q\" \\"), plain="p 'q\" \\"), KEYS[1]))
    for same in (rotated, plain):
        assert process_digest(same, LAYOUT) == process_digest(before, LAYOUT)
        assert without_keys(unit(same, LAYOUT)) == without_keys(unit(before, LAYOUT))
    for name, value in {"port": 1, "max_model_len": None, "drain": 1, "hold": 1, "vllm_args": ("--x",)}.items():
        changed = target(dataclasses.replace(BASE, **{name: value}))  # type: ignore[arg-type]
        assert process_digest(changed, LAYOUT) != process_digest(before, LAYOUT), name
    assert process_digest(target(kind="cpu"), LAYOUT) != process_digest(before, LAYOUT)


def test_the_process_is_told_how_long_callers_wait_and_how_long_it_may_drain() -> None:
    lines = unit(target(dataclasses.replace(BASE, hold=0, drain=90)), LAYOUT).splitlines()
    assert "Environment=HOLD=0 DRAIN=90" in lines


@given(PRINTABLE)
def test_a_plain_key_is_taken_out_whatever_it_holds(plain: str) -> None:
    made = target(keys=(Key("default", digest(plain), plain=plain or "x"), KEYS[1]))
    assert without_keys(unit(made, LAYOUT)) == without_keys(unit(target(), LAYOUT))
