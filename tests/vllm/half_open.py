"""Run in a machine against its service: `half_open.py PORT COUNT` that many connections, half a head on each.

Whatever is closed on it is opened again after a moment. Says `all` once each was tried, and ends with its input.
"""

import asyncio
import contextlib
import resource
import sys

PORT, COUNT = map(int, sys.argv[1:])
tried = 0


async def hold() -> None:
    global tried
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: h\r\nX-Slow: ")
            tried += 1
            if tried == COUNT:
                print("all", flush=True)
            await reader.read()
            writer.close()
        await asyncio.sleep(3)


async def main() -> None:
    holding = [asyncio.ensure_future(hold()) for _ in range(COUNT)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for each in holding:
        each.cancel()


resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + 100, COUNT + 100))
asyncio.run(main())
