"""The real servers: this machine alone, nothing without the token, no file beside the notebook.

JupyterLab as `evitlab explore` and as `make lab` start it, Voila as `evitlab explore --app` does;
each is started once and asked many things. Paths go out as they are written, `..` and all.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from browser import at_home_in, free_port, wait_until

from evitlab import serving

ROOT = Path(__file__).parents[1]
SECRET = "do not hand this out"
SOURCE = "made = 'in the ' + 'page'"
# Ways to a file outside of the folder that is served.
WAYS_OUT = [
    "../secret.{kind}",
    "%2e%2e/secret.{kind}",
    "..%2fsecret.{kind}",
    "%2e%2e%2fsecret.{kind}",
    "..%5csecret.{kind}",
    "below/../../secret.{kind}",
    "/{absolute}",
    "%2f{absolute}",
    "..;/secret.{kind}",
    "%252e%252e%252fsecret.{kind}",
]


@dataclass
class Answer:
    status: int
    body: str
    headers: http.client.HTTPMessage


@dataclass
class Server:
    """One that runs; `folder` is what it serves, `outside` lies beside it."""

    kind: str  # "lab" or "voila"
    process: psutil.Process
    port: int
    token: str
    folder: Path
    outside: Path
    page: str = ""  # Voila's, once it has been opened

    def kernel(self) -> str:
        """The number of a kernel that runs: a new one of JupyterLab's, the page's of Voila's."""
        if self.kind == "lab":
            made = self.ask("/api/kernels", method="POST", body={}, token=self.token)
            assert made.status == 201, made.body
            return str(json.loads(made.body)["id"])
        if not self.page:
            opened = self.ask(f"/?token={self.token}")
            assert opened.status == 200, opened.body
            self.page = opened.body
        found = re.search(r'"kernelId": *"([-0-9a-f]{36})"', self.page)
        assert found, "the page names no kernel"
        return found[1]

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        token: str | None = None,
        body: Any = None,
        **headers: str,
    ) -> Answer:
        """One request. Header names are written with `_` for `-`; `Host` is the server's own."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        link.putrequest(method, path, skip_host=True)
        sent = {"Host": f"127.0.0.1:{self.port}", **headers}
        if token is not None:
            sent["Authorization"] = f"token {token}"
        content = b"" if body is None else json.dumps(body).encode()
        if content:
            sent["Content_Length"] = str(len(content))
        for name, value in sent.items():
            link.putheader(name.replace("_", "-"), value)
        link.endheaders(content or None)
        try:
            reply = link.getresponse()
            switched = reply.status == 101  # an open websocket has no end to read to
            text = "" if switched else reply.read().decode(errors="replace")
            return Answer(reply.status, text, reply.headers)
        finally:
            link.close()

    def shake_hands(self, path: str, **headers: str) -> int:
        """What a websocket is answered with: 101 where it is opened."""
        return self.ask(
            path,
            **{
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
                "Sec_WebSocket_Version": "13",
                **headers,
            },
        ).status

    def addresses(self) -> set[str]:
        """Where the server and its kernels listen."""
        family = [self.process, *self.process.children(recursive=True)]
        return {
            link.laddr.ip
            for process in family
            for link in process.net_connections("inet")
            if link.status == psutil.CONN_LISTEN
        }


@contextmanager
def started(
    command: list[str], port: int, state: Path, folder: Path, at: Path
) -> Iterator[Server]:
    """A server, with the token that it made up itself."""
    log = state / "log"
    settings = {
        **{key: value for key, value in os.environ.items() if key != "JUPYTER_TOKEN"},
        **at_home_in(state / "home"),
    }
    with log.open("wb") as out:
        popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=settings, cwd=at, start_new_session=True,
        )  # fmt: skip
    process = psutil.Process(popen.pid)

    def token() -> str | None:
        assert popen.poll() is None, log.read_text(errors="replace")
        printed = re.search(r"[?&]token=([0-9a-f]{20,})", log.read_text(errors="replace"))
        kept = [json.loads(f.read_text()) for f in (state / "home").rglob("jpserver-*.json")]
        return printed[1] if printed else next((one["token"] for one in kept), None)

    try:
        wait_until(lambda: token() is not None and _listens(port), log)
        found = token()
        assert found
        kind = "voila" if "voila" in command else "lab"
        yield Server(kind, process, port, found, folder, folder.parent)
    finally:
        family = [process, *process.children(recursive=True)]
        popen.terminate()
        try:
            popen.wait(20)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        for left in psutil.wait_procs(family, timeout=10)[1]:
            left.kill()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _folder(root: Path) -> Path:
    """A notebook, pictures, a hidden folder, and secrets outside."""
    folder = root / "served"
    (folder / "below").mkdir(parents=True)
    cells = [nbformat.v4.new_code_cell(f"{SOURCE}\nprint(made)", id="one")]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    (folder / "explore.ipynb").write_text(nbformat.writes(notebook))
    (folder / ".ipynb_checkpoints").mkdir()
    for kind in ("txt", "png", "ipynb"):
        (root / f"secret.{kind}").write_text(SECRET)
        (folder / ".ipynb_checkpoints" / f"secret.{kind}").write_text(SECRET)
        (folder / f"beside.{kind}").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What `evitlab explore` runs."""
    root = tmp_path_factory.mktemp("lab")
    folder, port = _folder(root), free_port()
    file = folder / "explore.ipynb"
    command = serving.server_command(file, app=False, port=port, browser=False)
    with started(command, port, root, folder, ROOT) as server:
        yield server


