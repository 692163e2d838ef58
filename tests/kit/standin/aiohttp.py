"""Of the HTTP client that vLLM brings, what its bench needs: a session whose requests have its headers."""

import json
import urllib.request
from typing import Any


class TCPConnector:
    pass


class ClientSession:
    def __init__(self, headers: dict[str, str], **_: Any) -> None:
        self.headers = headers

    def post(self, url: str, body: object) -> bytes:
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return bytes(answer.read())
