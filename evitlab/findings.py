"""Findings: the paper's claims beside what was measured here, as a notebook's last cell."""

from __future__ import annotations

import html
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from evitlab.records import Environment, Record, environment_card
from evitlab.resources import figures_dir

_HEADER = ("claim", "paper", "ours", "same conclusion?")
_INDENT = "  "
_GAP = "  "


@dataclass(frozen=True)
class Finding:
    """One claim of the paper, held beside what was measured here.

    Attributes:
        claim: the conclusion in words, short enough for a table.
        paper: the published number or statement, with its unit; anything `str()` shows well.
        ours: the same, measured here.
        holds: whether the measurement leads to the paper's conclusion.
        command: the one command that regenerates `ours`.
        expected: False records that the claim is known not to reproduce here, which is a result
            and no failure.
        note: what to know when reading the numbers; for expected=False the likely reason.

    Raises:
        ValueError: claim or command is empty, `holds` is no truth value, or expected=False comes
            without a note.
    """

    claim: str
    _: KW_ONLY
    paper: str
    ours: str
    holds: bool
    command: str
    expected: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("claim", "command"):
            if not str(getattr(self, name)).strip():
                raise ValueError(f"{name}: expected a text, got {getattr(self, name)!r}")
        if self.holds not in (True, False):
            raise ValueError(f"holds: expected True or False, got {self.holds!r}")
        if not self.expected and not self.note.strip():
            raise ValueError(
                f"note: expected the likely reason why {self.claim!r} does not reproduce, got none"
            )
        for name, plain in (("paper", str), ("ours", str), ("holds", bool)):
            object.__setattr__(self, name, plain(getattr(self, name)))  # from numbers and NumPy

    @property
    def as_expected(self) -> bool:
        return self.holds == self.expected

    @property
    def verdict(self) -> str:
        """What the table's last column says."""
        if self.as_expected:
            return "yes" if self.holds else "no, as recorded"
        return "yes, unexpectedly" if self.holds else "NO"


@dataclass(frozen=True, repr=False)
class Findings(Record):
    """What one notebook concluded; shown as a table."""

    notebook: str  # file name without ".ipynb"
    findings: tuple[Finding, ...]
    environment: Environment

    def to_frame(self) -> pd.DataFrame:
        """One row per finding."""
        frame = pd.DataFrame([asdict(finding) for finding in self.findings])
        frame.insert(0, "notebook", self.notebook)
        return frame

    def __repr__(self) -> str:
        return format_table(finding_rows(self.findings))

    def _repr_html_(self) -> str:
        cell = '<td style="text-align:left;vertical-align:top">'
        head = "".join(f'<th style="text-align:left">{name}</th>' for name in _HEADER)
        rows = []
        for finding in self.findings:
            note = f"<br><small>{html.escape(finding.note)}</small>" if finding.note else ""
            command = f"<br><small><code>{html.escape(finding.command)}</code></small>"
            verdict = html.escape(finding.verdict)
            if not finding.as_expected:
                verdict = f"<b>{verdict}</b>"
            texts = (
                html.escape(finding.claim) + note,
                html.escape(finding.paper),
                html.escape(finding.ours) + command,
                verdict,
            )
            rows.append("<tr>" + "".join(f"{cell}{text}</td>" for text in texts) + "</tr>")
        card = self.environment
        shown = (card.scale and f"{card.scale} scale", card.dataset, card.hardware)
        caption = html.escape(" · ".join(filter(None, shown)))
        return (
            f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )


def conclude(
    findings: Iterable[Finding],
    *,
    notebook: str | None = None,
    environment: Environment | None = None,
    out_dir: str | os.PathLike[str] | None = None,
) -> Findings:
    """Close a notebook: show "claim | paper | ours | same conclusion?", record it, and insist.

    The record is written to `<out_dir>/findings/<notebook>.json`, also when this raises.

    Args:
        findings: at least one.
        notebook: the notebook's file name without ".ipynb"; None asks `reproduce` or JupyterLab.
        environment: the card the numbers were measured under; None makes one of this process.
        out_dir: None is the project's figures folder, see `figures_dir`.

    Raises:
        AssertionError: a finding does not hold as expected; the message names each.
        ValueError: there are no findings, or the notebook's name is unknown or another one's.
        OSError: the folder cannot be written.
    """
    findings = tuple(findings)
    if not findings:
        raise ValueError("findings: expected at least one Finding, got none")
    table = Findings(
        notebook=_notebook_name(notebook),
        findings=findings,
        environment=environment or environment_card(scale=os.environ.get("EVITLAB_SCALE")),
    )
    folder = figures_dir() if out_dir is None else Path(out_dir)
    table.save(folder / "findings" / f"{table.notebook}.json")
    wrong = [finding for finding in findings if not finding.as_expected]
    if wrong:
        _show(table)  # it cannot be the cell's value any more
        raise AssertionError(
            f"{len(wrong)} of {len(findings)} conclusions not as expected: "
            + "; ".join(f"{finding.claim!r} (ours: {finding.ours})" for finding in wrong)
        )
    return table


def finding_rows(findings: Sequence[Finding]) -> list[tuple[str, ...] | str]:
    """Rows for `format_table`: per finding its four cells and, across all columns, its note."""
    rows: list[tuple[str, ...] | str] = []
    for finding in findings:
        rows.append((finding.claim, finding.paper, finding.ours, finding.verdict))
        if finding.note:
            rows.append(f"{_INDENT * 2}note: {finding.note}")
    return rows


def format_table(rows: Sequence[tuple[str, ...] | str], *, width: int | None = None) -> str:
    """The table "claim | paper | ours | same conclusion?" as text.

    Args:
        rows: tuples of four cells, which are wrapped to their columns, and texts, which run across.
        width: characters per line at most, 60 or more; None is the terminal's, up to 120.
    """
    if width is None:
        width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    cells = [_HEADER, *(row for row in rows if isinstance(row, tuple))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = width - len(_INDENT) - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room:  # the last column keeps its width: it has to be seen at a glance
        widths[widths.index(max(widths[:-1]))] -= 1
    lines = []
    for row in (_HEADER, tuple("-" * column for column in widths), *rows):
        if isinstance(row, str):
            deeper = " " * (len(row) - len(row.lstrip())) + _INDENT
            lines += textwrap.wrap(row, width, subsequent_indent=deeper)
            continue
        wrapped = [
            textwrap.wrap(cell, column) or [""] for cell, column in zip(row, widths, strict=True)
        ]
        for line in zip_longest(*wrapped, fillvalue=""):
            padded = (part.ljust(column) for part, column in zip(line, widths, strict=True))
            lines.append((_INDENT + _GAP.join(padded)).rstrip())
    return "\n".join(lines)


def _notebook_name(given: str | None) -> str:
    running = os.environ.get("EVITLAB_NOTEBOOK")  # set by `reproduce`
    if given is not None and running is not None and given != running:
        raise ValueError(f"notebook: expected {running!r}, which is being run, got {given!r}")
    session = os.environ.get("JPY_SESSION_NAME", "")  # set by Jupyter: path of the notebook
    found = given or running or (Path(session).stem if session.endswith(".ipynb") else None)
    if not found or not re.fullmatch(r"[\w.-]+", found):
        raise ValueError(
            f"notebook: expected the notebook's name, such as '00_tour', got {found!r}"
        )
    return found


def _show(table: Findings) -> None:
    if "IPython" in sys.modules:
        from IPython.display import display

        display(table)
    else:
        print(table)
