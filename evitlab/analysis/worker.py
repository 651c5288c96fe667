"""A process for each engine: libraries that keep threads of their own disturb each other in one.

The parent (`Worker`) sends a request and waits; the child (`serve`) builds models and runs rounds
of them. Both talk in pickles over the child's standard input and output. The child ends with the
parent: at the end of its input.
"""

from __future__ import annotations

import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import timm
import torch
from torch import nn

from evitlab.analysis.engines import ENGINES, Call, Setting
from evitlab.analysis.folding import draw_statistics
from evitlab.analysis.roofline import synchronize
from evitlab.analysis.subjects import build
from evitlab.models.efficientvit import EfficientViT
from evitlab.models.weights import load_weights
from evitlab.records import environment_card

ROUND_S = 0.1  # a round repeats a batch until about this long
_SHORT_S = 0.05  # a batch shorter than this runs once before a round, untimed: caches are cold
_LOST_MEMORY = (
    "out of memory", "allocate memory", "bad_alloc", "not enough memory", "ALLOC_FAILED",
)  # fmt: skip


class WorkerDied(Exception):
    """The process ended, or was ended, without an answer; the message says why, in one line."""


class Worker:
    """The parent's end: one engine in a process of its own.

    Args:
        engine: a key of ENGINES.
        threads: of the CPU, for every library in it.
        device: "cpu" or "cuda".
        folder: for its log and for exported models, shared by the workers of one measurement.
        limit_s: seconds after which a request is given up and the process ended.
    """

    def __init__(
        self, engine: str, *, threads: int, device: str, folder: Path, limit_s: float = 900
    ) -> None:
        self.limit_s = limit_s
        self._log = folder / f"{engine}.log"
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        compilers = {} if device == "cuda" else {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        environment = {**os.environ, **dict.fromkeys(counts, str(threads)), **compilers}
        command = [sys.executable, "-W", "ignore", "-m", "evitlab.analysis.worker"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, engine, str(threads), device, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**environment, "PYTHONPATH": path},
            )  # fmt: skip

    def ask(self, *request: Any) -> Any:
        """Send a request and wait for the answer.

        Raises:
            ValueError: the request failed; the process goes on.
            WorkerDied: the process did not survive it, or gave no answer in time.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self.limit_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            assert self._process.stdin is not None and self._process.stdout is not None
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            kind, answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.close()
            raise WorkerDied(
                f"no answer within {self.limit_s:.0f} s" if late.is_set() else self._last_words()
            ) from None
        finally:
            timer.cancel()
        if kind == "error":
            raise ValueError(answer)
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing; again is no harm."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # what was not sent yet has nobody to read it
        self._process.wait()

    def _last_words(self) -> str:
        if self._process.returncode == -9:  # SIGKILL, a name that Windows lacks
            return "out of memory: the system ended the process"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        ending = f"the process ended ({self._process.returncode})"
        return one_line(f"{ending}: {lines[-1]}" if lines else ending)


def one_line(message: str) -> str:
    """The first lines of a message as one of at most 200 characters, without folders."""
    text = re.sub(r"(?<![\w.])(/[\w.+~-]+)+/", "", " ".join(message.split()))
    return text if len(text) <= 200 else text[:199] + "…"


def reason(error: BaseException, batch_size: int) -> str:
    """Why a measurement failed, in one line."""
    if isinstance(error, MemoryError) or any(part in str(error) for part in _LOST_MEMORY):
        return f"out of memory at batch size {batch_size}"
    return one_line(f"{type(error).__name__}: {error}")


def subject(model: str | bytes, img_size: tuple[int, int]) -> nn.Module:
    """A model by name or as a pickle; ours with the weights that timm's model of its name has."""
    if isinstance(model, bytes):
        module: nn.Module = pickle.loads(model)
        return module.eval()
    square = img_size[0] if img_size[0] == img_size[1] else None
    built = draw_statistics(build(model, img_size=square))
    if isinstance(built, EfficientViT) and timm.is_model(model):
        twin = draw_statistics(build(f"timm/{model}", img_size=square))
        load_weights(built, twin.state_dict())
    return built


class _Bench:
    """The child's side: what has been built, by key."""

    def __init__(self, engine: str, threads: int, device: str, folder: Path) -> None:
        self.engine, self.threads, self.folder = ENGINES[engine], threads, folder
        self.device = torch.device(device)
        self.calls: dict[int, tuple[Call, int, float]] = {}

    def card(self) -> Any:
        return environment_card(
            device=self.device, layout=self.engine.layout, seed=0, dataset="noise"
        )

    def build(
        self,
        key: int,
        model: str | bytes,
        file_name: str,
        precision: str,
        batch_size: int,
        img_size: tuple[int, int],
    ) -> float:
        """Build a call and run it three times; seconds of the third."""
        call: Call | None
        try:
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(batch_size, 3, *img_size, generator=generator)
            file = self.folder / f"{file_name}-{img_size[0]}x{img_size[1]}.onnx"
            setting = Setting(images, precision, self.device, self.threads, file)
            with torch.no_grad():
                call = self.engine.build(subject(model, img_size), setting)
            for _ in range(2):  # allocates, compiles, packs; a traced graph optimises in its second
                self._seconds(call, 1)
            seconds = self._seconds(call, 1)
        except Exception as error:
            call = None  # with what it holds on the device
            self._free()
            raise ValueError(reason(error, batch_size)) from error
        self.calls[key] = call, max(1, min(1000, round(ROUND_S / seconds))), seconds
        return seconds

    def round(self, key: int) -> float:
        """Seconds of one batch, mean of a round."""
        call, count, seconds = self.calls[key]
        if seconds < _SHORT_S:
            self._seconds(call, 1)
        return self._seconds(call, count) / count

    def drop(self) -> None:
        self.calls.clear()
        if self.engine is ENGINES["compile"]:
            torch.compiler.reset()
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _seconds(self, call: Call, count: int) -> float:
        with torch.inference_mode():
            synchronize(self.device)
            began = time.perf_counter()
            for _ in range(count):
                call()
            synchronize(self.device)
            return time.perf_counter() - began


def serve(bench: _Bench, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while True:
        try:
            name, *arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = "answer", getattr(bench, name)(*arguments)
        except Exception as error:
            answer = "error", one_line(str(error))
        pickle.dump(answer, answers)
        answers.flush()


def _main(engine: str, threads: str, device: str, folder: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to the log
    try:  # where memory ends, this process is the one to be ended, not the parent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    except OSError:
        pass  # not Linux
    torch.set_num_threads(int(threads))
    serve(_Bench(engine, int(threads), device, Path(folder)), sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main(*sys.argv[1:])
