"""Run in a machine against its service: `flood.py PORT KEY MODEL` prints how each kind of client was answered, as JSON.

Slow ones hold 300 connections and never finish a request, some bring huge headers, many bring wrong keys at once; and
a few want an answer.
"""

import asyncio
import collections
import json
import sys

PORT, KEY, MODEL = sys.argv[1:]
GET = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 4}).encode()
seen: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)


async def ask(name: str, head: bytes, body: bytes = b"") -> None:
    answer = b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(PORT))
        writer.write(head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
    except OSError:
        pass  # closed on us, and counted as that
    seen[name][answer.split()[1].decode() if answer else "closed"] += 1


async def bad(count: int) -> None:
    for number in range(count):
        await ask("bad keys", GET + b"Authorization: Bearer sk-wrong-%d\r\n" % number)


async def big(size: int) -> None:
    await ask("big headers", GET + b"X-Big: " + b"x" * size + b"\r\n")
    await ask("big headers", GET + b"Authorization: Bearer " + b"y" * size + b"\r\n")


async def good(count: int) -> None:
    for _ in range(count):
        await ask("good", POST + b"Authorization: Bearer " + KEY.encode() + b"\r\n", BODY)


async def main() -> None:
    slow = [await asyncio.open_connection("127.0.0.1", int(PORT)) for _ in range(300)]
    for _, writer in slow:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nX-Slow: ")
    others = [*(bad(40) for _ in range(100)), *(big(size) for size in (20_000, 70_000, 1_000_000, 20_000_000))]
    await asyncio.gather(*others, *(good(10) for _ in range(4)))


asyncio.run(main())
print(json.dumps(seen))
