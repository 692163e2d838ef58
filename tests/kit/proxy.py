"""A proxy on localhost: it forwards what it is asked for, or tunnels, and remembers for whom."""

from __future__ import annotations

import http.client
import selectors
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Proxy:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.secrets: list[str] = []  # what it could read of tokens

    def __enter__(self) -> Proxy:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.proxy.asked.append(f"GET {parts.netloc}")
        connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("proxy-connection", "host")}
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=kept)
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.read())

    def do_CONNECT(self) -> None:
        self.proxy.asked.append(f"CONNECT {self.path}")
        self.proxy.secrets += [value for name, value in self.headers.items() if name.lower() == "authorization"]
        name, _, port = self.path.rpartition(":")
        with socket.create_connection((name, int(port)), timeout=30) as other:
            self.send_response(200)
            self.end_headers()
            self.tunnel(other)
        self.close_connection = True

    def tunnel(self, other: socket.socket) -> None:
        partner = {self.connection: other, other: self.connection}
        with selectors.DefaultSelector() as waiting:
            for one in partner:
                waiting.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select():
                    assert isinstance(key.fileobj, socket.socket)
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    partner[key.fileobj].sendall(data)
