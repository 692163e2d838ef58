"""What runs a service without us: each form read by another reader than our own, and adopted again."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import snapshot_download
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as how
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator

from installer.adoption import exported, old_unit, yaml_text
from installer.adoption.container import HUB, MODEL, check_image, container_of
from installer.adoption.container_said import TABLE, cluster_name
from installer.adoption.lost import Loss
from installer.adoption.translate import Adoption, translate
from installer.base.errors import Exit, Refused, UsageError
from installer.base.host import Host
from installer.base.layout import Layout
from installer.families.vllm.serve import memory_share
from installer.flow import adopt
from installer.spec.asked import load_settings
from installer.spec.keys import Key, digest
from installer.spec.model import Model
from installer.spec.record import to_record
from installer.spec.records import save_state
from installer.spec.settings import FIELDS, Settings
from installer.spec.state import State
from installer.spec.target import LOOPBACK, Placed, Target
from installer.spec.values import AUTO, BUILTIN
from installer.units.graph import handle
from installer.units.render import unit
from installer.verbs import export as verb
from tests.kit.boot.surroundings import REPO
from tests.kit.samples import TEXTS, accepted, any_settings
from tests.kit.targets import COMMIT, KEYS, replicated, target
from tests.verbs.test_cli import cli

KEY = "sk-old-5b8d0f3a9c-Xk2QzVwHj7RmTbNp"
PLACE = Path("/srv/exported")
SCHEMAS = REPO / "tests/fixtures/schemas"  # from packages that bring them, each says from which
ODD = "a \"b\" 'c' $HOME ${x} $(id) %n %% {{y}} # : é日"
GPUS = (Placed("GPU-11111111-aaaa", "NVIDIA L4", "/dev/nvidia0"), Placed("GPU-22222222-bbbb", "NVIDIA L4"))
AMD = (Placed("GPU-f00dcafe", "AMD MI300X", "/dev/dri/renderD128"),)
READ_BACK = ("compose", "quadlet", "k8s")


def made(root: Path, wanted: Target, keys: tuple[Key, ...] = KEYS) -> Host:
    """A host on which that was proved."""
    host, layout = Host(root=root), Layout(wanted.settings.service)
    record = to_record(State(layout.service, proved=wanted))
    for path, text in (
        (layout.state_file, record),
        (layout.unit, unit(replace(wanted, keys=keys, replicas=()), layout)),
    ):
        host.make_dir(path.parent)
        host.at(path).write_text(text)
    return host


def text_of(host: Host, wanted: Target, form: str) -> str:
    return exported.export(wanted.settings.service, form, None, host).text


def taken_back(host: Host, wanted: Target, form: str) -> Adoption:
    """What adopting makes of that, with the key where the text says that it is."""
    service = wanted.settings.service
    path = PLACE / ("llm.container" if form == "quadlet" else f"{form}.yml")
    host.make_dir(PLACE)
    host.at(path).write_text(exported.FORMS[form](container_of(wanted, None, host)))
    host.at(PLACE / f"{service}.key.env").write_text(f"VLLM_API_KEY='{KEY}'\n")
    return translate(adopt.find(str(path), host, None), service, {}, {}, host, new_key=False)


def kept(wanted: Target, form: str) -> Settings:
    """The settings as they come back: what was left to be found out is said, and what cannot be said is not there."""
    old, model, profile = wanted.settings, wanted.model, wanted.profile
    lost = [name for name, about in FIELDS.items() if not about.flags and name not in ("port", "host", "vllm_args")]
    settings = replace(old, **{name: FIELDS[name].default for name in lost})
    names = old.served_model_name or (old.model_id,)
    return replace(
        settings,
        model=str(model.path) if model.source == "local" else old.model,
        revision=model.commit,
        lora=tuple(f"{each.model.id}={_pinned(each.model)}" for each in wanted.adapters),
        served_model_name=() if names == (replace(settings, served_model_name=()).model_id,) else names,
        gpu_memory_utilization=memory_share(old, wanted.engine.kind),
        tool_call_parser=profile.tool_parser or "none",
        reasoning_parser=profile.reasoning_parser or "none",
        trust_remote_code=(),
        hf_token_file=None,
        host=Settings.host if form == "k8s" else LOOPBACK if old.host == "localhost" or old.has_tls else old.host,
        gpus=AUTO if form == "k8s" else tuple(gpu.uuid for gpu in wanted.gpus) or AUTO,
    )


def _pinned(model: Model) -> str:
    return f"{model.repo}@{model.commit}" if model.commit else str(model.path)


def of(settings: dict[str, str], kind: str = "cuda", gpus: tuple[Placed, ...] = ()) -> Target:
    return replace(target(load_settings("llm", {}, {}, settings), kind=kind), gpus=gpus)


MATRIX = {
    "the defaults": of({}, gpus=GPUS[:1]),
    "GPUs that are not known by uuid": of({}),
    "a processor": of({"model": BUILTIN, "host": "127.0.0.1", "port": "8081"}, "cpu"),
    "a share of it": of({"model": "org/m", "gpu_memory_utilization": "0.3", "max_model_len": "auto"}, "cpu"),
    "all that is a flag": of(
        {
            "model": "Qwen/Qwen3-4B", "max_model_len": "32k", "gpu_memory_utilization": "0.5", "drain": "5",
            "tensor_parallel_size": "2", "allowed_media_domains": "a.example b.example", "scheduling": "priority",
            "host": "::1", "port": "9001", "hold": "0", "max_queued": "7",
            "served_model_name": f"{shlex.quote(ODD)} other",
            "vllm_args": """--seed 1 --hf-overrides '{"a": "$x ${y} %h 100%"}' --max-num-seqs=1e3 --enforce-eager""",
        },
        gpus=GPUS,
    ),
    "a name that is none in the container": of({"host": "localhost"}),
    "AMD's": of({"model": "org/m"}, "rocm", AMD),
    "adapters": of({"model": "org/m", "lora": f"a:1=Org/A@{'1' * 40},b=/srv/b"}, "cpu"),
    "a file for a flag": of({"model": "org/m", "vllm_args": "--chat-template /srv/x/chat.jinja --seed 2"}, "cpu"),
}  # fmt: skip
LOCAL = f"/srv/models/{ODD.replace(':', '')}"
MATRIX["a directory"] = replace(target(load_settings("llm", {}, {}, {"model": LOCAL}), path=Path(LOCAL)), gpus=GPUS[:1])


@pytest.mark.parametrize("form", READ_BACK)
@pytest.mark.parametrize("name", MATRIX)
def test_what_is_exported_is_adopted_as_it_was(tmp_path: Path, form: str, name: str) -> None:
    host = Host(root=tmp_path)
    host.make_dir(Path(LOCAL))
    host.write(Path("/srv/x/chat.jinja"), "{{ messages }}")
    host.make_dir(Path("/srv/b"))
    found = taken_back(host, MATRIX[name], form)
    assert found.settings == kept(MATRIX[name], form)
    assert found.keys == ((KEY,) if form == "compose" else ())
    assert found.environment == ()
    assert not [note for note in found.notes if "not carried over" in note], found.notes


@given(any_settings(), st.sampled_from(READ_BACK), st.sampled_from(("cuda", "cpu")))
@how(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=40)
def test_whatever_a_setting_holds_it_comes_back_and_nothing_else(wished: Settings, form: str, kind: str) -> None:
    if wished.model.startswith("/"):
        wished = replace(wished, model=f"/srv{wished.model}".replace(":", "x"))
    path = Path(wished.model) if wished.model.startswith("/") else None
    wanted = target(replace(wished, vllm_args=(), replicas=1, engine_family="vllm"), kind=kind, path=path)
    assume(not wished.model_id.endswith("\\"))  # of which no unit can be made either
    with tempfile.TemporaryDirectory() as root:
        host = Host(root=Path(root))
        host.make_dir(path or Path("/srv"))
        found = taken_back(host, wanted, form)
    assert found.settings == kept(wanted, form)


def test_the_key_in_a_secret_of_podmans_is_known_to_be_there(tmp_path: Path) -> None:
    found = taken_back(made(tmp_path, MATRIX["the defaults"]), MATRIX["the defaults"], "quadlet")
    assert "a new API key is made and shown once; the old one stops working" in found.clients
    assert any("podman secret inspect --showsecret" in note and "llm-api-key" in note for note in found.notes)
    assert any("systemctl stop llm" in note for note in found.notes)


# Each form by other readers than ours


def wild(words: list[str], path: str) -> Target:
    wished = load_settings("llm", {}, {}, {"model": path, "served_model_name": shlex.quote(words[0] or "m")})
    return replace(target(wished, path=Path(path)), settings=replace(wished, vllm_args=("--flag", *words)))


WORDS = st.lists(
    st.one_of(TEXTS, st.sampled_from(["0o17", "1e3", "yes", "1_000", "12:30", "~", "null", ".inf", "- x", "a: b"]))
    .filter(lambda text: text.isprintable() and text == text.strip() and text[:1] != "-" and text[-1:] != "\\"),
    min_size=1, max_size=5,
)  # fmt: skip
PATHS = TEXTS.map(lambda text: f"/srv/{text}").filter(
    lambda path: ":" not in path and accepted("model", path) and path == str(Path(path)) and path[-1] not in " \\"
)


def shape(value: object) -> object:
    """The names in a tree, and the kinds of its leaves."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value).__name__


