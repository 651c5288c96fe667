"""Cases that take turns: one live process for each engine, asked for a round of one after another.

A machine that slows down for a while then slows all of them, and ratios stay what they are.
"""

from __future__ import annotations

import copy
import pickle
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn
from tqdm.auto import tqdm

from evitlab.analysis.engines import ENGINES
from evitlab.analysis.subjects import build, default_img_size
from evitlab.analysis.worker import Worker, WorkerDied, one_line
from evitlab.models.cost import count_macs, count_params
from evitlab.records import Environment, environment_card

MIN_ROUNDS = 3
_Kind = tuple[str, int, str]  # engine, threads, device: what one process serves


@dataclass(frozen=True)
class Case:
    """One measurement: what runs, under which engine and conditions."""

    model: str
    engine: str
    batch_size: int
    img_size: tuple[int, int]  # height, width
    precision: str = "float32"
    threads: int = 1
    device: str = "cpu"

    @property
    def layout(self) -> str:
        return ENGINES[self.engine].layout


@dataclass(frozen=True)
class Timing:
    """What came of a case: seconds of one batch in each round, or why there are none."""

    seconds: tuple[float, ...]
    error: str | None
    environment: Environment


@dataclass(frozen=True)
class Card:
    """What is known of a model before it is timed; `error`: why it cannot be."""

    img_size: tuple[int, int]
    params: int
    macs: int
    error: str | None = None
    module: bytes | None = field(default=None, repr=False)  # pickled, of a model without a name


def card_of(model: str | nn.Module, img_size: int | None = None) -> Card:
    """Size and cost of a model.

    Raises ValueError where a name is unknown or a module cannot be sent to another process.
    """
    module = build(model, img_size=img_size) if isinstance(model, str) else model
    side = img_size or default_img_size(module)
    content = None
    if isinstance(model, nn.Module):
        try:
            content = pickle.dumps(copy.deepcopy(model).cpu())
        except Exception as error:  # whatever a model's own parts raise
            raise ValueError(
                f"models: expected one that can be pickled, got {type(model).__name__} ({error})"
            ) from error
    try:
        macs, problem = count_macs(module, side), None
    except Exception as error:  # its forward takes no images of this kind: a row that says so
        macs, problem = 0, one_line(f"{type(error).__name__}: {error}")
    return Card((side, side), count_params(module), macs, problem, content)


@dataclass
class _Run:
    """A case while it is measured."""

    case: Case
    key: int  # by which its process knows it
    seconds: list[float] = field(default_factory=list)
    spent: float = 0.0  # seconds of wall time on its rounds
    over: bool = False
    error: str | None = None

    def fail(self, error: str) -> None:
        """It ends here; what was measured counts if it was enough."""
        self.over = True
        if len(self.seconds) < MIN_ROUNDS:
            self.error, self.seconds = error, []


def time_groups(
    groups: Sequence[Sequence[Case]],
    cards: Mapping[str, Card],
    *,
    rounds: int,
    seconds: float,
) -> Iterator[dict[Case, Timing]]:
    """Time cases; those of a group take turns. Yields the timings of each group.

    The processes live as long as threads and device stay the same, and end with the iterator.

    Args:
        groups: lists of cases.
        cards: by model name.
        rounds: of each case at most.
        seconds: for the rounds of a case, after which no further one is begun; MIN_ROUNDS are made
            in any case.
    """
    groups = [group for group in groups if group]
    steps = sum(len(group) for group in groups) * (1 + rounds)
    with (
        tempfile.TemporaryDirectory(prefix="evitlab-") as folder,
        ExitStack() as stack,
        tqdm(total=steps, desc="bench", unit="round", delay=2) as bar,
    ):
        turns = _Turns(Path(folder), bar)
        stack.callback(turns.close)
        for group in groups:
            yield turns.take(group, cards, rounds, seconds)


