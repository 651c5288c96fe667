"""The explorer as a reader meets it: in JupyterLab and as Voila's page, in a real browser."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import (
    NO_CHROMIUM,
    START_S,
    Explorer,
    at_home_in,
    chromium,
    find_chromium,
    free_port,
    jupyter_lab,
    running,
    wait_until,
)
from PIL import Image

from evitlab import photograph, serving
from evitlab.explorer.session import Session
from evitlab.figures.attention_view import ViewCanvas

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ViewportSize

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=NO_CHROMIUM)

SMALL, LARGE = "efficientvit_m0_embedded", "efficientvit_m4"
MODELS = {SMALL: SMALL, LARGE: LARGE}
WINDOW: ViewportSize = {"width": 1280, "height": 1500}


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: EVITLAB_SCREENSHOTS keeps them."""
    named = os.environ.get("EVITLAB_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def voila(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The page of `evitlab explore SMALL --app`, on its way."""
    folder = tmp_path_factory.mktemp("voila")
    log = folder / "voila.log"
    notebook = serving.explorer_notebook({SMALL: SMALL}, "embedded", app=True)
    with serving.placed(notebook, folder / "explore.ipynb") as file:
        command = serving.server_command(file, app=True, port=free_port(), browser=False)
        with running(command, log, at_home_in(folder)):
            wait_until(lambda: "token=" in log.read_text(), log)
            address = re.search(r"http://127\.0\.0\.1:\S+", log.read_text())
            assert address is not None, log.read_text()
            found = Explorer(browser.new_page(viewport=WINDOW))
            found.page.goto(address[0], wait_until="commit", timeout=1000 * START_S)
            yield found


@pytest.fixture(scope="module")
def explorer(
    browser: Browser, voila: Explorer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Explorer]:
    """The notebook of `evitlab explore SMALL --compare LARGE`, run in JupyterLab.

    Voila's kernel loads torch while this one does: half of the time is spent there.
    """
    folder, state = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("state")
    notebook = serving.explorer_notebook(MODELS, "embedded")
    with (
        serving.placed(notebook, folder / "explore.ipynb") as file,
        jupyter_lab(folder, state) as address,
    ):
        found = Explorer(browser.new_page(viewport=WINDOW))
        found.run_notebook(f"{address}/lab/tree/{file.name}")
        yield found


@pytest.fixture(autouse=True)
def no_complaint(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on the notebook's page: no error in it, in the kernel, in the console."""
    yield
    if "explorer" in request.fixturenames:
        request.getfixturevalue("explorer").check_no_error()


def patch(row: int, column: int, width: float) -> tuple[float, float]:
    """Where a patch of SMALL's first block is on the picture, as shares of its width and height."""
    canvas = ViewCanvas(round(width))
    canvas.draw(Session(SMALL, "embedded").views[0])
    for y, x in np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 200)]), -1).reshape(-1, 2):
        hit = canvas.locate(x, y)
        if hit is not None and (hit.part, hit.row, hit.column) == ("query", row, column):
            return x + 0.005, y + 0.005  # from its corner a little inwards
    raise AssertionError(f"no patch ({row}, {column}) on the picture")


def test_two_models_linked(explorer: Explorer, shots: Path) -> None:
    assert SMALL in explorer.text
    explorer.page.set_viewport_size({"width": 1280, "height": 2000})  # both of them to be seen
    explorer.wait_for_picture()
    explorer.page.screenshot(path=shots / "two_models.png")
    explorer.page.set_viewport_size(WINDOW)
    with explorer.repaint(SMALL):
        explorer.choose("Compare with", "nothing")


def test_sliders_by_keyboard(explorer: Explorer, shots: Path) -> None:
    with explorer.repaint("block 2 of"):
        explorer.handle("Block").press("ArrowRight")
    with explorer.repaint("head 3 of"):
        explorer.handle("Head").press("ArrowRight")
        explorer.handle("Head").press("ArrowRight")
    explorer.page.screenshot(path=shots / "main.png")
    explorer.whole.screenshot(path=shots / "explorer.png")
    with explorer.repaint("embedded 1"):
        explorer.handle("Image").press("ArrowRight")
    with explorer.repaint("embedded 0", "block 1 of"):
        explorer.handle("Image").press("ArrowLeft")
        explorer.handle("Block").press("ArrowLeft")


