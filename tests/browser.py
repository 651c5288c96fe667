"""A real browser in front of a real JupyterLab or Voila, for tests of what a reader sees.

The browser is the system's Chromium; Playwright only drives it. Nothing here leaves the machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_CHROMIUM = "no Chromium found (install the package chromium, or set EVITLAB_CHROMIUM to one)"
START_S = 180  # a kernel that imports torch on a busy machine
STEP_S = 60

# Complaints in the browser's console that are not ours, each with its reason.
NOT_OURS = {
    r"cdn\.jsdelivr\.net/npm/@fortawesome": "icons that Voila's page can do without",
}

# What the kernel reports outside of any cell, as errors in a widget's callbacks are.
_LISTEN = """() => {
  window.kernelComplaints = [];
  const panel = window.jupyterapp.shell.currentWidget;
  panel.sessionContext.session.kernel.iopubMessage.connect((_, message) => {
    const { msg_type } = message.header;
    if (msg_type === 'error' || (msg_type === 'stream' && message.content.name === 'stderr')) {
      window.kernelComplaints.push(message.content.text ?? message.content.traceback.join('\\n'));
    }
  });
}"""

# JupyterLab asks the kernel for widgets of an earlier page, before there is anything in it to ask.
_FORGET_FIRST_QUESTION = """() => {
  window.kernelComplaints = window.kernelComplaints.filter((text) => !/No such comm/.test(text));
}"""

# SHA-256 of the picture's bytes; null while there is none, or another one may be on its way.
_PICTURE = """async () => {
  const look = async () => {
    const picture = document.querySelector('img.evitlab-view');
    const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
    if (!picture?.complete || !picture.naturalWidth) return null;
    if (kernel && kernel.status !== 'idle') return null;
    if (document.querySelector('.evitlab-message')?.textContent.includes('…')) return null;
    try {
      const bytes = await (await fetch(picture.src)).arrayBuffer();
      const digest = await crypto.subtle.digest('SHA-256', bytes);
      return Array.from(new Uint8Array(digest), (byte) => byte.toString(16)).join('');
    } catch { return null; }  // replaced in between
  };
  const first = await look();
  if (first === null) return null;
  await new Promise((done) => setTimeout(done, 200));  // a request may just have been sent
  return await look() === first ? first : null;
}"""


def find_chromium() -> str | None:
    """Path of a Chromium of this system; None where there is none."""
    named = os.environ.get("EVITLAB_CHROMIUM")
    if named:
        return named
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window that reaches nothing but this machine."""
    from playwright.sync_api import sync_playwright

    offline = [
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        offline.append("--no-sandbox")  # Chromium refuses it to root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=offline)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """A server while the block runs; its output goes to a file."""
    with log.open("wb") as out, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        env={**os.environ, **environment}, start_new_session=True,
    ) as server:  # fmt: skip
        try:
            yield
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


