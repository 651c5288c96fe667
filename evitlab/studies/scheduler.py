"""Carry out what is missing of a study: several runs at once, each in a process of its own.

A run that has its record is not repeated; one that was stopped goes on from its last checkpoint.
So a study may be killed at any moment and continued by the same command.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

import torch
from tqdm.auto import tqdm

from evitlab.records import Record
from evitlab.studies.base import Conditions, Run, Study
from evitlab.training.evaluation import checked_device
from evitlab.training.folder_lock import held

_WORKER = (sys.executable, "-m", "evitlab.studies.worker")
_POLL_SECONDS = 0.5
_LOG_BYTES = 2**16  # with less left on the disk, a run may have nowhere to say what is wrong
_GRACE_SECONDS = 10  # from asking a run to stop until it is killed
_ON_ONE_GPU = 8  # short runs at once, where nothing else is said


@dataclass(frozen=True)
class StudyReport:
    """How a call of `run_study` ended, by the names of the runs."""

    records: dict[str, Record]  # of all runs that are finished, earlier ones included
    failed: dict[str, str]  # run -> the last line it wrote
    waiting: tuple[str, ...]  # stopped or not begun; the same call continues them

    @property
    def finished(self) -> bool:
        return not self.failed and not self.waiting


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    log: Path
    output: IO[bytes]

    def progress(self) -> float:
        """Share of the run that is done, from the bar that it draws into its log."""
        with open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - 400))
            shares = re.findall(rb"(\d+)%\|", file.read())
        return int(shares[-1]) / 100 if shares else 0.0

    def close(self) -> None:
        self.output.close()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def how_it_failed(self) -> str:
        """Its last line; of one that was killed, which says nothing of it, also by what."""
        code = self.process.returncode
        if code is None or code >= 0:
            return self.last_line()
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}; its last line: {self.last_line()}"

    def last_line(self) -> str:
        lines = re.split(r"[\r\n]", self.log.read_text(encoding="utf-8", errors="replace"))
        full = shutil.disk_usage(self.log.parent).free < _LOG_BYTES
        nothing = "no output, as the disk is full" if full else "no output"
        return next((line.strip() for line in reversed(lines) if line.strip()), nothing)


def carry_out(
    study: Study,
    conditions: Conditions,
    *,
    out_dir: Path,
    records_dir: Path,
    jobs: int | None,
    time_limit: float | None,
    only: str,
) -> StudyReport:
    """Run what is missing; the arguments are those of `run_study`, paths resolved.

    Raises ValueError where a number is out of its range or no run matches, and FolderInUse where
    another process carries out the same study there.
    """
    for name, value in (
        ("jobs", jobs), ("threads", conditions.threads), ("time_limit", time_limit)
    ):  # fmt: skip
        if value is not None and not value > 0:
            raise ValueError(f"{name}: expected more than 0, got {value}")
    device = checked_device(conditions.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if jobs is None:
        cores = max(1, (os.cpu_count() or 1) // conditions.threads)
        jobs = cores if device.type == "cpu" else _ON_ONE_GPU
    declared = study.runs(conditions.scale)
    chosen = [run for run in declared if fnmatch(run.name, only)]
    if not chosen:
        names = ", ".join(run.name for run in declared)
        raise ValueError(f"only: expected one that matches a run ({names}), got {only!r}")
    deadline = time.monotonic() + 60 * time_limit if time_limit else float("inf")
    failed: dict[str, str] = {}
    live: list[_Child] = []

    def start(run: Run) -> None:
        folder = out_dir / run.name
        folder.mkdir(parents=True, exist_ok=True)
        request = {
            "study": study.name,
            "run": run.name,
            "folder": str(folder),
            "record": str(records_dir / f"{run.name}.json"),
            "conditions": asdict(conditions),
        }
        output = open(folder / "log.txt", "wb")  # noqa: SIM115 - closed with its child
        process = subprocess.Popen(
            [*_WORKER, json.dumps(request)],
            stdin=subprocess.PIPE,  # where nothing is written: it ends with this process
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(conditions.threads)},
        )
        live.append(_Child(run, process, folder / "log.txt", output))

    with (
        held(out_dir, command=conditions.command),
        held(records_dir, command=conditions.command),
        _terminated_as_interrupted(),
    ):
        records = finished_records(study, records_dir)
        waiting = [run for run in chosen if run.name not in records]
        done = len(chosen) - len(waiting)
        with tqdm(total=len(chosen), desc=study.name, bar_format=_BAR, initial=done) as bar:
            try:
                while (waiting or live) and time.monotonic() < deadline:
                    while len(live) < jobs and (run := _next(waiting, live, records, failed)):
                        waiting.remove(run)
                        start(run)
                    if not live:  # what is left waits for a run that failed or is not asked for
                        break
                    time.sleep(_POLL_SECONDS)
                    for child in [child for child in live if child.process.poll() is not None]:
                        live.remove(child)
                        child.close()
                        found = finished_records(study, records_dir, (child.run.name,))
                        records |= found
                        if found:
                            bar.write(f"{child.run.name}: {child.last_line()}")
                        else:
                            failed[child.run.name] = child.how_it_failed()
                            bar.write(f"{child.run.name}: FAILED: {child.how_it_failed()}")
                    done = sum(run.name in records or run.name in failed for run in chosen)
                    bar.n = done + sum(child.progress() for child in live)
                    bar.set_postfix_str(", ".join(child.run.name for child in live), refresh=True)
            finally:
                _stop(live)
    unfinished = [run.name for run in chosen if run.name not in records and run.name not in failed]
    return StudyReport(records, failed, tuple(unfinished))


_BAR = "{desc}: {n:.1f}/{total} runs |{bar:20}| {elapsed}{postfix}"


def finished_records(
    study: Study, folder: Path, names: Sequence[str] | None = None
) -> dict[str, Record]:
    """The records in a folder, by run; all of them, or those of the named runs."""
    files = sorted(folder.glob("*.json")) if names is None else [
        folder / f"{name}.json" for name in names
    ]  # fmt: skip
    return {file.stem: study.load(file) for file in files if file.exists()}


def _next(
    waiting: Sequence[Run], live: Sequence[_Child], records: dict[str, Record], failed: dict
) -> Run | None:
    """The first run that may begin: what it needs is there, and it shares the machine or has it."""
    for run in waiting:
        if any(child.run.alone for child in live) or (run.alone and live):
            return None  # a measurement has the machine, or waits for it
        if all(name in records for name in run.after):
            return run
    return None


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as a cluster or `kill` sends it, ends the runs too, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(children: Sequence[_Child]) -> None:
    """End runs that are under way; what they wrote is whole, since files are replaced at once."""
    for child in children:
        child.process.terminate()
    limit = time.monotonic() + _GRACE_SECONDS
    for child in children:
        try:
            child.process.wait(max(0.1, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.close()
