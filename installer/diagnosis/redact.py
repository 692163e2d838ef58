"""Takes secrets out of text that leaves the host: those known to be on it, and whatever looks like one.

Rather too much than too little: a report is still of use with a word missing, and of harm with a key in it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterable
from urllib.parse import quote, unquote

from installer.spec.keys import SHORTEST

MASK = "[secret]"
WINDOW = 6  # so much of a known secret in a row is taken for a part of it
LONG_ENOUGH = 4

# Where a name says that a secret follows.
_NAMED = (
    r"[\w-]*(?:api[_-]?key|secret|passw(?:or)?d|passphrase|passwd|token|credential|private[_-]?key|access[_-]?key"
    r"|client[_-]?secret|auth)[\w-]*"
)
_VALUE = r"(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s\"',;]+)"
PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE | re.DOTALL), replacement)
    for pattern, replacement in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MASK),
        (r"(\w+://)[^\s/@]+@", rf"\1{MASK}@"),
        (r"(\b(?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?(?:\w+\s+)?)[^\s'\"]+", rf"\1{MASK}"),
        (r"(\b(?:bearer|basic)\s+)[\w+/.=~-]{6,}", rf"\1{MASK}"),
        (r"(\bx-[\w-]*key['\"]?\s*[:=]\s*['\"]?)[^\s'\"]+", rf"\1{MASK}"),
        (r"(\b(?:set-)?cookie\s*:\s*)[^\n]+", rf"\1{MASK}"),
        (r"(\bpassword\s+|\baccount\s+)\S+", rf"\1{MASK}"),  # as in .netrc
        (r"(--api-key[= ]+(?:[\w:-]+=)?)(?!sha256:)\S+", rf"\1{MASK}"),
        (r"(sha256:[0-9a-f]{8})[0-9a-f]{56}", r"\1…"),
        (rf"((?:^|[\s\"'{{,;?&\[(])(?:--)?{_NAMED}['\"]?\s*[=:]\s*){_VALUE}", rf"\1{MASK}"),
        (rf"((?:^|\s)--{_NAMED}\s+)(?!sha256:|--|[\w:-]+=sha256:){_VALUE}", rf"\1{MASK}"),
        (r"\b(?:sk|pk|rk)-[\w-]{6,}", MASK),
        (r"\b(?:hf|api_org|ghp|gho|ghs|github_pat|glpat|xox[abp])[_-][\w-]{6,}", MASK),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}", MASK),
        (r"\beyJ[\w-]{8,}(?:\.[\w-]+)*", MASK),
        # What a client sent is nobody's business.
        (r"(Received request|prompt['\"]?\s*[:=]|messages['\"]?\s*[:=])[^\n]*", r"\1 [a request]"),
    )
)
_FORMS = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"(\w+://)[^\s/@]+@", rf"\1{MASK}@"),
        (r"(\b(?i:bearer|basic)\s+)[\w+/.=~-]{6,}", rf"\1{MASK}"),
        (r"(--(?:api-key|hf-token)[= ]+)(?!(?:[\w:-]+=)?sha256:)[^\s\"']+", rf"\1{MASK}"),
        (r"((?:\b|_)(?:KEY|TOKEN|SECRET|PASS|PASSWORD)=)(?!\d+\b)[^\s\"']+", rf"\1{MASK}"),
        (r"\b(?:sk|hf|ghp|glpat)[_-][\w-]{6,}", MASK),
    )
)
_TELLING = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"(?:^|[\s\"'{{,;?&])(?:--)?{_NAMED}['\"]?\s*[=:]\s*({_VALUE})",
        rf"(?:^|\s)--{_NAMED}\s+({_VALUE})",
        r"--api-key[= ]+(?:[\w:-]+=)?([^\s\"'@]+)",
        r"\bpassword\s+(\S+)",
        r"\b((?:sk|hf|ghp|glpat)[_-][\w-]{6,})",
    )
)
LOOSE = re.compile(r"\S+")
WORDS = re.compile(r"[^\s\"'`<>(){}\[\],;=]+")
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]|\.\d)")
_HARMLESS = ("127.", "0.0.0.0", "255.")  # noqa: S104 an address of nobody


class Redactor:
    def __init__(self, secrets: Iterable[str], harmless: str | None = "", digests: Collection[str] = ()) -> None:
        """`secrets` are values known to be secret on this host; what is in `harmless` too gives nothing away.

        With None no part of a secret is looked for, which would take many a word out of a short text.

        Of keys that are known by their `digests` alone a word is found that is one.
        """
        self._digests = frozenset(digests)
        known = {secret.strip() for secret in secrets} - {""}
        spelt = {spelling for secret in known for spelling in _spellings(secret)}
        self._whole = sorted((s for s in spelt if len(s) >= LONG_ENOUGH), key=len, reverse=True)
        windows = {s[at : at + WINDOW] for s in spelt for at in range(len(s) - WINDOW + 1)}
        self._windows = {window for window in windows if harmless is not None and window not in harmless}

    def hidden(self, text: str) -> str:
        """Without secrets; an address is none where the text goes to this host's own admin."""
        text = without_keys(self._without_known(text), self._digests)
        for pattern, replacement in PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def __call__(self, text: str) -> str:
        text = self.hidden(text)
        return _ADDRESS.sub(lambda m: m[0] if m[0].startswith(_HARMLESS) else "[address]", text)

    def _without_known(self, text: str) -> str:
        for secret in self._whole:
            text = text.replace(secret, MASK)
        if not self._windows:
            return text
        hidden = [False] * len(text)
        for at in range(len(text) - WINDOW + 1):
            if text[at : at + WINDOW] in self._windows:
                hidden[at : at + WINDOW] = [True] * WINDOW
        if not any(hidden):
            return text
        return "".join(_masked(text, hidden))