@contextmanager
def jupyter_lab(folder: Path, state: Path) -> Iterator[str]:
    """JupyterLab as its own browser tests start it; gives its address.

    Args:
        folder: what it shows.
        state: an empty folder for settings, logs and all else that it would keep at home.
    """
    port = free_port()
    settings = state / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    # No question whether the reader wants news, no look for updates: both need the network.
    (settings / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    config = state / "jupyter_server_config.py"
    config.write_text(
        "from jupyterlab.galata import configure_jupyter_server\n"
        "configure_jupyter_server(c)\n"
        "c.ServerApp.ip = '127.0.0.1'\n"
        f"c.ServerApp.port = {port}\n"
        "c.ServerApp.allow_root = True\n"
        "c.LabApp.extension_manager = 'readonly'\n"
        f"c.LabApp.user_settings_dir = {str(state / 'settings')!r}\n"
        f"c.LabApp.workspaces_dir = {str(state / 'workspaces')!r}\n"
    )
    command = [sys.executable, "-m", "jupyterlab", f"--config={config}"]
    environment = {**at_home_in(state), "JUPYTERLAB_GALATA_ROOT_DIR": str(folder)}
    log = state / "jupyterlab.log"
    with running(command, log, environment):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{address}/api/status"), log)
        yield address


def at_home_in(state: Path) -> dict[str, str]:
    """Environment in which Jupyter leaves the user's own files alone."""
    kinds = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    return {kind: str(state / kind.lower()) for kind in kinds}


def wait_until(ready: object, log: Path) -> None:
    """Poll a server that is starting.

    Args:
        ready: a callable; true where the server is there.
        log: shown where it does not come.
    """
    assert callable(ready)
    end = time.monotonic() + START_S
    while not ready():
        said = log.read_text(encoding="utf-8")
        assert time.monotonic() < end, f"no answer in {START_S} s:\n{said}"
        time.sleep(0.1)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Explorer:
    """The explorer on a page, as a reader handles it: by its labels, the mouse and the keys."""

    def __init__(self, page: Page) -> None:
        page.set_default_timeout(1000 * STEP_S)
        self.page = page
        self.picture = page.locator("img.evitlab-view")
        self.whole = page.locator(".widget-vbox").filter(has=self.picture).first
        self.complaints: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _on_console(self, message: ConsoleMessage) -> None:
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and not any(re.search(known, text) for known in NOT_OURS):
            self.complaints.append(text)

    def run_notebook(self, address: str) -> None:
        """Open a notebook in JupyterLab and run all of its cells."""
        page = self.page
        page.goto(address)
        idle = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
        page.wait_for_function(f"{idle}?.status === 'idle'", timeout=1000 * START_S)
        page.evaluate(_LISTEN)
        page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.evaluate(_FORGET_FIRST_QUESTION)
        self.check_no_error()
        self.wait_for_picture()

    def wait_for_picture(self) -> str:
        """SHA-256 of the picture, once it is there and none is on its way."""
        found = self._wait_for(_PICTURE, START_S)
        assert found, "expected a picture"
        return found

    @contextmanager
    def repaint(self, *words: str) -> Iterator[None]:
        """What the block does changes the picture's bytes, and its text then has the words."""
        before = self.wait_for_picture()
        yield
        changed = f"""async ([before, words]) => {{
          const now = await ({_PICTURE})();
          const text = document.querySelector('img.evitlab-view').alt;
          return now !== null && now !== before && words.every((word) => text.includes(word));
        }}"""
        assert self._wait_for(changed, STEP_S, [before, list(words)]), (
            f"expected another picture with {words}; there is {self.text!r}, "
            f"changed: {self.page.evaluate(_PICTURE) != before}, message: {self.message!r}"
        )

    def _wait_for(self, function: str, seconds: float, argument: Any = None) -> Any:
        """What a function of the page returns, once that is true; else None after a time.

        Playwright's own `wait_for_function` takes the promise of an async function for true.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.page.evaluate(function, argument):
                return found
            self.page.wait_for_timeout(50)
        return None

    @property
    def text(self) -> str:
        """The picture in words."""
        return self.picture.get_attribute("alt") or ""

    @property
    def message(self) -> str:
        return self.page.locator(".evitlab-message").inner_text().strip()

    def expect_message(self, *words: str) -> None:
        """The line for messages has the words; "" stands for an empty line."""
        said = """(words) => {
          const text = document.querySelector('.evitlab-message').textContent.trim();
          return words.every((word) => word ? text.includes(word) : !text);
        }"""
        self.page.wait_for_function(said, arg=list(words))

    def handle(self, name: str) -> Locator:
        """What moves a slider."""
        return self._labelled("widget-slider", name).locator(".noUi-handle")

    def choose(self, name: str, option: str) -> None:
        self._labelled("widget-dropdown", name).locator("select").select_option(label=option)

    def tick(self, name: str) -> None:
        """Click a checkbox."""
        box = self.page.locator(".widget-checkbox").filter(has_text=name)
        box.locator("input[type=checkbox]").click()

    def push(self, name: str) -> None:
        """Click a button."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def write(self, name: str, text: str) -> None:
        """Fill in a field, and Enter."""
        field = self._labelled("widget-text", name).locator("input")
        field.fill(text)
        field.press("Enter")

    def upload(self, file: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("button.widget-upload").click()
        chooser.value.set_files(file)

    def _labelled(self, kind: str, name: str) -> Locator:
        label = self.page.locator("label", has_text=re.compile(rf"^{re.escape(name)}$"))
        return self.page.locator(f".{kind}").filter(has=label)

    def check_no_error(self) -> None:
        """No traceback on the page, none from a callback, none in the browser's console."""
        shown = self.page.locator(
            '[data-mime-type="application/vnd.jupyter.error"],'
            '[data-mime-type="application/vnd.jupyter.stderr"]'
        )
        complaints = [*shown.all_inner_texts(), *self.complaints]
        complaints += self.page.evaluate("() => window.kernelComplaints ?? []")
        assert not complaints, "\n".join(complaints)
