"""Faults on request: words in VLLM_STANDIN and in the file `standin` in the home directory, read when they matter.

slow-start=SECONDS    takes that long to load
import=HOW            the import of its command line fails (`die`) or never ends (`hang`)
stall=STAGE           stops for ever at `load`, `compile` or `capture`
refuse-context=N      a longer context does not fit: vLLM's words, exit 1
auto-context=N        what `--max-model-len auto` comes to
die-at-start=STATUS   ends with this status while loading
die-on-completion     the engine dies of a signal at the first completion
hang                  completions are taken and never answered; /health stays 200
token-seconds=S       time between two tokens
last-words            prints the file `last-words` of the home directory while loading, and ends unless it says INFO
metrics=HOW           `garbled` or `missing`
waiting=N running=N   what the metrics say of the queue; kv-usage=SHARE of the cache
preemptions=N         how many requests lost their place, so far; slow-tokens: that tokens take long
model-name=NAME       says that it serves this model, whatever it was told
stream=FAULT          a streamed answer is `cut` off, comes in one `piece`, is `garbled`, or of a wrong type (`plain`)
deaf                  goes on with an answer whose client is gone
long-prompts=STATUS   a prompt longer than the context is answered with this status and without a word on its length
template=N            the words that the template puts around a chat are N tokens
mute-api=ROUTE        answers of /v1/messages, or of /v1/responses, hold no text
mute                  answers hold no text
sees                  takes pictures
talks                 answers in text where a tool was to be called
fail=N                every N-th completion is answered with 500

A word that ends in @FILE, such as hang@night, holds only once a file of that name lies in the home directory.

`vllm serve … --additional-config WORDS` does the same for a server whose home nobody knows beforehand.
"""

import os
from pathlib import Path


def value(name: str) -> str | None:
    """The fault's value, "" for one without, None where it is not asked for."""
    words = os.environ.get("VLLM_STANDIN", "").split()
    home = Path(os.environ.get("HOME", "/"))
    file = home / "standin"
    if file.is_file():
        words += file.read_text().split()
    for word in words:
        word, _, when = word.partition("@")
        key, _, text = word.partition("=")
        if key == name and (home / when).exists():
            return text
    return None


def number(name: str, default: float) -> float:
    return float(value(name) or default)
