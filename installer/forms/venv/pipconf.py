"""What pip is configured to use on this host, told to uv, which reads none of it: users with a mirror need it."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from installer.base.host import Host
from installer.runtime.vllm_text import without_password
from installer.spec.settings import Settings

SECTIONS = ("global", "install")  # later ones win, as in pip
LISTS = ("extra-index-url", "find-links", "trusted-host")
KEYS = (*LISTS, "index-url", "cert", "client-cert", "no-index", "proxy")
TRUE = ("1", "true", "yes", "on", "t", "y")
SYSTEM_STORES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@dataclass(frozen=True, repr=False)
class Sources:
    """Where wheels come from. May hold passwords: it is never stored, printed, or put on a command line."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    no_index: bool = False
    system_certs: bool = False

    def identity(self) -> list[object]:
        """What decides which packages are found; a renewed password is not a reason for another engine."""
        return [self.places(), self.no_index]

    def places(self) -> list[str]:
        """The index, further ones and folders, without passwords; an empty text stands for PyPI."""
        return [without_password(url) for url in (self.index_url or "", *self.extra_index_urls, *self.find_links)]

    def options(self) -> list[str]:
        """The part without secrets, as uv's options."""
        links = [link for link in self.find_links if "://" not in link]
        return [
            *(option for link in links for option in ("--find-links", link)),
            *(option for name in self.trusted_hosts for option in ("--allow-insecure-host", name)),
            *(["--no-index"] if self.no_index else []),
            # pip takes the best version of all its indexes; uv would stop at the first that has the package.
            *(["--index-strategy", "unsafe-best-match"] if self.extra_index_urls else []),
        ]

    def environment(self) -> dict[str, str]:
        """The part that may hold secrets, or that only the environment can say."""
        pages = [link.replace(",", "%2C") for link in self.find_links if "://" in link]
        said = {
            "UV_DEFAULT_INDEX": None if self.no_index else self.index_url,
            "UV_INDEX": None if self.no_index else " ".join(self.extra_index_urls),
            "UV_FIND_LINKS": ",".join(pages),
            "SSL_CERT_FILE": self.cert,
            "SSL_CLIENT_CERT": self.client_cert,
            "HTTP_PROXY": self.proxy,
            "HTTPS_PROXY": self.proxy,
            "UV_SYSTEM_CERTS": "true" if self.system_certs else None,
        }
        return {name: value for name, value in said.items() if value}

    def pip_environment(self) -> dict[str, str]:
        """The same for pip itself, by its environment alone: what its files say was read already."""
        said = {
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": self.index_url,
            "PIP_EXTRA_INDEX_URL": " ".join(self.extra_index_urls),
            "PIP_FIND_LINKS": " ".join(
                link if "://" in link else str(Path(link).absolute()) for link in self.find_links
            ),
            "PIP_TRUSTED_HOST": " ".join(self.trusted_hosts),
            "PIP_CERT": self.cert,
            "PIP_CLIENT_CERT": self.client_cert,
            "PIP_PROXY": self.proxy,
            "PIP_NO_INDEX": "1" if self.no_index else None,
        }
        return {name: value for name, value in said.items() if value}


def read_sources(host: Host, settings: Settings, environ: Mapping[str, str]) -> Sources:
    """pip's files, then its environment, then our own settings: the later say wins, as it does in pip."""
    values: dict[str, str] = {}
    for path in _files(environ):
        values.update(_read_file(host.read(path)))
    for key in KEYS:
        if value := environ.get("PIP_" + key.upper().replace("-", "_")):
            values[key] = value
    links = [link for link in values.get("find-links", "").split() if "://" in link or Path(link).is_dir()]
    index = settings.index_url or values.get("index-url")
    return Sources(
        index_url=index,
        extra_index_urls=tuple(values.get("extra-index-url", "").split()),
        find_links=tuple(dict.fromkeys([settings.find_links, *links] if settings.find_links else links)),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        cert=values.get("cert") or environ.get("SSL_CERT_FILE") or environ.get("REQUESTS_CA_BUNDLE"),
        client_cert=values.get("client-cert"),
        proxy=values.get("proxy"),
        no_index=values.get("no-index", "").lower() in TRUE and not settings.index_url,
        system_certs=any(host.exists(Path(store)) for store in SYSTEM_STORES),
    )


def _files(environ: Mapping[str, str]) -> list[Path]:
    named = environ.get("PIP_CONFIG_FILE")
    if named == "/dev/null":  # pip's own way to say: no file at all
        return []
    home = Path(environ.get("HOME") or "/root")
    shared = environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    own = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path(directory) / "pip/pip.conf" for directory in reversed(shared.split(":")) if directory]
    files += [Path("/etc/pip.conf"), home / ".pip/pip.conf", own / "pip/pip.conf"]
    return [path for path in [*files, *([Path(named)] if named else [])] if path.is_absolute()]


def _read_file(text: str | None) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text or "")
    except configparser.Error:
        return {}  # pip itself refuses such a file: nobody depends on what it says
    found: dict[str, str] = {}
    for section in SECTIONS:
        if parser.has_section(section):
            said = {key.replace("_", "-"): value for key, value in parser.items(section)}
            found.update({key: said[key] for key in KEYS if said.get(key)})
    return found
