"""Run in a machine against its service: `half_open.py PORT COUNT` that many connections, half a head on each.

Whatever is closed on it is opened again, some thousand a second at most. One address has too few ports for many, so
they come from several. Says `all` once each was tried, and ends with its input.
"""

import asyncio
import contextlib
import resource
import sys

PORT, COUNT = map(int, sys.argv[1:])
OF_ONE_ADDRESS = 20_000
A_SECOND = 2_000
tried = 0


async def hold(number: int) -> None:
    global tried
    await asyncio.sleep(number / A_SECOND)
    address = f"127.0.1.{1 + number // OF_ONE_ADDRESS}"
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT, local_addr=(address, 0))
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
