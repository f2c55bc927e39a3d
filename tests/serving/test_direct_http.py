"""Requests to this machine that go past the proxy of the environment."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from trtllm_pt.serving.direct_http import is_loopback, open_directly, open_url
from trtllm_pt.serving.triton.server import free_ports


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server, in an environment whose proxy is a closed port."""
    [closed] = free_ports(1)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed}")
    monkeypatch.setattr("urllib.request._opener", None)  # urlopen keeps the proxies of its first call
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_proxy_for_this_machine(url: str) -> None:
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/proxied")
    assert open_directly(f"{url}/a", 5).read() == b"/a"
    assert open_url(urllib.request.Request(f"{url}/b")).read() == b"/b"
    with pytest.raises(urllib.error.URLError):  # another machine is asked through the proxy
        open_url(urllib.request.Request("http://192.0.2.1/"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("a.localhost", True),
        ("192.0.2.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
