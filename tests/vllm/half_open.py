"""Run in a machine against its service: `half_open.py PORT COUNT ADDRESS`, half a head on each of so many connections.

Whatever is closed on it is opened again, some hundred a second. Says `all` once each was tried; ends with its input.
"""

import asyncio
import contextlib
import resource
import sys

PORT, COUNT, ADDRESS = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
A_SECOND = 500
tried = 0


async def hold(number: int) -> None:
    global tried
    await asyncio.sleep(number / A_SECOND)
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT, local_addr=(ADDRESS, 0))
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: h\r\nX-Slow: ")
            tried += 1
            if tried == COUNT:
                print("all", flush=True)
            await reader.read()
            writer.close()
        await asyncio.sleep(COUNT / A_SECOND)


async def main() -> None:
    holding = [asyncio.ensure_future(hold(number)) for number in range(COUNT)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for each in holding:
        each.cancel()


resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + 100, COUNT + 100))
asyncio.run(main())
