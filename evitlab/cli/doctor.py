"""`evitlab doctor`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from evitlab.cli.parser import AddCommand

if TYPE_CHECKING:
    from evitlab.records.diagnosis import Check, Diagnosis, Extra

_WIDTH = 100
_LABEL = 16  # characters of a line's name
_TIE = "\N{NO-BREAK SPACE}"
_COMMAND = re.compile(r"pip install .*|[\w.-]+ \d[\w.]*(?=,|$)")  # or a package with its version


def add(command: AddCommand) -> None:
    doctor = command(
        "doctor", _doctor, "say what is installed and found here, and check that it works",
        "evitlab doctor --json doctor.json",
    )  # fmt: skip
    doctor.add_argument("--json", metavar="FILE", help="also write the record there; it names no "
                        "folder of this machine")  # fmt: skip


def _doctor(args: argparse.Namespace) -> int:
    from evitlab.doctor import diagnose
    from evitlab.selfcheck import self_checks

    found = diagnose()
    for label, text in (*_installation(found), *_machine(found), *_data(found)):
        print(_line(label, text))
    print("\noptional extras")
    for extra in found.extras:
        print(_line(f"  {extra.name}", _extra(extra)))
    print("\nself-check")
    checks = []
    for check in self_checks(reraise=args.debug):
        print(_line(f"  {check.name}", _check(check)), flush=True)
        checks.append(check)
    found = dataclasses.replace(found, checks=tuple(checks))
    if args.json:
        found.save(args.json)
    if found.ok:
        seconds = sum(check.seconds for check in checks)
        print(f"all is well ({len(checks)} checks in {seconds:.1f} s)")
        return 0
    failed = [check.name for check in checks if not check.ok]
    print(f"FAILED: {', '.join(failed)} (evitlab doctor --debug shows the first traceback)")
    return 1


def _installation(found: Diagnosis) -> Iterable[tuple[str, str]]:
    from evitlab.resources import checkout_dir

    card = found.environment
    package, commit = Path(__file__).parents[1], f", commit {card.git_commit}"
    where = f"the checkout {checkout_dir()}" if checkout_dir() else str(package)
    yield "evitlab", f"{found.version} in {where}{commit if card.git_commit else ''}"
    yield "Python", f"{card.python} on {found.system}"
    yield "libraries", (
        f"torch {card.torch}, torchvision {found.torchvision or 'missing'}, timm {card.timm}"
    )


def _machine(found: Diagnosis) -> Iterable[tuple[str, str]]:
    card = found.environment
    yield "CPU", f"{card.cpu_model}; {_count(card.cores, 'core')} for this process, " + (
        f"torch uses {_count(card.threads, 'thread')}"
    )
    for gpu in found.accelerators:
        memory = "" if gpu.memory_gib is None else f", {gpu.memory_gib:.0f} GiB"
        yield "GPU", f"{gpu.device}: {gpu.name}{memory}"
    if not found.accelerators:
        yield "GPU", found.no_accelerator
    yield "browser", (
        "a Chromium, for the tests of the widgets" if found.chromium else
        "no Chromium; only tests of the widgets need one"
    )  # fmt: skip


def _data(found: Diagnosis) -> Iterable[tuple[str, str]]:
    from evitlab.datasets import EMBEDDED, SCENES, data_home
    from evitlab.doctor import hub_cache
    from evitlab.resources import data_dir, notebooks_dir

    told = "EVITLAB_DATA" if os.environ.get("EVITLAB_DATA") else "EVITLAB_DATA is not set"
    state = "" if found.data_home == "there" else f"; {found.data_home}"
    yield "data sets", f"{data_home()} ({told}){state}{_free(found.data_free_gib)}"
    yield "  images", _sets(found.datasets, EMBEDDED)
    yield "  with boxes", _sets(found.detection_sets, SCENES)
    for label, folder, part, names in (
        ("weights", data_dir, "checkpoints", found.checkpoints),
        ("notebooks", notebooks_dir, "", found.notebooks),
    ):
        try:
            where = folder() / part
        except FileNotFoundError as error:
            yield label, str(error)
        else:
            listed = f": {', '.join(names)}" if names and part else ""
            yield label, f"{len(names)} in {where}{listed}"
    yield "hub cache", f"{hub_cache()}, {_count(found.hub_models, 'model')}"
    yield "working in", f"{Path.cwd()}{_free(found.work_free_gib)}"


def _sets(names: Iterable[str], drawn: str) -> str:
    return f"{', '.join(names) or 'none at hand'}; {drawn}, which needs no files"


def _extra(extra: Extra) -> str:
    from evitlab.selfcheck import lacking

    wrong = [package for package in extra.packages if not package.ok]
    if wrong:
        said = ", ".join(map(lacking, wrong))
        return f"{said}: pip install {shlex.quote(f'evitlab[{extra.name}]')}"
    return ", ".join(f"{package.name} {package.version}" for package in extra.packages)


def _check(check: Check) -> str:
    return f"{'ok' if check.ok else 'FAILED':6}  {check.seconds:4.1f} s  {check.said}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _free(gib: float | None) -> str:
    return "" if gib is None else f", {gib:.1f} GiB free"


def _line(label: str, text: str) -> str:
    """A name and what is said of it, wrapped below itself; paths and commands stay in one piece."""
    indent = " " * _LABEL
    whole = _COMMAND.sub(lambda found: found[0].replace(" ", _TIE), text)
    wrapped = textwrap.wrap(
        whole, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    first, *rest = wrapped or [indent]
    return "\n".join([f"{label:{_LABEL}}{first[_LABEL:]}".rstrip(), *rest]).replace(_TIE, " ")