def written(form: str, words: list[str], path: str) -> str:
    return exported.FORMS[form](container_of(wild(words, path), None, Host()))


def check_plain(text: str) -> None:
    """What stands without quotes is a number or yes or no for every reader, or a text for every one."""
    for event in yaml.parse(text):
        if isinstance(event, yaml.ScalarEvent) and event.style is None:
            is_text = yaml_text.PLAIN.fullmatch(event.value) and event.value not in yaml_text.WORDS
            assert is_text or event.value in ("true", "false") or re.fullmatch(r"-?\d+", event.value), event.value


@given(WORDS, PATHS)
@example([ODD, "$(id)", "0o17", "yes"], "/srv/$x %n 'a' \"b\"")
@how(deadline=None, max_examples=25)
def test_no_value_becomes_a_key_or_another_word_of_compose(words: list[str], path: str) -> None:
    text, plain = written("compose", words, path), written("compose", ["x"] * len(words), "/srv/x")
    check_plain(text)
    read = yaml.safe_load(text)
    assert shape(read) == shape(yaml.safe_load(plain))
    service = read["services"]["llm"]
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", json.dumps(service)), "a variable would be filled in"
    assert [word.replace("$$", "$") for word in service["command"]][-len(words) :] == words
    assert service["volumes"][0]["source"].replace("$$", "$") == path


