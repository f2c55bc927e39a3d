"""HAProxy with deploy/proxy/haproxy.cfg before a machine that vanishes: nobody closes its connections."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.nodes.cluster import Cluster, lacking
from trtllm_pt.bench.netlab.links import Link, Links

pytestmark = [
    pytest.mark.nodes,
    pytest.mark.skipif(lacking() is not None, reason=str(lacking())),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="no HAProxy here: apt-get install haproxy"),
]
CONFIG = Path(__file__).parents[2] / "deploy" / "proxy" / "haproxy.cfg"
SERVER = """
import http.server, time

class Silent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"6\\r\\nbegun\\n\\r\\n")
        time.sleep(1000)

http.server.ThreadingHTTPServer(("", 9000), Silent).serve_forever()
"""
CLIENT = """
import http.client

connection = http.client.HTTPConnection("127.0.0.1", 9000, timeout=120)
connection.request("POST", "/v1/completions", "{}")
answer = connection.getresponse()
print(answer.readline().decode(), end="", flush=True)
try:
    answer.read()
except http.client.IncompleteRead:
    print("incomplete", flush=True)
"""


def test_a_stream_from_a_machine_that_vanishes_breaks_off(tmp_path: Path) -> None:
    with Cluster(2, Link(50)) as cluster:
        text = CONFIG.read_text()
        for name in ("replica1:", "replica2:"):
            text = text.replace(f" {name}", f" {Links.address(1)}:")
        (tmp_path / "haproxy.cfg").write_text(text)
        server = subprocess.Popen(cluster.enter(1, sys.executable, "-c", SERVER), stderr=subprocess.DEVNULL)
        proxy = subprocess.Popen(
            cluster.enter(0, "haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")), stdout=subprocess.DEVNULL
        )
        try:
            time.sleep(4)  # until HAProxy has asked the replica for its health
            with cluster.start(sys.executable, "-c", CLIENT) as client:
                assert client.stdout is not None and client.stdout.readline() == "begun\n"
                began = time.monotonic()
                cluster.cut(1)
                assert client.communicate(timeout=60)[0] == "incomplete\n"
            assert time.monotonic() - began < 15, "the configuration gives a silent machine 8 s"
        finally:
            for process in (proxy, server):
                process.kill()
                process.wait()
