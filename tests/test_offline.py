"""The guard itself: it fails what reaches out, in whichever way, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# 192.0.2.1 is set aside for documentation, .invalid for names that do not exist.
OUT = {
    "connects": 'socket.create_connection(("192.0.2.1", 80), timeout=5)',
    "connects_by_name": 'urllib.request.urlopen("http://hub.invalid/", timeout=5)',
    "looks_up": 'socket.gethostbyname("hub.invalid")',
    "looks_up_bytes": 'socket.getaddrinfo(b"hub.invalid", 443)',
    "sends_a_datagram": 'socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))',
    "connects_v6": 'socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80))',
    "awaits": 'asyncio.run(asyncio.open_connection("192.0.2.1", 80))',
    "does_so_in_a_thread": (
        'threading.Thread(target=quietly, args=(socket.gethostbyname, "hub.invalid")).start(); '
        "time.sleep(0.5)"
    ),
    "swallows": 'quietly(socket.gethostbyname, "hub.invalid")',
    "has_a_child": (
        'subprocess.run([sys.executable, "-c", '
        "\"import socket; socket.gethostbyname('hub.invalid')\"])"
    ),
    "has_a_grandchild": (
        'subprocess.run([sys.executable, "-c", "import subprocess, sys; subprocess.run('
        "[sys.executable, '-c', 'import socket; socket.socket().connect((chr(49)+\\\\'92.0.2.1"
        "\\\\', 80))'])\"])"
    ),
}
HERE = {
    "serves_itself": (
        "server = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(server.getsockname()).close(); server.close()"
    ),
    "knows_localhost": "socket.getaddrinfo('localhost', 80); socket.getaddrinfo(None, 80)",
    "knows_itself": "quietly(socket.gethostbyname, socket.gethostname())",
    "binds_to_a_number": "socket.getaddrinfo('0.0.0.0', 0); socket.getaddrinfo('192.0.2.1', 0)",
    "has_a_pair": "a, b = socket.socketpair(); a.sendall(b'x'); b.recv(1); a.close(); b.close()",
    "has_a_quiet_child": "subprocess.run([sys.executable, '-c', 'import socket'], check=True)",
}
HEAD = """\
import asyncio, socket, subprocess, sys, threading, time, urllib.request

def quietly(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        pass
"""


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "1"]], ids=["", "xdist"])
def test_what_reaches_out_fails(tmp_path: Path, options: list[str]) -> None:
    body = [HEAD]
    for name, line in {**OUT, **HERE}.items():
        body.append(f"\ndef test_{name}():\n    {line}\n")
    (tmp_path / "test_inner.py").write_text("".join(body), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "offline", "-p", "no:cacheprovider", "-rA", "-q",
         "--tb=no", *options, "test_inner.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    failed = {line.split("::test_")[1].split(" ")[0] for line in lines if "FAILED" in line[:6]}
    passed = {line.split("::test_")[1].split(" ")[0] for line in lines if "PASSED" in line[:6]}
    assert (failed, passed) == (set(OUT), set(HERE)), ran.stdout + ran.stderr
    assert not any("ERROR" in line for line in lines), "blamed on what came after the test"


def test_this_process_is_guarded() -> None:
    """The suite itself runs with the plugin."""
    assert "EVITLAB_TESTS_NETWORK_LOG" in os.environ, 'conftest.py: pytest_plugins = ["offline"]'
    script = "import sitecustomize; print(sitecustomize.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert Path(ran.stdout.strip()) == TESTS / "guard" / "sitecustomize.py"
