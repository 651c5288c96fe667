"""Runs a notebook in a kernel of this very Python, and makes the result fit to be committed."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from evitlab.records import write_atomically
from evitlab.resources import checkout_dir
from evitlab.wording import on_one_line

MAX_NOTEBOOK_BYTES = 400_000
CELL_TIMEOUT_S = 1800  # a cell beyond this hangs; at quick scale they take a minute at most

_WIDGET = "application/vnd.jupyter.widget-view+json"
_KEPT_BACK = "remove_output"  # Jupyter's own tag; here: shows images that are not ours to pass on


@dataclass(frozen=True)
class Execution:
    """One notebook after its run."""

    notebook: NotebookNode  # with outputs, as far as it came
    seconds: float
    error: str | None  # one line; None where every cell ran


class _ThisPython(AsyncKernelManager):
    """Starts kernels with the running interpreter, whatever kernel specs are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(
            argv=[*launch, "--log-level=ERROR"],  # it warns of plain text on the loopback device
            display_name="Python 3",
            language="python",
        )


def code_cells(path: Path) -> int:
    """Cells of a notebook that its run will execute.

    Raises:
        ValueError: the file is not a notebook.
    """
    return sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in _read(path).cells)


def run_notebook(
    path: Path, *, environment: Mapping[str, str], on_cell: Callable[[], None] = lambda: None
) -> Execution:
    """Execute a notebook's cells in order, up to the first that fails; the file is not touched.

    Args:
        path: the notebook; its folder is the kernel's working directory.
        environment: variables the kernel gets on top of this process's.
        on_cell: called after each executed cell.

    Raises:
        ValueError: the file is not a notebook.
    """
    notebook = _read(path)
    client = NotebookClient(
        notebook,
        kernel_manager_class=_ThisPython,
        kernel_name="python3",
        timeout=CELL_TIMEOUT_S,
        coalesce_streams=True,  # a progress bar leaves its last state, not each of them
        store_widget_state=False,
        record_timing=False,
        on_cell_executed=lambda **_: on_cell(),
    )
    start, error = time.perf_counter(), None
    try:
        _finish(client.async_execute(env=_kernel_environment(environment), cwd=str(path.parent)))
    except CellExecutionError as failure:
        error = f"cell {_failed_cell(notebook)}: {failure.ename}: {failure.evalue}"
    except (RuntimeError, TimeoutError) as failure:  # the kernel died, or a cell hangs
        error = str(failure)
    if error is not None:
        error = on_one_line(_without_folders(error))
    return Execution(notebook, time.perf_counter() - start, error)


def write_notebook(notebook: NotebookNode, path: Path, *, to_commit: bool = False) -> Path:
    """Write an executed notebook so that a second run differs from the first in results only.

    Dropped or replaced: timestamps, all metadata but tags and the plain Python kernel's, widget
    state, and the folders of this machine in texts. Cells keep their ids.

    Args:
        notebook: as `run_notebook` leaves it; it is not touched.
        path: target.
        to_commit: leave out what cells with the tag "remove_output" show: images of data sets.

    Raises:
        ValueError: it has more than MAX_NOTEBOOK_BYTES.
        OSError: the folder cannot be written.
    """
    normalised = _normalised(notebook)
    if to_commit:
        for cell in normalised.cells:
            if _KEPT_BACK in cell.metadata.get("tags", ()):
                cell.outputs = []
    text = nbformat.writes(normalised, version=4) + "\n"
    size = len(text.encode())
    if size > MAX_NOTEBOOK_BYTES:
        sizes = [len(str(cell)) for cell in notebook.cells]
        raise ValueError(
            f"{path.name}: expected at most {MAX_NOTEBOOK_BYTES // 1000} kB with outputs, got "
            f"{size // 1000} kB; the largest is cell {sizes.index(max(sizes)) + 1} "
            f"({max(sizes) // 1000} kB)"
        )
    return write_atomically(path, text)


def _read(path: Path) -> NotebookNode:
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)  # reading only logs what is wrong
        return notebook
    except OSError:
        raise
    except Exception as error:  # whatever the library comes upon in a file that is something else
        reason = on_one_line(error) or type(error).__name__
        raise ValueError(f"{path.name}: not a notebook: {reason}") from error


def _kernel_environment(extra: Mapping[str, str]) -> dict[str, str]:
    environment = {**os.environ, **extra}
    # A backend that is set here keeps the kernel from showing figures in the notebook.
    environment.pop("MPLBACKEND", None)
    checkout = checkout_dir()
    if checkout is not None:  # the notebooks run this checkout, also where it is not installed
        paths = [str(checkout), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def _finish(coroutine: Any) -> None:
    """Run a coroutine to its end in a thread of its own.

    There it also works from inside a notebook, where an event loop is already running, and Ctrl-C
    stays with the main thread: it stops the kernel and then this whole program.
    """
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        running.set_result((asyncio.get_running_loop(), task))
        await coroutine

    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(asyncio.run, main())
        try:
            end.result()
        except KeyboardInterrupt:
            loop, task = running.result()
            loop.call_soon_threadsafe(task.cancel)
            raise


def _failed_cell(notebook: NotebookNode) -> int:
    """Number, counted from 1 over all cells, of the cell with an error among its outputs."""
    return next(
        number
        for number, cell in enumerate(notebook.cells, start=1)
        if any(output.output_type == "error" for output in cell.get("outputs", ()))
    )


def _normalised(notebook: NotebookNode) -> NotebookNode:
    cells = []
    for number, cell in enumerate(notebook.cells, start=1):
        tags = cell.metadata.get("tags")
        plain = NotebookNode(cell)
        plain.id = cell.get("id") or f"cell-{number:02d}"
        plain.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            plain.outputs = [kept for kept in map(_normalised_output, cell.outputs) if kept]
        cells.append(plain)
    return NotebookNode(
        cells=cells,
        metadata=NotebookNode(
            kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
            language_info={"name": "python"},
        ),
        nbformat=4,
        nbformat_minor=5,
    )


def _normalised_output(output: NotebookNode) -> NotebookNode | None:
    """The output without folders of this machine; None for a widget, which no static page shows."""
    output = NotebookNode(output)
    if output.output_type == "stream":
        output.text = _without_folders(output.text)
    elif output.output_type == "error":
        output.evalue = _without_folders(output.evalue)
        output.traceback = [_without_folders(line) for line in output.traceback]
    elif "data" in output:
        data = dict(output.data)
        if data.pop(_WIDGET, None) is not None:
            data.pop("text/plain", None)
            if not data:
                return None
        output.data = NotebookNode(
            {
                kind: _without_folders(value) if kind.startswith("text/") else value
                for kind, value in data.items()
            }
        )
    return output


def _without_folders(text: str) -> str:
    text = re.sub(r"\S*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    folders = {
        "$EVITLAB_DATA": os.environ.get("EVITLAB_DATA"),
        ".": checkout_dir(),
        "$PYTHON": sys.prefix,
        "~": Path.home(),
    }
    for name, folder in folders.items():
        if folder and len(Path(folder).parts) > 1:  # not "/" itself, as some containers' home is
            text = name.join(re.split(re.escape(str(folder)) + r"(?![\w-])", text))
    return text
