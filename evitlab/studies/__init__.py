"""The sweeps behind the paper's findings: declared lists of runs, resumable, one record a run."""

from __future__ import annotations

import os
from pathlib import Path

from evitlab.records import Record
from evitlab.resources import data_dir
from evitlab.studies import (
    ablations,
    attention_share,
    channel_importance,
    family,
    head_similarity,
    resolution,
    transfer,
)
from evitlab.studies.base import SCALES, Conditions, Study
from evitlab.studies.scheduler import StudyReport, carry_out, finished_records
from evitlab.studies.summaries import study_frame
from evitlab.wording import check_choice

__all__ = ["STUDIES", "Study", "StudyReport", "load_study", "run_study", "study_frame"]

STUDIES = {
    module.STUDY.name: module.STUDY
    for module in (
        attention_share,
        head_similarity,
        channel_importance,
        ablations,
        family,
        transfer,
        resolution,
    )
}


def run_study(
    name: str,
    *,
    scale: str = "quick",
    out_dir: str | os.PathLike[str] = "runs/studies",
    records_dir: str | os.PathLike[str] | None = None,
    data: str | None = None,
    device: str | None = None,
    jobs: int | None = None,
    threads: int = 1,
    time_limit: float | None = None,
    only: str = "*",
    command: str | None = None,
) -> StudyReport:
    """Carry out what is missing of a study; the same call continues one that was stopped.

    Args:
        name: one of `STUDIES`.
        scale: "smoke" (a few tiny runs), "quick" (all runs, small) or "lab" (what is recorded).
        out_dir: receives `<study>/<scale>/<run>/` with weights, checkpoints and the log.
        records_dir: receives `<study>/<run>.json`, one record a run; None: beside the runs.
        data: a data set's name or path; None is CIFAR-10 if it is at hand, else the embedded set.
        device: where the runs train; None is a GPU if there is one.
        jobs: runs at once; None: as many as there are cores for, or 8 on a GPU.
        threads: of torch, in each run.
        time_limit: minutes, after which runs under way are stopped; they go on from their last
            checkpoint.
        only: runs whose name matches, with shell wildcards.
        command: kept in the records; None is the `evitlab study` that does the same.

    Raises:
        ValueError: unknown study, scale or device, no run that matches, or a number out of range.
        FolderInUse: another process carries out the study there.
        OSError: a folder cannot be written.

    Paper: Figs. 1, 3 to 5 and 7, Tables 4 and 6.
    """
    study = _study(name)
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    out = Path(out_dir) / name / scale
    return carry_out(
        study,
        Conditions(
            scale=scale,
            data=data,
            device=device,
            threads=threads,
            command=command or f"evitlab study {name} --scale {scale}",
        ),
        out_dir=out.absolute(),
        records_dir=(Path(records_dir) / name if records_dir is not None else out).absolute(),
        jobs=jobs,
        time_limit=time_limit,
        only=only,
    )


def load_study(name: str, folder: str | os.PathLike[str] | None = None) -> dict[str, Record]:
    """The records of a study by run.

    Args:
        name: one of `STUDIES`.
        folder: where `run_study` left them; None is what is recorded in data/results.

    Raises:
        ValueError: unknown study, or a file there that is no record of it.
        FileNotFoundError: no records there.
    """
    study = _study(name)
    where = data_dir() / "results" / name if folder is None else Path(folder)
    records = finished_records(study, where)
    if not records:
        raise FileNotFoundError(
            f"{where}: expected records of the study {name}, found none; "
            f"`evitlab study {name}` makes them"
        )
    return records


def _study(name: str) -> Study:
    check_choice("name", name, STUDIES)
    return STUDIES[name]
