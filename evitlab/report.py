"""The main job: every notebook executed, every conclusion held beside the paper's.

A notebook ends in `conclude([Finding(...), ...])`, which shows the comparison, records it and fails
the notebook where a conclusion is not the expected one. `reproduce` runs the notebooks and gathers
what they concluded.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from evitlab.datasets import default_dataset_name, open_dataset
from evitlab.findings import Finding, Findings, conclude, finding_rows, format_table
from evitlab.records import Environment, Record, environment_card
from evitlab.resources import checkout_dir, notebooks_dir
from evitlab.training.folder_lock import held
from evitlab.wording import check_choice, did_you_mean, shown

__all__ = ["Finding", "Findings", "NotebookRun", "Report", "conclude", "reproduce"]

REPRODUCE_SCALES = ("smoke", "quick")


@dataclass(frozen=True)
class NotebookRun:
    """How one notebook's execution ended."""

    notebook: str  # file name without ".ipynb"
    seconds: float
    findings: tuple[Finding, ...]
    error: str | None = None  # one line; None where every cell ran and it came to a conclusion

    @property
    def ok(self) -> bool:
        return self.error is None and all(finding.as_expected for finding in self.findings)


@dataclass(frozen=True)
class Report(Record):
    """What `reproduce` found; `str()` is the table with its verdict."""

    scale: str
    dataset: str  # title of the default data set that the notebooks found
    runs: tuple[NotebookRun, ...]
    environment: Environment

    @property
    def ok(self) -> bool:
        """Every notebook ran, and every conclusion is the expected one."""
        return all(run.ok for run in self.runs)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for run in self.runs for finding in run.findings)

    @property
    def verdict(self) -> str:
        """The outcome in one line."""
        findings, runs = self.findings, self.runs
        same = sum(finding.holds for finding in findings)
        counts = [f"{same} of {_count(len(findings), 'conclusion')} the same as the paper's"]
        recorded = sum(not finding.expected and finding.as_expected for finding in findings)
        if recorded:
            counts.append(f"{recorded} recorded as not reproduced")
        seconds = sum(run.seconds for run in runs)
        counts.append(f"{_count(len(runs), 'notebook')} in {_duration(seconds)}")
        if self.ok:
            return "OK: " + ", ".join(counts)
        failed = [run.notebook for run in runs if not run.ok]
        return f"FAILED in {', '.join(failed)}: " + ", ".join(counts)

    def to_frame(self) -> pd.DataFrame:
        """One row per finding, with its notebook; a notebook without findings has no row."""
        rows = [
            {"notebook": run.notebook, **asdict(finding)}
            for run in self.runs
            for finding in run.findings
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        rows: list[tuple[str, ...] | str] = []
        for run in self.runs:
            rows.append(f"{run.notebook} ({_duration(run.seconds)})")
            rows += finding_rows(run.findings)
            if run.error is not None:
                rows.append(f"  ERROR {run.error}")
        return f"{format_table(rows)}\n\n{self.verdict}"


def reproduce(
    *,
    scale: str = "quick",
    out_dir: str | os.PathLike[str] = "figures",
    notebooks: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    save_notebooks: bool = False,
    budget_min: float | None = None,
) -> Report:
    """Execute the notebooks in order and hold each of their conclusions beside the paper's.

    A notebook that fails does not keep the following ones from running. Progress goes to stderr;
    the last lines of stdout are the report.

    Args:
        scale: "smoke" (the least that runs all of it) or "quick" (two CPU cores): minutes both.
        out_dir: receives the figures, `findings/<notebook>.json` and, in `notebooks/`, the executed
            copies.
        notebooks: names ("00_tour", or only its number), files, or a folder; None is all.
        save_notebooks: write the notebooks that succeeded back to where they came from, executed
            and without what changes from run to run or machine to machine.
        budget_min: minutes that one notebook may take; one that took more counts as failed.

    Raises:
        ValueError: unknown scale or notebook, no checkout to save notebooks to, or a budget that is
            not positive.
        FolderInUse: another process writes into `out_dir`.
        OSError: `out_dir` cannot be written.
    """
    check_choice("scale", scale, REPRODUCE_SCALES)
    if budget_min is not None and not 0 < budget_min < math.inf:
        raise ValueError(f"budget_min: expected a positive number of minutes, got {budget_min}")
    budget_s = math.inf if budget_min is None else 60 * budget_min
    paths = _select(notebooks)
    if save_notebooks and notebooks is None and checkout_dir() is None:
        raise ValueError("save_notebooks: expected a checkout of evitlab, got an installed package")
    out = Path(out_dir).absolute()
    with held(out, command=f"evitlab reproduce --scale {scale}"):
        return _reproduce(paths, scale, out, save=save_notebooks, budget_s=budget_s)


def _reproduce(
    paths: list[Path], scale: str, out: Path, *, save: bool, budget_s: float
) -> Report:
    name = default_dataset_name()
    dataset = open_dataset(name, "test", limit=1).title  # fetched here, where it has to be
    why = " (the embedded default: no CIFAR-10 at hand)" if name == "embedded" else ""
    print(f"{_count(len(paths), 'notebook')}, {scale} scale, {dataset}{why}", flush=True)
    runs = _run_all(paths, scale, out, save=save, budget_s=budget_s)
    report = Report(
        scale=scale,
        dataset=dataset,
        runs=runs,
        environment=environment_card(dataset=dataset, scale=scale),
    )
    print(f"\n{report}", flush=True)
    return report


def _run_all(
    paths: list[Path], scale: str, out: Path, *, save: bool, budget_s: float
) -> tuple[NotebookRun, ...]:
    from evitlab.runner import code_cells, run_notebook, write_notebook  # nbclient: only here

    cells = [code_cells(path) for path in paths]
    runs = []
    with tqdm(total=sum(cells), unit="cell", leave=False, disable=None) as bar:
        for position, path in enumerate(paths, start=1):
            bar.set_description(path.stem)
            record = out / "findings" / f"{path.stem}.json"
            record.unlink(missing_ok=True)  # or an earlier run's would pass for this one's
            execution = run_notebook(
                path,
                environment={
                    "EVITLAB_FIGURES": str(out),
                    "EVITLAB_NOTEBOOK": path.stem,
                    "EVITLAB_SCALE": scale,
                },
                on_cell=bar.update,
            )
            bar.update(sum(cells[:position]) - bar.n)  # a failed one does not reach its last cell
            findings = Findings.load(record).findings if record.is_file() else ()
            error = execution.error
            if error is None and not findings:
                error = "it ended without evitlab.conclude([...])"
            if execution.seconds > budget_s:
                late = f"over its budget: {_duration(execution.seconds)}"
                error = f"{error}; {late}" if error else late
            try:
                write_notebook(execution.notebook, out / "notebooks" / path.name)
                if save and error is None:
                    write_notebook(execution.notebook, path, to_commit=True)
            except ValueError as too_large:
                error = error or str(too_large)
            runs.append(NotebookRun(path.stem, execution.seconds, findings, error))
            outcome = "ok" if runs[-1].ok else "FAILED"
            bar.write(f"  {path.stem}: {outcome}, {_duration(execution.seconds)}", file=sys.stdout)
    return tuple(runs)


def _select(
    notebooks: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
) -> list[Path]:
    """The notebooks' files, in the order of their numbers."""
    if notebooks is None:
        wanted: list[str | os.PathLike[str]] = [notebooks_dir()]
    elif isinstance(notebooks, (str, os.PathLike)):
        wanted = [notebooks]
    else:
        wanted = list(notebooks)
    chosen: set[Path] = set()
    for item in wanted:
        path = Path(item)
        if path.is_dir():
            found = sorted(path.glob("[0-9][0-9]_*.ipynb"))
        elif path.suffix == ".ipynb" and path.is_file():
            found = [path]
        else:
            names = {known.stem: known for known in notebooks_dir().glob("[0-9][0-9]_*.ipynb")}
            found = [names[name] for name in names if str(item) in (name, name[:2])]
            if not found:
                raise ValueError(
                    f"notebooks: expected one of {', '.join(sorted(names)) or 'none'}, a file or "
                    f"a folder, got {str(item)!r}{did_you_mean(item, names)}"
                )
        if not found:
            raise ValueError(f"notebooks: expected NN_name.ipynb files in {shown(path)}, got none")
        chosen.update(file.resolve() for file in found)
    return sorted(chosen, key=lambda path: path.name)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