class Masked:
    """Only what is secret is left out: the known values whole, and what has the form of a token or of a login."""

    def __init__(self, secrets: Iterable[str]) -> None:
        spelt = {spelling for secret in secrets if secret.strip() for spelling in _spellings(secret.strip())}
        self._whole = sorted((s for s in spelt if len(s) >= LONG_ENOUGH), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._whole:
            text = text.replace(secret, MASK)
        for pattern, replacement in _FORMS:
            text = pattern.sub(replacement, text)
        return text


def harvest(text: str) -> set[str]:
    """The secrets in a configuration: what is there may also be elsewhere, where nothing announces it."""
    found = {match[1].strip("\"'") for pattern in _TELLING for match in pattern.finditer(text)}
    for userinfo in re.findall(r"\w+://([^\s/@]+)@", text):
        found |= {userinfo, unquote(userinfo), userinfo.rpartition(":")[2], unquote(userinfo.rpartition(":")[2])}
    return {value for value in found if len(value) >= LONG_ENOUGH and not value.startswith("sha256:")}


def without_keys(text: str, digests: Collection[str]) -> str:
    """Whatever form a key has: one of a service's clients is known on this host by its digest."""
    for words in (LOOSE, WORDS) if digests else ():
        text = words.sub(lambda word: MASK if is_key(word[0], digests) else word[0], text)
    return text


def is_key(word: str, digests: Collection[str]) -> bool:
    """The word itself, or without what ends a sentence, or a name before it."""
    plain = (word, word.strip("\"'`.,:;!?()[]{}<>"), word.rpartition(":")[2])
    return any(len(each) >= SHORTEST and _digest(each) in digests for each in plain)


def _digest(word: str) -> str:
    return hashlib.sha256(word.encode(errors="surrogatepass")).hexdigest()


def _masked(text: str, hidden: list[bool]) -> Iterable[str]:
    for at, character in enumerate(text):
        if not hidden[at]:
            yield character
        elif at == 0 or not hidden[at - 1]:
            yield MASK


def _spellings(secret: str) -> set[str]:
    """The secret as it may have been written: as it is, in a URL, in base64 at any offset, escaped."""
    raw = secret.encode(errors="surrogatepass")
    encoded = {base64.b64encode(b" " * shift + raw).decode()[4 * bool(shift) :].rstrip("=") for shift in range(3)}
    return {
        secret,
        quote(secret, safe="", errors="surrogatepass"),
        secret.replace("%", "%%").replace("$", "$$"),
        raw.hex(),
        *encoded,
    }