@given(WORDS, PATHS)
@example([ODD, "$(id)", "0o17", "yes"], "/srv/$x %n 'a' \"b\"")
@how(deadline=None, max_examples=25)
def test_no_value_becomes_a_key_or_another_word_of_kubernetes(words: list[str], path: str) -> None:
    text, plain = written("k8s", words, path), written("k8s", ["x"] * len(words), "/srv/x")
    check_plain(text)
    read = list(yaml.safe_load_all(text))
    assert shape(read) == shape(list(yaml.safe_load_all(plain)))
    pod = read[0]["spec"]["template"]["spec"]
    args = pod["containers"][0]["args"]
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", " ".join(args)), "a variable would be filled in"
    assert [word.replace("$$", "$") for word in args][-len(words) :] == words
    assert pod["volumes"][0]["hostPath"]["path"] == path


def lines_of(text: str) -> list[tuple[str, str]]:
    """As systemd and podman divide a unit: nothing but headings, assignments, comments and empty lines."""
    found = []
    for line in text.split("\n"):
        if line and not line.startswith("#"):
            assert not line.endswith("\\")
            heading = re.fullmatch(r"\[[A-Z]\w+\]", line)
            name, equals, value = line.partition("=")
            assert heading or (equals and re.fullmatch(r"[A-Z]\w+", name)), line
            found.append((line, "") if heading else (name, value))
    return found


