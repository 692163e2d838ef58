"""What lies on the host in English, shown in the user's language.

The launcher and the watcher of a service speak to systemd and the journal, and our record tells how each change ended.
Such a text is known by its form, and put into the user's words where it is shown.
"""

from __future__ import annotations

import functools
import re
from string import Formatter

from installer.base.language import mark, tr

# What holds another text stands before what that one could be taken for.
TEXTS = (
    mark("{why}; stage: {stage}; {queues}"),
    mark("failed while {stage}: {text}"),
    mark("replica {number}: {why}"),
    mark("refused: {why}"),
    mark("cannot launch: {error}"),
    mark("cannot reload: {error}"),
    mark("cannot check: {error}"),
    # The stages of a start, with those who wait for it
    mark("{stage}; {count} callers wait, longest {seconds} s"),
    mark("starting"),
    mark("starting the engine"),
    mark("loading weights"),
    mark("weights loaded"),
    mark("measuring memory"),
    mark("compiling"),
    mark("warming up"),
    mark("capturing graphs"),
    mark("starting the server"),
    mark("waiting for the first answer"),
    mark("serving"),
    mark("serving {model}"),
    mark("{serving} of {count} replicas serve"),
    mark("waiting for the group: {hosts}: {why}"),
    mark("waiting for the group: {hosts}"),
    mark("it has not answered yet"),
    mark("its supervisor says nothing of the group"),
    mark("it waits for the others"),
    mark("it refuses this host: {why}"),
    mark("the group is broken: {why}"),
    mark("the engines of all hosts start together"),
    mark("the engine has ended"),
    mark("a member of a group that cannot be one: {error}"),
    mark("HOLD=0: the head of a group waits for the others, and callers with it"),
    mark("serving as a part of {host}"),
    mark("too many connections: no descriptor is left for another one"),
    # How it ends
    mark("the start made no progress for {seconds} s"),
    mark("port {port} answers without a key: the guard is not in place"),
    mark("the model refuses the smallest request: {words}"),
    mark("the engine died of its first request"),
    mark("the first request was not answered within {seconds} s"),
    mark("the engine died: ending {engine}, to be started anew"),
    mark("the engine died (process {pid}): ending {engine}, to be started anew"),
    mark("the engine makes no progress and answers no request"),
    mark("the watcher's own key is refused: the file with the keys is damaged"),
    mark("no metrics"),
    # Why it does not begin
    mark("argument {number} before the -- is not --api-key"),
    mark("--api-key number {number} is malformed: {form}"),
    mark("expected {form}, or the key itself"),
    mark("--api-key number {number} expires on a day that does not exist: {expiry}"),
    mark("no inference key among the --api-key arguments: a server that nobody may ask is a mistake"),
    mark("RUNTIME_DIRECTORY is not set: the unit needs RuntimeDirectory="),
    mark("systemd has handed over no door for the gateway"),
    mark("no probe key: the unit needs LoadCredential=probe-key:PATH (systemd 247 or newer)"),
    mark("the service does not run: there are no keys to replace"),
    mark("expected `-- serve MODEL` after the keys"),
    mark("{flag} cannot be used: {why}"),
    mark("{variable} is set: {why}, so it is refused"),
    mark("vLLM's Rust front end takes no guard"),
    mark("adapters are named by LORA, and no request loads one"),
    mark("--port {port} is not a port"),
    mark("HOLD is not a number of seconds from 0 to {limit}"),
    mark("port {port} is not open to this user: take one above 1023"),
    mark("port {port} is held by {holder}"),
    mark("another user's process (to see it, as root: {command})"),
    mark("cannot listen on {host} port {port}: {error}"),
    mark("expected one of {verbs}"),
    mark("vLLM's own key covers only some routes; keys belong before the --"),
    mark("the readiness probe needs TCP: use --host and --port"),
    mark("a gRPC server would answer without a key"),
    mark("a server without an API cannot be watched"),
    mark("without statistics a full queue looks like a hang"),
    mark("SGLang writes its own key into the log; keys belong before the --"),
    mark("a file of flags would go round what is refused here"),
    mark("each of these processes would answer without a key"),
    mark("another web server takes no guard"),
    mark("its server takes no guard"),
    mark("its processes would talk over ports that answer without a key"),
    mark("whoever has a key could run code of his own in the service"),
    mark("SGLang's Rust server takes no guard"),
    mark("the gateway before it speaks TLS: TLS_CERT and TLS_KEY, or TLS=self"),
    # The gateway
    mark("ready"),
    mark("the gateway does not run, or does not answer"),
    mark("HAProxy would not take the certificate: {why}"),
    mark("HAProxy would not take {file}: {why}"),
    mark("HAProxy goes on with the configuration that it had"),
    mark("the certificate {file} is unfit: {why}"),
    mark("it has expired"),
    mark("it is not valid yet: look at the clock"),
    mark("the key belongs to another certificate"),
    mark("the key is encrypted, and nobody is there to type its password"),
    # Why the next engine has not taken over
    mark("it failed while {stage}: {text}"),
    mark("the next engine ended with status {status}"),
    mark("the next engine could not be prepared in time"),
    mark("the supervisor of the next engine has died"),
    mark("the supervisor of the next engine says nothing"),
    mark("the watcher of the next engine was killed"),
    mark("nobody waits for it any more"),
    mark("the service ends"),
    mark("it was told to end"),
    mark("another change is being taken over"),
    # How a change ended
    mark("proved"),
    mark("written; the service is not running"),
    mark("in force as soon as the service answers"),
    mark("in force; the service answered nothing"),
    mark("undone: {why}"),
    mark("confirmed"),
    mark("confirmed early"),
    mark("rolled back"),
    mark("rolled back: {why}"),
    mark("rolled back by hand"),
    mark("not rolled back"),
    mark("not rolled back: {why}"),
    mark("it does not run any more ({result}, exit status {status})"),
    mark("it does not run any more ({result}, exit status {status}): {why}"),
    mark("it ended by itself, and systemd had to start it again"),
    mark("it ended by itself, and systemd had to start it again: {why}"),
    mark("{failed} of {answered} requests failed, {share}; before the change it was {before}"),
    mark("the kernel changed from {before} to {now}"),
    mark("the GPU driver changed from {before} to {now}"),
    mark("cut off"),
    # What a change was undone for, most often
    mark("{unit} did not come up ({result})"),
    mark("{unit} did not come up ({result}): {why}"),
    mark("the successor of {unit} did not come up ({result}): {why}"),
    mark("the successor of {unit} did not come up ({result})"),
    mark("asked {context}; this GPU fits {fits}"),
    mark("interrupted by {signal}"),
)


WORD = re.compile(r"[\w.@%:/+-]{1,64}", re.ASCII)
ELIDED = "…"


def in_our_words(text: str) -> str:
    """The text as far as it is ours: what stands in its gaps is shown where it is a text of ours too, or one word."""
    for template, form in _forms():
        if match := form.fullmatch(text):
            return template.format(**{name: _in_gap(value) for name, value in match.groupdict().items()})
    return ELIDED


def _in_gap(value: str) -> str:
    return value if WORD.fullmatch(value) else in_our_words(value)


def translated(text: str) -> str:
    """The text as it is, where it is none of these."""
    for template, form in _forms():
        match = form.fullmatch(text)
        if match:
            return tr(template, **{name: translated(value) for name, value in match.groupdict().items()})
    return text


@functools.cache
def _forms() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((template, re.compile(_form(template), re.DOTALL)) for template in TEXTS)


def _form(template: str) -> str:
    parts = Formatter().parse(template)
    return "".join(re.escape(words) + (f"(?P<{name}>.+?)" if name else "") for words, name, _, _ in parts)
