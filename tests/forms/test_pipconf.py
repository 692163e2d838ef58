from __future__ import annotations

from pathlib import Path

import pytest

from installer.base.host import Host
from installer.forms.venv.pipconf import Sources, read_sources
from installer.spec.settings import Settings


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(root=tmp_path)


def conf(host: Host, path: str, text: str) -> None:
    host.write(Path(path), text)


def test_an_unconfigured_host_leaves_uv_to_its_defaults(host: Host) -> None:
    assert read_sources(host, Settings(), {}) == Sources()
    assert Sources().options() == []
    assert Sources().environment() == {}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
        "/home/admin/.pip/pip.conf",
        "/home/admin/.config/pip/pip.conf",
        "/srv/named.conf",
    ],
)
def test_each_of_pips_files_is_read(host: Host, path: str) -> None:
    conf(host, path, "[global]\nindex-url = https://mirror.example/simple\n")
    environ = {"HOME": "/home/admin", "PIP_CONFIG_FILE": "/srv/named.conf"}
    assert read_sources(host, Settings(), environ).index_url == "https://mirror.example/simple"


def test_the_later_say_wins(host: Host) -> None:
    def index(environ: dict[str, str], settings: Settings | None = None) -> str | None:
        return read_sources(host, settings or Settings(), {"HOME": "/home/admin", **environ}).index_url

    conf(host, "/etc/pip.conf", "[global]\nindex-url = https://etc\n")
    assert index({}) == "https://etc"
    conf(host, "/home/admin/.config/pip/pip.conf", "[global]\nindex_url = https://home\n")
    assert index({}) == "https://home"
    conf(host, "/srv/named.conf", "[global]\nindex-url = https://named\n[install]\nindex-url = https://install\n")
    named = {"PIP_CONFIG_FILE": "/srv/named.conf"}
    assert index(named) == "https://install"
    environment = {**named, "PIP_INDEX_URL": "https://environment"}
    assert index(environment) == "https://environment"
    assert index(environment, Settings(index_url="https://flag")) == "https://flag"
    assert index({"PIP_CONFIG_FILE": "/dev/null"}) is None


def test_a_file_that_pip_would_refuse_is_passed_over(host: Host) -> None:
    conf(host, "/etc/pip.conf", "index-url = https://no-section\n")
    assert read_sources(host, Settings(), {}) == Sources()


def test_every_key_reaches_uv(host: Host, tmp_path: Path) -> None:
    links = tmp_path / "links, with a comma"
    links.mkdir()
    conf(
        host,
        "/etc/pip.conf",
        "[global]\nindex-url = https://u:secret@one/simple\nextra-index-url =\n  https://u:secret@two/simple\n"
        "  https://three/simple\ntrusted-host = one two\ncert = /ca.pem\nclient-cert = /me.pem\n"
        "proxy = http://u:secret@proxy:3128\nfind-links = /not/there https://u:secret@page/a,b\n",
    )
    conf(host, "/etc/ssl/certs/ca-certificates.crt", "")
    sources = read_sources(host, Settings(find_links=str(links)), {})
    assert sources.options() == [
        "--find-links", str(links), "--allow-insecure-host", "one", "--allow-insecure-host", "two",
        "--index-strategy", "unsafe-best-match",
    ]  # fmt: skip
    assert sources.environment() == {
        "UV_DEFAULT_INDEX": "https://u:secret@one/simple",
        "UV_INDEX": "https://u:secret@two/simple https://three/simple",
        "UV_FIND_LINKS": "https://u:secret@page/a%2Cb",
        "SSL_CERT_FILE": "/ca.pem",
        "SSL_CLIENT_CERT": "/me.pem",
        "HTTP_PROXY": "http://u:secret@proxy:3128",
        "HTTPS_PROXY": "http://u:secret@proxy:3128",
        "UV_SYSTEM_CERTS": "true",
    }
    assert "secret" not in repr(sources.identity()) + repr(sources)


def test_no_index_means_find_links_only_unless_an_index_is_asked_for(host: Host) -> None:
    conf(host, "/etc/pip.conf", "[global]\nno-index = yes\nindex-url = https://one\n")
    closed = read_sources(host, Settings(), {})
    assert closed.options() == ["--no-index"]
    assert closed.environment() == {}
    assert not read_sources(host, Settings(index_url="https://flag"), {}).no_index


def test_a_new_password_is_not_another_source_but_a_new_index_is() -> None:
    first = Sources(index_url="https://u:old@one/simple").identity()
    assert first == Sources(index_url="https://u:new@one/simple").identity()
    assert first != Sources(index_url="https://u:old@two/simple").identity()


@pytest.mark.parametrize("url", ["https://me:p@ss@mirror/simple", "https://me:a/b@mirror/simple"])
def test_a_password_that_was_typed_as_it_is_names_no_place(url: str) -> None:
    assert Sources(index_url=url, find_links=(url,)).places() == ["https://***@mirror/simple"] * 2