@given(WORDS, PATHS)
@example([ODD, "$(id)", "0o17", "yes"], "/srv/$x %n 'a' \"b\"")
@how(deadline=None, max_examples=25)
def test_no_value_becomes_a_directive_or_another_word_of_a_quadlet(words: list[str], path: str) -> None:
    text, plain = written("quadlet", words, path), written("quadlet", ["x"] * len(words), "/srv/x")
    found = lines_of(text)
    assert [name for name, _ in found] == [name for name, _ in lines_of(plain)]
    for name, value in found:
        assert not re.search(r"(?<!%)(%%)*%(?!%)", value), f"{name}: a specifier would be filled in"
        assert name == "Description" or not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", value), f"{name}: a variable would be"
    values = dict(found)
    said = [word.replace("%%", "%").replace("$$", "$") for word in old_unit.words(values["Exec"], "x")]
    assert said[-len(words) :] == words
    volumes = [value for name, value in found if name == "Volume"]
    assert volumes[0].replace("%%", "%").replace("$$", "$") == f"{path}:{MODEL}:ro"


@given(st.text(max_size=30))
def test_a_text_in_yaml_is_that_text(text: str) -> None:
    assume(not re.search(r"[\ud800-\udfff]", text))
    written = yaml_text.to_yaml({"a": [text], "b": text})
    assert yaml.safe_load(written) == {"a": [text], "b": text}
    check_plain(written)


def test_a_path_with_a_colon_is_none_for_a_quadlet(tmp_path: Path) -> None:
    wanted = target(Settings(model="/srv/a:b"), path=Path("/srv/a:b"))
    host = made(tmp_path, wanted)
    with pytest.raises(UsageError, match="a colon ends a path"):
        text_of(host, wanted, "quadlet")
    assert yaml.safe_load(text_of(host, wanted, "compose"))["services"]["qwen3vl"]["volumes"][0]["source"] == "/srv/a:b"


def test_a_quadlet_is_started_again_as_the_unit_is(tmp_path: Path) -> None:
    again = re.compile(r"^(?:StartLimit\w+|Restart|RestartSec|TimeoutStartSec)=.*", re.MULTILINE)
    wanted = MATRIX["the defaults"]
    quadlet = again.findall(text_of(made(tmp_path, wanted), wanted, "quadlet"))
    assert set(quadlet) == set(again.findall(unit(wanted, Layout("llm")))), "exported.py, container_said.py say it too"


@pytest.mark.parametrize("name", MATRIX)
def test_parity_row_24_compose_and_kubernetes_by_their_schemas(tmp_path: Path, name: str) -> None:
    host = made(tmp_path, MATRIX[name])
    compose, kubernetes = (json.loads((SCHEMAS / f"{form}.json").read_text()) for form in ("compose", "kubernetes"))
    Draft7Validator(compose).validate(yaml.safe_load(text_of(host, MATRIX[name], "compose")))
    parts = list(yaml.safe_load_all(text_of(host, MATRIX[name], "k8s")))
    assert [part["kind"] for part in parts] == ["Deployment", "Service"]
    for part in parts:
        Draft202012Validator({"$ref": f"#/$defs/{part['kind']}", **kubernetes}).validate(part)


# What is said, and in which words


def pod_of(text: str) -> dict[str, Any]:
    pod: dict[str, Any] = next(yaml.safe_load_all(text))["spec"]["template"]["spec"]
    return pod


