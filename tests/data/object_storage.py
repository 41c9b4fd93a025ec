"""A real S3 server (rclone) on this machine, behind a proxy that fails on demand."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY, SECRET = "testkey12345", "testsecret12345"


def rclone() -> str | None:
    """The program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.exists() else shutil.which("rclone")


@contextlib.contextmanager
def serve_s3(folder: Path) -> Iterator[int]:
    """Serve the subfolders of `folder` as buckets; yields the port."""
    port = free_port()
    command = [
        str(rclone()),
        "serve",
        "s3",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{KEY},{SECRET}",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy(ThreadingHTTPServer):
    """Passes requests on; ranged reads meet the faults that `faults` lists, one each, and are counted."""

    daemon_threads = True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.faults: deque[str] = deque()
        self.always = ""
        """A fault for every ranged read."""
        self.write_faults: deque[str] = deque()
        """Faults that the next writes and removals meet, one each."""
        self.always_write = ""
        """A fault for every write and removal."""
        self.reads: list[str] = []
        """Range header of each ranged read."""
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        fault = ""
        if "Range" in self.headers:
            with self.server.lock:
                self.server.reads.append(self.headers["Range"])
                self.server.at_once += 1
                self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
                fault = self.server.always or (self.server.faults.popleft() if self.server.faults else "")
        try:
            self._answer(fault)
        finally:
            if "Range" in self.headers:
                with self.server.lock:
                    self.server.at_once -= 1

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        with self.server.lock:
            waiting = self.server.write_faults
            fault = self.server.always_write or (waiting.popleft() if waiting else "")
        self._answer(fault, body)

    do_POST = do_DELETE = do_PUT

    def log_message(self, format: str, *args: object) -> None:
        return

    def _answer(self, fault: str, sent: bytes | None = None) -> None:
        if fault == "reset":
            # Linger of zero: the connection ends with RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault in ("503", "403", "404"):
            code = {"503": "ServiceUnavailable", "403": "AccessDenied", "404": "NoSuchKey"}[fault]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
            self._send(int(fault), {"Content-Type": "application/xml"}, body, len(body))
            return
        status, headers, body = self._upstream(sent)
        if fault == "slow":
            time.sleep(0.05)
        if fault == "fewer":  # an honest answer with half of what was asked for
            body = body[: len(body) // 2]
            headers.pop("Content-Range", None)
        self._send(status, headers, body[: len(body) // 2] if fault == "short" else body, len(body))

    def _upstream(self, sent: bytes | None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=20)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body=sent, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: dict[str, str], body: bytes, promised: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(promised)) if self.command == "HEAD" else str(promised)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if len(body) < promised:
            self.close_connection = True


@contextlib.contextmanager
def serve_proxy(upstream: int) -> Iterator[Proxy]:
    """The proxy before a server's port."""
    proxy = Proxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(5)


def environment(url: str) -> dict[str, str]:
    """What makes s3:// mean this server, for this process and its children."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
    }
