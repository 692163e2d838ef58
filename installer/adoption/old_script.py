"""A shell line or script that starts vLLM, read without running any of it.

Plain assignments, $NAME, ${NAME:-default}, "$@", quoting, continuations and sourced assignments are understood.
What only a shell could tell, such as $(cat key), is refused where the vLLM command depends on it, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from installer.adoption.old import Old, read_text, serve_words
from installer.base.errors import Refused
from installer.base.host import Host
from installer.base.language import tr

DEPTH = 4  # of files that source files
_SKIPPED = ("export", "readonly", "declare", "local", "then", "else", "do", "{", "!", "time", "exec", "nohup")
_OPENS, _CLOSES = ("if", "for", "while", "until", "case"), ("fi", "done", "esac")
_OWN = re.compile(r"[A-Za-z_]\w*(?==)")
_CARRIED = ("VLLM_", "HF_", "CUDA_")  # a variable that vLLM itself reads must be known
_FETCHES = "HF_TOKEN"  # only who fetches weights asks for it, and says so where it is needed
_ARGUMENTS = re.compile(r'(?:"\$\{?@\}?"|\$\{?[@*]\}?)(?=[ \t\n;&|()<>]|$)')


@dataclass(frozen=True)
class Word:
    """One word of a command; `unknown` says why its text cannot be known without running the script."""

    text: str
    unknown: str = ""
    fields: bool = False  # it came from an unquoted variable, so blanks divide it
    several: tuple[str, ...] | None = None  # it stands for all of these, or for none


@dataclass
class _Shell:
    """What is known so far while the commands are read in order."""

    host: Host
    directory: Path
    values: dict[str, Word]
    texts: list[str] = field(default_factory=list)
    found: list[tuple[list[Word], dict[str, Word]]] = field(default_factory=list)
    depth: int = 0  # of if, for and their like


def read(text: str, surroundings: Old, host: Host, arguments: tuple[str, ...] = ()) -> Old:
    given = {"@": Word("", several=arguments)}
    shell = _Shell(host, surroundings.directory, given | {n: Word(v) for n, v in surroundings.environment.items()})
    _follow(text, shell, 0)
    if not shell.found:
        raise Refused(
            tr("no command in it starts vLLM"), tr("expected a line with vllm serve MODEL, or the older api_server")
        )
    if len(shell.found) > 1:
        raise Refused(
            tr("{count} commands in it start vLLM", count=len(shell.found)),
            tr("put the one to adopt into a file of its own"),
        )
    words, values = shell.found[0]
    values.pop("@")
    serve = _served(words)
    assert serve is not None, "only such commands are kept"
    needed = [word for name, word in values.items() if name.startswith(_CARRIED) and name != _FETCHES]
    if unknown := next((word.unknown for word in (*serve, *needed) if word.unknown), ""):
        raise Refused(
            tr("what vLLM is started with depends on {unknown}", unknown=unknown),
            tr("write the value out, and adopt that"),
        )
    return replace(
        surroundings,
        words=tuple(word.text for word in serve),
        environment={name: word.text for name, word in values.items() if not word.unknown},
        directory=shell.directory,
        texts=(*surroundings.texts, text, *shell.texts),
        shown=surroundings.shown or text,
    )


def _served(words: list[Word]) -> list[Word] | None:
    """The words that vLLM gets: what stands before it, such as a path, need not be known."""
    divided = [each for word in words for each in _divided(word)]
    serve = serve_words([word.text for word in divided])
    return None if serve is None else divided[len(divided) - len(serve) :]


def _divided(word: Word) -> list[Word]:
    if word.several is not None:
        return [Word(text) for text in word.several]
    return [replace(word, text=text) for text in word.text.split()] if word.fields and not word.unknown else [word]


def _own(words: list[Word]) -> dict[str, Word]:
    """The variables that a command is given in front of it, which are taken off it; `env` may stand before them."""
    own: dict[str, Word] = {}
    if words and Path(words[0].text).name == "env" and len(words) > 1 and _OWN.match(words[1].text):
        words.pop(0)
    while words and (name := _OWN.match(words[0].text)):
        given = words.pop(0)
        own[name[0]] = replace(given, text=given.text[name.end() + 1 :], fields=False)
    return own


def _follow(text: str, shell: _Shell, level: int) -> None:
    for words in Lexer(text.replace("\\\n", ""), shell.values).commands():
        while words and words[0].text in (*_SKIPPED, *_OPENS, *_CLOSES):
            word = words.pop(0).text
            shell.depth += (word in _OPENS) - (word in _CLOSES)
        own = _own(words)
        if not words:
            why = tr("a variable that is set under a condition") if shell.depth > 0 else ""
            shell.values.update({name: replace(word, unknown=word.unknown or why) for name, word in own.items()})
        elif words[0].text == "cd" and len(words) == 2:
            shell.directory = shell.directory / words[1].text
        elif words[0].text in (".", "source") and len(words) > 1:
            _source(words[1], shell, level)
        elif _served(words) is not None:
            shell.found.append((words, {**shell.values, **own}))


def _source(word: Word, shell: _Shell, level: int) -> None:
    """A file of assignments counts; the activation of a venv does not, for the engine is another one."""
    path = shell.directory / word.text
    if word.unknown or path.name == "activate" or not shell.host.exists(path):
        return
    if level == DEPTH:
        raise Refused(
            tr("{path} is sourced by a file that is itself sourced, and so on", path=path),
            tr("write the values into one file"),
        )
    shell.texts.append(read_text(path, shell.host))
    outside, shell.depth = shell.depth, 0  # [ -f .env ] && . ./.env: it is there, so it counts
    _follow(shell.texts[-1], shell, level + 1)
    shell.depth = outside


class Lexer:
    """Words and commands, as far as starting a server needs them."""

    END = " \t\n;&|()<>"

    def __init__(self, text: str, values: dict[str, Word]) -> None:
        self.text = text
        self.at = 0
        self.values = values

    def commands(self) -> Iterator[list[Word]]:
        words: list[Word] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            if character in " \t":
                self.at += 1
            elif character == "#":
                self._skip_to("\n")
            elif character in "<>" or self.text.startswith("&>", self.at):
                self._redirection()
            elif character in "\n;&|()":
                self.at += 1
                if words:
                    yield words
                words = []
            else:
                word = self._word()
                is_descriptor = word.text.isdigit() and self.text[self.at : self.at + 1] in ("<", ">")
                words += [] if is_descriptor else [word]
        if words:
            yield words

    def _skip_to(self, end: str) -> str:
        found = self.text.find(end, self.at)
        skipped = self.text[self.at : found if found >= 0 else len(self.text)]
        self.at += len(skipped)
        return skipped

    def _redirection(self) -> None:
        operator = re.compile(r"&?[<>]+[&|-]?[ \t]*").match(self.text, self.at)
        assert operator is not None
        self.at = operator.end()
        target = self._word().text
        if operator[0].strip() in ("<<", "<<-") and target:
            body_end = re.compile(rf"^\t*{re.escape(target)}$", re.MULTILINE).search(self.text, self.at)
            self.at = body_end.end() if body_end else len(self.text)

    def _word(self) -> Word:
        parts: list[Word] = []
        if all_of_them := _ARGUMENTS.match(self.text, self.at):
            self.at = all_of_them.end()
            return self.values.get("@", Word(""))
        while self.at < len(self.text) and (character := self.text[self.at]) not in self.END:
            self.at += 1
            if character == "'":
                parts.append(Word(self._quoted("'")))
            elif character == '"':
                parts += self._in_double_quotes()
            elif character == "\\":
                parts.append(Word(self.text[self.at : self.at + 1]))
                self.at += 1
            elif character in "$`":
                parts.append(replace(self._value(character), fields=True))
            else:
                parts.append(Word(character))
        return _joined(parts)

    def _quoted(self, end: str) -> str:
        text = self._skip_to(end)
        if self.at >= len(self.text):
            raise Refused(tr("an opening {sign} has no end", sign=end), tr("mend the script (sh -n FILE says where)"))
        self.at += 1
        return text

    def _in_double_quotes(self) -> list[Word]:
        parts: list[Word] = []
        while (character := self.text[self.at : self.at + 1]) != '"':
            if not character:
                raise Refused(
                    tr("an opening {sign} has no end", sign='"'), tr("mend the script (sh -n FILE says where)")
                )
            self.at += 1
            if character == "\\" and self.text[self.at : self.at + 1] in ("$", "`", '"', "\\"):
                parts.append(Word(self.text[self.at]))
                self.at += 1
            else:
                parts.append(self._value(character) if character in "$`" else Word(character))
        self.at += 1
        return parts

    def _value(self, sign: str) -> Word:
        """What stands for $NAME and its kin; the sign itself is read already."""
        if sign == "`":
            self._quoted("`")
            return Word("", tr("the output of a command"))
        following = self.text[self.at : self.at + 1]
        if following == "(":
            self._balanced("(", ")")
            return Word("", tr("the output of a command"))
        if following == "{":
            return self._braces(self._balanced("{", "}"))
        name = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]").match(self.text, self.at)
        if not name:
            return Word("$")
        self.at = name.end()
        return self._variable(name[0])

    def _braces(self, inner: str) -> Word:
        match = re.fullmatch(r"([A-Za-z_]\w*)(?:(:?)[-=](.*))?", inner, re.DOTALL)
        if not match:
            return Word("", tr("{variable}, which only a shell works out", variable=f"${{{inner[:20]}}}"))
        name, colon, default = match.groups()
        value = self.values.get(name)
        if default is None or (value is not None and (value.text or value.unknown or not colon)):
            return self._variable(name)
        return _joined(Lexer(default + '"', self.values)._in_double_quotes())

    def _variable(self, name: str) -> Word:
        known = self.values.get(name)
        return (
            Word(known.text, known.unknown)
            if known and name != "@"
            else Word("", tr("{variable}, which it does not set", variable=f"${name}"))
        )

    def _balanced(self, opening: str, closing: str) -> str:
        """The text between a bracket, at which we stand, and its counterpart."""
        begin, depth = self.at, 0
        while self.at < len(self.text):
            depth += (self.text[self.at] == opening) - (self.text[self.at] == closing)
            self.at += 1
            if depth == 0:
                return self.text[begin + 1 : self.at - 1]
        raise Refused(tr("an opening {sign} has no end", sign=opening), tr("mend the script (sh -n FILE says where)"))


def _joined(parts: list[Word]) -> Word:
    return Word(
        "".join(part.text for part in parts),
        next((part.unknown for part in parts if part.unknown), ""),
        any(part.fields for part in parts),
    )