def test_the_forms_say_the_same(tmp_path: Path) -> None:
    wanted = of({"model": "org/m", "host": "192.0.2.7", "port": "8443", "drain": "7"}, gpus=GPUS[:1])
    host = made(tmp_path, wanted)
    compose = yaml.safe_load(text_of(host, wanted, "compose"))["services"]["llm"]
    lines = lines_of(text_of(host, wanted, "quadlet"))
    deployment, service = yaml.safe_load_all(text_of(host, wanted, "k8s"))
    pod = deployment["spec"]["template"]["spec"]
    inside = pod["containers"][0]
    image = "docker.io/vllm/vllm-openai:v0.32.0"
    assert compose["image"] == dict(lines)["Image"] == inside["image"] == image
    words = ["serve", "org/m", "--revision", COMMIT, "--served-model-name", "org/m", "--host", "0.0.0.0"]
    assert compose["command"][:8] == dict(lines)["Exec"].split()[:8] == inside["args"][:8] == words
    assert compose["ports"] == ["192.0.2.7:8443:8000"]
    assert ("PublishPort", "192.0.2.7:8443:8000") in lines
    assert service["spec"]["ports"][0]["port"] == 8443
    folder = "/var/cache/vllm-install/hub/models--org--m"
    assert (compose["volumes"][0]["source"], compose["volumes"][0]["read_only"]) == (folder, True)
    assert ("Volume", f"{folder}:{HUB}/models--org--m:ro") in lines
    assert pod["volumes"][0]["hostPath"]["path"] == folder
    assert inside["volumeMounts"][0] == {
        "name": "files-1", "mountPath": f"{HUB}/models--org--m", "readOnly": True,
    }  # fmt: skip
    assert compose["environment"]["HF_HUB_OFFLINE"] == "1"
    assert compose["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "device_ids": [GPUS[0].uuid], "capabilities": ["gpu"]}
    ]
    assert ("AddDevice", f"nvidia.com/gpu={GPUS[0].uuid}") in lines
    assert inside["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert (compose["stop_grace_period"], dict(lines)["StopTimeout"]) == ("27s", "27")
    assert pod["terminationGracePeriodSeconds"] == 27
    assert compose["read_only"] is inside["securityContext"]["readOnlyRootFilesystem"] is True
    assert {("ReadOnly", "true"), ("DropCapability", "all"), ("NoNewPrivileges", "true"), ("User", "2000")} <= {*lines}
    assert inside["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert (compose["cap_drop"], compose["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert (compose["user"], pod["securityContext"]["runAsNonRoot"]) == ("2000:2000", True)


def test_amds_gpus_are_given_as_nodes_with_their_groups(tmp_path: Path) -> None:
    wanted = MATRIX["AMD's"]
    host = made(tmp_path, wanted)
    for node in ("/dev/kfd", AMD[0].node):
        host.write(Path(node), "")
        if os.geteuid() == 0:
            os.chown(host.at(Path(node)), -1, 44)
    group = host.group(Path("/dev/kfd"))
    compose = yaml.safe_load(text_of(host, wanted, "compose"))["services"]["llm"]
    assert compose["devices"] == [f"{node}:{node}" for node in ("/dev/kfd", AMD[0].node)]
    assert compose["group_add"] == [str(group)]
    assert compose["environment"]["ROCR_VISIBLE_DEVICES"] == AMD[0].uuid
    assert compose["image"].startswith("docker.io/vllm/vllm-openai-rocm:v")
    lines = lines_of(text_of(host, wanted, "quadlet"))
    assert [value for name, value in lines if name == "AddDevice"] == ["/dev/kfd", AMD[0].node]
    pod = pod_of(text_of(host, wanted, "k8s"))
    assert pod["containers"][0]["resources"]["limits"] == {"amd.com/gpu": 1}
    assert pod["securityContext"]["supplementalGroups"] == [group]


def test_of_several_replicas_one_is_said_or_all_where_a_form_counts(tmp_path: Path) -> None:
    wanted = replicated(GPUS[:1], GPUS[1:], kind="cuda", host="0.0.0.0").target
    host = made(tmp_path, wanted)
    compose = text_of(host, wanted, "compose")
    device = yaml.safe_load(compose)["services"]["qwen3vl"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert device["device_ids"] == [GPUS[0].uuid]
    assert "# - REPLICAS=2 and the gateway: " in re.sub(r"^#   ", "# ", compose, flags=re.MULTILINE)
    deployment = next(yaml.safe_load_all(text_of(host, wanted, "k8s")))
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_no_row_of_the_table_forgets_a_form() -> None:
    it = container_of(of({}, gpus=GPUS[:1]), None, Host())
    silent = {
        (row.__name__, form)
        for row in TABLE
        for form in ("compose", "quadlet", "container")
        if not getattr(row(it), form)
    }
    by_the_pod = {(name, "container") for name in ("_stop", "_user", "_restart")}
    assert silent - by_the_pod == {("_limits", "container"), ("_restart", "quadlet")}
    assert all(row(it).pod for row in TABLE if (row.__name__, "container") in by_the_pod)


@pytest.mark.parametrize("service", ["a", "a_b", "a-_", "qwen3vl"])
def test_a_service_has_a_name_that_a_cluster_takes(service: str) -> None:
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", cluster_name(service))


@pytest.mark.parametrize(
    "image", ["vllm", "docker.io/vllm/vllm-openai:v0.32.0", "localhost:5000/a/b@sha256:" + "a" * 64, "x/y:T_1.0-rc1"]
)
def test_names_of_images(image: str) -> None:
    assert check_image(image) == image


@pytest.mark.parametrize(
    "image",
    ["", "a b", "a\n", "-x", "a$b", "a%n", "aé", 'a"', "a/../b/ ", "a:b:c/d", "é", "a@sha256:1", "x" * 501, "a\\"],
)
def test_what_is_no_name_of_an_image(image: str) -> None:
    with pytest.raises(UsageError):
        check_image(image)


def test_a_model_is_found_by_its_commit_in_what_is_mounted_of_it(tmp_path: Path) -> None:
    """As vLLM looks for it without a network: no branch is known there, and nothing is written."""
    it = container_of(of({"model": "org/m"}), None, Host())
    [(there, inside)] = it.mounts
    cache = tmp_path / Path(inside).relative_to(HUB)
    for path in (cache / "blobs", cache / "snapshots" / COMMIT):
        path.mkdir(parents=True)
    (cache / "blobs/x").write_text("{}")
    (cache / "snapshots" / COMMIT / "config.json").symlink_to("../../blobs/x")
    assert there.startswith("/var/cache/vllm-install/hub/")
    before = sorted(tmp_path.rglob("*"))
    found = snapshot_download(it.words[1], revision=it.words[3], cache_dir=tmp_path, local_files_only=True)
    assert (Path(found) / "config.json").read_text() == "{}"
    assert sorted(tmp_path.rglob("*")) == before


# What is not said


CANDIDATES = (
    "7", "yes", "0.5", "/srv/x", "a.example", "session", "priority", "self", "hermes", "slack", "cpu", "host", "0.31.0",
    "32k", "2s", "modelscope", "https://api.example/v1", "--seed 1", "org/other", "GPU-1", "127.0.0.1", "a=Org/A",
    "10.0.0.1,10.0.0.2", "29600",
)  # fmt: skip


# Of these it is the target that says what became of them, and another engine than vLLM is refused.
RESOLVED = {"tool_call_parser", "reasoning_parser", "revision", "trust_remote_code", "engine_family", "runtime"}


def another_value(name: str) -> str:
    return next(
        text for text in CANDIDATES
        if accepted(name, text) and getattr(load_settings("x", {}, {}, {name: text}), name) != FIELDS[name].default
    )  # fmt: skip


@pytest.mark.parametrize("form", exported.FORMS)
@pytest.mark.parametrize("name", sorted(FIELDS.keys() - RESOLVED))
def test_no_setting_goes_silently(tmp_path: Path, form: str, name: str) -> None:
    """Each that is not the default changes what is said, or is named among what is not."""
    wanted = [target(load_settings("llm", {}, {}, given)) for given in ({}, {name: another_value(name)})]
    before, after = (text_of(made(tmp_path, one), one, form) for one in wanted)
    assert before != after


def lost(host: Host, wanted: Target, form: str = "compose") -> str:
    done = exported.export(wanted.settings.service, form, None, host)
    lines = [loss.english for loss in done.lost]
    for line in lines:
        assert f"\n#   - {line}\n" in done.text
    return "\n".join(lines)


def test_what_is_lost_is_named(tmp_path: Path) -> None:
    wished = {"tls": "self", "max_queued": "3", "index_url": "https://mirror.example/x", "vllm_args":
              "--chat-template /srv/none.jinja"}  # fmt: skip
    wanted = of(wished, gpus=GPUS[:1])
    keys = (*KEYS, Key("grafana", digest("y"), role="metrics"), Key("team", digest("z"), expiry="2030-01-01T00:00:00Z"))
    host = made(tmp_path, wanted, keys)
    host.write(Layout("llm").limits_file, "team concurrent=2\n")
    host.write(handle(Layout("llm")).drop_ins / "mine.conf", "[Service]\nEnvironment=HF_TOKEN=hf_secret\n")
    said = lost(host, wanted)
    for words in (
        "HOLD=120", "TLS: it speaks plain HTTP", "the settings TLS, MAX_QUEUED", "the settings INDEX_URL, which image",
        "of 3 keys all but one: default, grafana, team", "role or last day of the keys grafana, team",
        "limits of the keys team", "/etc/systemd/system/llm.service.d/mine.conf",
        "what --chat-template names", "CUDA_TOOLKIT", "/v1 and little else",
    ):  # fmt: skip
        assert words in said, words
    assert "hf_secret" not in text_of(host, wanted, "compose")
    assert yaml.safe_load(text_of(host, wanted, "compose"))["services"]["llm"]["ports"] == [f"{LOOPBACK}:8000:8000"]
    assert "which GPUs: the cluster chooses 1 of its own" in lost(host, wanted, "k8s")


@given(TEXTS.filter(lambda text: accepted("served_model_name", text) and text.strip()), TEXTS)
@how(deadline=None)
def test_no_name_leaves_the_comments(name: str, path: str) -> None:
    wanted = of({"served_model_name": name})
    it = container_of(wanted, None, Host())
    head = exported.head(wanted, it, [], [Loss("x {path}", {"path": path})], "compose")
    assert all(line.startswith("# ") or line == "#" for line in head.splitlines())
    assert not any(line.endswith("\\") for line in head.splitlines()), "the next line would be part of it"


# The key


@pytest.mark.parametrize("form", exported.FORMS)
def test_no_key_is_in_the_text_and_how_it_gets_there_is_said(tmp_path: Path, form: str) -> None:
    wanted = of({}, gpus=GPUS[:1])
    plain = (Key("default", digest(KEY), plain=KEY), KEYS[1])
    for keys, words in (
        (KEYS, "knows its keys by their digests alone"),
        (plain, "stands in the service's unit verbatim"),
    ):
        text = text_of(made(tmp_path, wanted, keys), wanted, form)
        assert words in text.replace("\n#   ", " ")
        assert KEY not in text
        assert all(key.digest not in text for key in keys)
    where = {"compose": "llm.key.env", "quadlet": "llm-api-key,type=env,target=VLLM_API_KEY", "k8s": "llm-api-key"}
    commands = [line for line in text.splitlines() if "read -r key" in line]
    assert (len(commands), where[form] in text) == (1, True)


# The verb


def test_the_command_line_offers_every_form() -> None:
    assert set(verb.FORMATS) == set(exported.FORMS) == set(exported.FILLED)


def test_another_engine_is_refused(tmp_path: Path) -> None:
    wanted = of({"engine_family": "sglang"})
    made(tmp_path, of({}))
    save_state(Host(root=tmp_path), Layout("llm"), State("llm", proved=wanted))
    with pytest.raises(Refused, match="serves with SGLang, and only vLLM") as raised:
        exported.export("llm", "compose", None, Host(root=tmp_path))
    assert raised.value.hint == "sudo vllm-install set --service llm ENGINE_FAMILY=vllm"


def test_a_service_that_was_never_proved_is_refused(tmp_path: Path) -> None:
    host = Host(root=tmp_path)
    save_state(host, Layout("llm"), State("llm"))
    with pytest.raises(Refused, match="never been proved"):
        exported.export("llm", "compose", None, host)
    ran = cli("export", "--format", "compose", "no-such-one")
    assert (ran.returncode, ran.stdout) == (Exit.REFUSED, "")
    for words in (("--format", "compose", "--force"), ("--format", "swarm"), ("--format", "k8s", "--image", "a b")):
        assert cli("export", *words).returncode == Exit.USAGE