@pytest.fixture(scope="module")
def voila(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What `evitlab explore --app` runs."""
    pytest.importorskip("voila")
    root = tmp_path_factory.mktemp("voila")
    folder, port = _folder(root), free_port()
    file = folder / "explore.ipynb"
    command = serving.server_command(file, app=True, port=port, browser=False)
    with started(command, port, root, folder, ROOT) as server:
        yield server


@pytest.fixture(params=["lab", "voila"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def test_listens_on_this_machine_alone(server: Server) -> None:
    addresses = server.addresses()
    assert addresses and all(ipaddress.ip_address(one).is_loopback for one in addresses)


@pytest.mark.parametrize("given", [None, "", "0" * 48], ids=["none", "empty", "wrong"])
def test_nothing_without_the_token(server: Server, given: str | None) -> None:
    """A page of login at most, and no word of what is served."""
    paths = ["/", "/lab", "/tree", "/api/kernels", "/api/contents", "/api/sessions",
             "/api/contents/explore.ipynb", "/files/explore.ipynb", "/files/beside.txt",
             "/voila/files/beside.png", "/voila/files/explore.ipynb", "/voila/render/explore.ipynb",
             "/api/terminals", "/view/beside.txt", "/nbconvert/html/explore.ipynb"]  # fmt: skip
    if given is not None:
        paths += [f"{path}?token={given}" for path in paths]
    for path in paths:
        answer = server.ask(path, token=given)
        sent_on = answer.status == 302 and not answer.body  # to /login, from / to /lab
        assert sent_on or answer.status in (401, 403, 404, 405), (path, answer.status)
        assert SECRET not in answer.body and SOURCE not in answer.body, path
    login = server.ask("/api/kernels" if server.kind == "lab" else "/", token=given)
    assert login.status == 403 or "/login" in login.headers["Location"]


def test_nothing_is_changed_without_the_token(server: Server) -> None:
    for method, path in [
        ("POST", "/api/kernels"), ("POST", "/api/sessions"), ("PUT", "/api/contents/new.txt"),
        ("DELETE", "/api/contents/explore.ipynb"), ("PATCH", "/api/contents/explore.ipynb"),
        ("POST", "/api/shutdown"), ("POST", f"/voila/api/shutdown/{uuid.uuid4()}"),
        ("POST", "/api/terminals"),
    ]:  # fmt: skip
        answer = server.ask(path, method=method, body={"type": "file", "content": ""})
        assert answer.status in (401, 403, 404, 405), (method, path, answer.status)
    assert (server.folder / "explore.ipynb").exists() and not (server.folder / "new.txt").exists()


def test_the_token_opens(lab: Server, voila: Server) -> None:
    """Else the other tests would hold of a server that answers nobody."""
    for path in ("/lab", "/api/contents", "/api/contents/explore.ipynb", "/files/beside.txt"):
        assert lab.ask(path, token=lab.token).status == 200
    voila.kernel()
    assert "in the page" in voila.page and SOURCE not in voila.page, "the page shows its code"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "10.0.0.1"]
)
def test_another_name_of_the_server_is_refused(server: Server, host: str) -> None:
    """A page elsewhere can have its own name lead to 127.0.0.1, and is then of the same origin."""
    for path in ("/lab", "/api/contents") if server.kind == "lab" else ("/",):
        answer = server.ask(path, token=server.token, Host=host.format(port=server.port))
        assert answer.status == 403 and SOURCE not in answer.body


def test_a_page_elsewhere_opens_no_kernel(server: Server) -> None:
    """Neither with the reader's cookie nor, of another origin, at all."""
    channels = f"/api/kernels/{server.kernel()}/channels"
    assert server.shake_hands(channels) == 403
    cookie = _cookie(server)
    assert server.shake_hands(channels, Cookie=cookie, Origin="https://evil.example") == 403
    own = f"http://127.0.0.1:{server.port}"
    assert server.shake_hands(channels, Cookie=cookie, Origin=own) == 101, "the reader's own page"


def test_a_form_elsewhere_changes_nothing(lab: Server) -> None:
    """The browser sends the cookie along, but not what a page of ours adds (`_xsrf`)."""
    answer = lab.ask(
        "/api/contents/new.txt", method="PUT", body={"type": "file", "format": "text",
        "content": "x"}, Cookie=_cookie(lab), Origin="https://evil.example",
    )  # fmt: skip
    assert answer.status in (403, 404) and not (lab.folder / "new.txt").exists()
    answer = lab.ask("/api/kernels", method="POST", body={}, Cookie=_cookie(lab))
    assert answer.status == 403, "no _xsrf, no kernel"


def _cookie(server: Server) -> str:
    answer = server.ask(f"/login?token={server.token}")
    kept = answer.headers.get_all("Set-Cookie") or []
    kept += server.ask(f"/?token={server.token}").headers.get_all("Set-Cookie") or []
    pairs = [one.partition(";")[0] for one in kept]
    found = [pair for pair in pairs if not pair.startswith("_xsrf") and pair.partition("=")[2]]
    assert found, "no cookie for who has the token"
    return "; ".join(found)


@pytest.mark.parametrize("kind", ["txt", "png", "ipynb"])
@pytest.mark.parametrize("way", WAYS_OUT)
def test_no_file_outside_of_the_folder(server: Server, way: str, kind: str) -> None:
    """Also for who has the token."""
    absolute = str(server.outside / f"secret.{kind}").lstrip("/")
    path = way.format(kind=kind, absolute=absolute)
    for front in ("/files/", "/api/contents/", "/view/", "/nbconvert/html/", "/voila/files/",
                  "/voila/static/", "/voila/templates/lab/static/", "/static/", "/lab/static/",
                  "/voila/labextensions/", "/lab/extensions/", "/voila/render/"):  # fmt: skip
        answer = server.ask(front + path, token=server.token)
        assert SECRET not in answer.body, (front + path, answer.status)


def test_hidden_files_stay_hidden(server: Server) -> None:
    for kind in ("txt", "png", "ipynb"):
        for front in ("/files", "/api/contents", "/voila/files"):
            path = f"{front}/.ipynb_checkpoints/secret.{kind}"
            assert SECRET not in server.ask(path, token=server.token).body, path


def test_the_page_gives_no_file_at_all(voila: Server) -> None:
    """It needs none; Voila would give the pictures beside the notebook, without a token."""
    for kind in ("txt", "png", "ipynb"):
        for token in (None, voila.token):
            answer = voila.ask(f"/voila/files/beside.{kind}", token=token)
            assert answer.status == 403 and SECRET not in answer.body


def test_kernels_listen_here_alone_and_there_is_no_terminal(lab: Server) -> None:
    number = lab.kernel()
    wait_until(lambda: _kernels(lab), lab.outside / "log")
    assert all(ipaddress.ip_address(one).is_loopback for one in lab.addresses())
    (card,) = (lab.outside / "home").rglob(f"kernel-{number}.json")
    assert json.loads(card.read_text())["key"], "who knows the port would need no key"
    if os.name == "posix":
        assert card.stat().st_mode & 0o077 == 0, "others of this machine can read the key"
    assert lab.ask("/api/terminals", method="POST", body={}, token=lab.token).status in (403, 404)
    assert lab.ask(f"/api/kernels/{number}", method="DELETE", token=lab.token).status == 204


def _kernels(server: Server) -> bool:
    """Whether a kernel listens."""
    return any(
        link.status == psutil.CONN_LISTEN
        for child in server.process.children(recursive=True)
        for link in child.net_connections("inet")
    )


def test_make_lab(tmp_path: Path) -> None:
    """Its very command line: loopback, a token, and the folder of the notebooks."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^lab:.*\n\t@\$\(PY\) (.*)$", recipe, flags=re.MULTILINE)
    port = free_port()
    root = ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    command = [sys.executable, *shlex.split(line), "--no-browser", f"--port={port}", *root]
    with started(command, port, tmp_path, ROOT / "notebooks", ROOT) as server:
        assert all(ipaddress.ip_address(one).is_loopback for one in server.addresses())
        assert server.ask("/api/contents").status == 403
        assert server.ask("/api/contents", token="0" * 48).status == 403
        found = json.loads(server.ask("/api/contents", token=server.token).body)
        names = {one["name"] for one in found["content"]}
        assert "00_tour.ipynb" in names and "pyproject.toml" not in names
        for path in ("../pyproject.toml", "%2e%2e/pyproject.toml"):
            assert "evitlab" not in server.ask(f"/files/{path}", token=server.token).body


def test_both_servers_are_told_so_explicitly(tmp_path: Path) -> None:
    """Whatever the reader's own configuration of Jupyter says."""
    file = tmp_path / "explore.ipynb"
    said: Callable[..., str] = lambda app: " ".join(  # noqa: E731
        serving.server_command(file, app=app, port=None, browser=True)
    )
    assert "--ServerApp.ip=127.0.0.1" in said(False) and "--Voila.ip=127.0.0.1" in said(True)
    assert f"--ServerApp.root_dir={tmp_path}" in said(False) and "--token" in said(True)