class _Turns:
    """The processes of a measurement, and the order in which they are asked."""

    def __init__(self, folder: Path, bar: tqdm) -> None:
        self.folder, self.bar = folder, bar
        self.workers: dict[_Kind, Worker] = {}
        self.environments: dict[_Kind, Environment] = {}

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    def take(
        self, group: Sequence[Case], cards: Mapping[str, Card], rounds: int, seconds: float
    ) -> dict[Case, Timing]:
        runs = [_Run(case, key) for key, case in enumerate(group)]
        for run in runs:
            if (problem := _hopeless(run.case, cards[run.case.model])) is not None:
                run.fail(problem)
        kinds = dict.fromkeys(_kind(run) for run in runs if not run.over)
        for kind in [kind for kind in self.workers if kind not in kinds]:
            self.workers.pop(kind).close()
        for kind in kinds:
            self._worker(kind)  # all start together, since each takes seconds
        for kind in kinds:
            self._build([run for run in runs if _kind(run) == kind], cards)
        for round_ in range(rounds):
            for run in runs if round_ % 2 else reversed(runs):
                if not run.over:
                    self._round(run, runs)
                    run.over |= round_ + 1 >= MIN_ROUNDS and run.spent >= seconds
                self.bar.update()
        for kind in list(self.workers):
            self._ask(kind, "drop")
        return {run.case: self._timing(run) for run in runs}

    def _build(self, runs: Sequence[_Run], cards: Mapping[str, Card]) -> None:
        """Build all cases of one process. Where it dies of one, a new one builds the others."""
        waiting = [run for run in runs if not run.over]
        while waiting:
            run = waiting.pop(0)
            case, card = run.case, cards[run.case.model]
            self.bar.set_postfix_str(
                f"building {case.model}, {case.engine}, {case.batch_size}", refresh=False
            )
            file_name = re.sub(r"[^\w.-]", "-", case.model)
            request = (
                card.module or case.model, file_name, case.precision, case.batch_size, case.img_size
            )  # fmt: skip
            try:
                self._environment(_kind(run))
                self._worker(_kind(run)).ask("build", run.key, *request)
            except ValueError as error:
                run.fail(str(error))
            except WorkerDied as error:
                run.fail(str(error))
                self.workers.pop(_kind(run), None)
                waiting = [other for other in runs if not other.over]
            self.bar.update()

    def _round(self, run: _Run, runs: Sequence[_Run]) -> None:
        case = run.case
        self.bar.set_postfix_str(f"{case.model}, {case.engine}, {case.batch_size}", refresh=False)
        began = time.perf_counter()
        try:
            run.seconds.append(self._worker(_kind(run)).ask("round", run.key))
        except ValueError as error:
            run.fail(str(error))
        except WorkerDied as error:
            self.workers.pop(_kind(run), None)
            for other in runs:
                if _kind(other) == _kind(run) and not other.over:
                    of = "" if other is run else f" (while {case.model} ran)"
                    other.fail(f"{error}{of}")
        run.spent += time.perf_counter() - began

    def _worker(self, kind: _Kind) -> Worker:
        if kind not in self.workers:
            engine, threads, device = kind
            self.workers[kind] = Worker(engine, threads=threads, device=device, folder=self.folder)
        return self.workers[kind]

    def _environment(self, kind: _Kind) -> None:
        if kind not in self.environments:
            self.environments[kind] = self._worker(kind).ask("card")

    def _ask(self, kind: _Kind, request: str) -> None:
        try:
            self._worker(kind).ask(request)
        except (ValueError, WorkerDied):  # a broken GPU context answers with errors from now on
            self.workers.pop(kind).close()  # the next group starts another

    def _timing(self, run: _Run) -> Timing:
        case = run.case
        card = self.environments.get(_kind(run))
        if card is None:  # nothing ran
            card = replace(environment_card(layout=case.layout), threads=case.threads)
        card = replace(card, precision=case.precision, batch_size=case.batch_size)
        return Timing(tuple(run.seconds), run.error, card)


def _kind(run: _Run) -> _Kind:
    return run.case.engine, run.case.threads, run.case.device


def _hopeless(case: Case, card: Card) -> str | None:
    """Why a case need not be tried."""
    if card.error is not None:
        return card.error
    able = ENGINES[case.engine].precisions
    return None if case.precision in able else f"{case.engine} runs in {', '.join(able)} alone here"