def test_query_by_click_and_arrow_keys(explorer: Explorer) -> None:
    box = explorer.picture.bounding_box()
    assert box is not None
    x, y = patch(1, 2, box["width"])
    with explorer.repaint("query (1, 2)"):
        explorer.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    with explorer.repaint("query (1, 3)"):
        explorer.picture.press("ArrowRight")
    with explorer.repaint("query (2, 3)"):
        explorer.page.keyboard.press("ArrowDown")  # the picture has kept the focus


def test_head_off_and_on(explorer: Explorer, shots: Path) -> None:
    with explorer.repaint("with 1 head off"):
        explorer.tick("Head off")
    explorer.page.screenshot(path=shots / "head_off.png")
    with explorer.repaint():
        explorer.push("All heads on")
    assert "off" not in explorer.text


def test_overlays(explorer: Explorer, shots: Path) -> None:
    for overlay in ("Rollout of all blocks", "Grad-CAM", "Integrated gradients", "Attention"):
        with explorer.repaint():
            explorer.choose("Show", overlay)
        explorer.page.screenshot(path=shots / f"show_{overlay.split()[0].lower()}.png")
    with explorer.repaint():
        explorer.tick("Importance")
    explorer.page.screenshot(path=shots / "importance.png")
    with explorer.repaint():
        explorer.tick("Importance")


def test_other_model_and_back(explorer: Explorer, shots: Path) -> None:
    with explorer.repaint(LARGE):
        explorer.choose("Model", LARGE)
    explorer.page.screenshot(path=shots / "large.png")
    with explorer.repaint():
        explorer.choose("Compare with", SMALL)
    with explorer.repaint():
        explorer.choose("Compare with", "nothing")
    with explorer.repaint(SMALL):
        explorer.choose("Model", SMALL)


def test_own_pictures_and_wrong_ones(explorer: Explorer, tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    Image.fromarray(photograph().permute(1, 2, 0).numpy()).save(own)
    with explorer.repaint("own.png"):
        explorer.upload(own)

    broken = tmp_path / "broken.png"
    broken.write_bytes(own.read_bytes()[:100])
    explorer.upload(broken)
    explorer.expect_message("broken.png")
    explorer.write("Path", str(tmp_path / "nowhere"))
    explorer.expect_message("nowhere", "found nothing")
    assert "own.png" in explorer.text  # it shows what it showed, and goes on

    other = tmp_path / "other.png"
    Image.new("RGB", (300, 200), "teal").save(other)
    with explorer.repaint("other.png"):
        explorer.write("Path", str(other))
    explorer.expect_message("")


def test_view_is_saved_beside_the_notebook(explorer: Explorer) -> None:
    explorer.push("Save")
    explorer.expect_message("saved", ".png", ".svg")
    explorer.push("Copy code")  # nothing to see, and no complaint
    code = explorer.page.locator("textarea").last.input_value()
    assert code.startswith("evitlab.AttentionExplorer(") and code.endswith('.save("view")')


def test_half_width_and_dark(explorer: Explorer, shots: Path) -> None:
    page = explorer.page
    with explorer.repaint("embedded 0"):
        explorer.handle("Image").press("Home")
    with explorer.repaint():
        page.set_viewport_size({"width": 640, "height": 2400})
    page.screenshot(path=shots / "half_width.png")
    with explorer.repaint():
        page.set_viewport_size(WINDOW)
    theme = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
    with explorer.repaint():
        page.evaluate(theme, "JupyterLab Dark")
    page.screenshot(path=shots / "dark.png")
    with explorer.repaint():
        page.evaluate(theme, "JupyterLab Light")


def test_voila(voila: Explorer, shots: Path) -> None:
    voila.wait_for_picture()
    with voila.repaint("block 2 of"):
        voila.handle("Block").press("ArrowRight")
    with voila.repaint("block 1 of"):
        voila.handle("Block").press("ArrowLeft")
    box = voila.picture.bounding_box()
    assert box is not None
    x, y = patch(0, 0, box["width"])
    with voila.repaint("query (0, 0)"):
        voila.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    voila.page.screenshot(path=shots / "voila.png")
    voila.check_no_error()
