"""One run of a study in a process of its own: `python -m evitlab.studies.worker REQUEST`.

The request is JSON: study, run, the run's folder, the record's file and the conditions. The last
line printed is the run's outcome.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import traceback
from pathlib import Path

from evitlab.studies import STUDIES
from evitlab.studies.base import Conditions
from evitlab.wording import on_one_line


def main(request: str) -> int:
    """Carry the run out and save its record; 0, or 1 where it failed."""
    asked = json.loads(request)
    conditions = Conditions(**asked["conditions"])
    runs = STUDIES[asked["study"]].runs(conditions.scale)
    run = next(run for run in runs if run.name == asked["run"])
    try:
        record = run.carry_out(Path(asked["folder"]), conditions)
        record.save(asked["record"])
    except Exception as error:  # whatever a model, a data set or a disk may raise
        traceback.print_exc()
        print(f"{type(error).__name__}: {on_one_line(error)}")
        return 1
    print("\nfinished")
    return 0


def end_with_the_scheduler() -> None:
    """Once the scheduler is gone, killed perhaps, its pipe ends; a run that nobody watches would
    meet the one that the same command begins again."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    end_with_the_scheduler()
    sys.exit(main(sys.argv[1]))
