"""Turns, time boxes, failures and records of a sweep. No speed is judged."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timed_records import CARD, ROOFLINE
from torch import Tensor, nn

from evitlab import create_model
from evitlab.analysis import turns
from evitlab.analysis.deploy_ratios import compare_deploy
from evitlab.analysis.presets import PRESETS
from evitlab.analysis.subjects import build
from evitlab.analysis.throughput import Plan, measure_throughput, sweep
from evitlab.analysis.turns import Card, Case, Timing, card_of, time_groups
from evitlab.analysis.worker import Worker, WorkerDied, one_line, reason, subject
from evitlab.records import DeployRatios, ThroughputSweep

SIZE = (32, 32)


class Scripted:
    """Stands in for a process: what it is asked goes to a log, what it answers is told."""

    log: list[tuple[Any, ...]] = []
    living: set[Scripted] = set()
    seconds: dict[str, list[float]] = {}  # by model: of its rounds, in order; the last one stays
    fatal: dict[tuple[str, str], Exception] = {}  # (request, model) -> what it raises, once

    def __init__(self, engine: str, **_: Any) -> None:
        self.engine = engine
        self.models: dict[int, str] = {}
        self.living.add(self)

    def ask(self, request: str, *arguments: Any) -> Any:
        if request == "card":
            return CARD
        if request == "drop":
            self.models.clear()
            return None
        if request == "build":
            self.models[arguments[0]] = str(arguments[1])
        model = self.models[arguments[0]]  # KeyError: not built in this process
        self.log.append((request, self.engine, model))
        error = self.fatal.pop((request, model), None)
        if isinstance(error, WorkerDied):
            self.close()
        if error is not None:
            raise error
        if request == "build":
            return 0.1
        times = self.seconds.get(model, [0.1])
        return times.pop(0) if len(times) > 1 else times[0]

    def close(self) -> None:
        self.living.discard(self)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Scripted]]:
    monkeypatch.setattr(turns, "Worker", Scripted)
    Scripted.log, Scripted.living, Scripted.seconds, Scripted.fatal = [], set(), {}, {}
    yield Scripted
    assert not Scripted.living, "a process was left behind"


def cases(*names: str, engines: tuple[str, ...] = ("eager",)) -> list[Case]:
    return [Case(name, engine, 4, SIZE) for name in names for engine in engines]


def timed(*group: Case, rounds: int = 3, seconds: float = 9.0) -> dict[Case, Timing]:
    cards = {case.model: Card(SIZE, 10, 20) for case in group}
    (found,) = time_groups([group], cards, rounds=rounds, seconds=seconds)
    return found


def test_cases_take_turns_and_who_is_first_alternates(scripted: type[Scripted]) -> None:
    timed(*cases("a", "b", engines=("eager", "traced")))
    order = [(engine, model) for request, engine, model in scripted.log if request == "round"]
    forth = [("eager", "a"), ("traced", "a"), ("eager", "b"), ("traced", "b")]
    assert order == forth[::-1] + forth + forth[::-1]
    built = [(engine, model) for request, engine, model in scripted.log if request == "build"]
    assert built == [("eager", "a"), ("eager", "b"), ("traced", "a"), ("traced", "b")]


def test_no_further_round_begins_when_the_time_is_spent(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which every round takes a second: 5 fit, and 3 are made in any case."""
    clock = iter(range(10_000))
    monkeypatch.setattr(turns.time, "perf_counter", lambda: float(next(clock)))
    (timing,) = timed(*cases("a"), rounds=9, seconds=5).values()
    assert len(timing.seconds) == 5
    (timing,) = timed(*cases("a"), rounds=9, seconds=0.5).values()
    assert len(timing.seconds) == 3


def test_a_model_that_fails_leaves_the_others(scripted: type[Scripted]) -> None:
    scripted.fatal = {("build", "b"): ValueError("out of memory at batch size 4")}
    a, b, c = timed(*cases("a", "b", "c")).values()
    assert (b.error, b.seconds) == ("out of memory at batch size 4", ())
    assert [(x.error, len(x.seconds)) for x in (a, c)] == [(None, 3)] * 2


def test_a_process_that_dies_of_one_model_is_followed_by_one_for_the_others(
    scripted: type[Scripted],
) -> None:
    scripted.fatal = {("build", "b"): WorkerDied("out of memory: ended")}
    a, b, c = timed(*cases("a", "b", "c")).values()
    assert b.error == "out of memory: ended"
    assert [(x.error, len(x.seconds)) for x in (a, c)] == [(None, 3)] * 2
    built = [model for request, _, model in scripted.log if request == "build"]
    assert built == ["a", "b", "a", "c"]


def test_a_process_that_dies_while_one_runs_takes_its_engine_along(
    scripted: type[Scripted],
) -> None:
    """What it still had says so; another engine's cases, and the next group, go on."""
    scripted.fatal = {("round", "b"): WorkerDied("it is gone")}
    group = [*cases("a", "b"), *cases("a", engines=("traced",))]
    cards = {name: Card(SIZE, 10, 20) for name in "abc"}
    first, second = time_groups([group, cases("c")], cards, rounds=3, seconds=9)
    errors = [timing.error for timing in first.values()]
    assert errors == ["it is gone (while b ran)", "it is gone", None]
    (timing,) = second.values()
    assert len(timing.seconds) == 3


def test_an_interrupt_ends_all_processes(scripted: type[Scripted]) -> None:
    scripted.fatal = {("round", "a"): KeyboardInterrupt()}  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        timed(*cases("a", engines=("eager", "traced")))
    assert not scripted.living


def test_rows_are_medians_and_quartiles_by_hand(scripted: type[Scripted]) -> None:
    """4 images in 0.1, 0.2, 0.4 s: 40, 20 and 10 a second."""
    scripted.seconds = {"timm/test_vit": [0.1, 0.2, 0.4]}
    (row,) = measure_throughput(
        ["timm/test_vit"], batch_sizes=[4], rounds=3, threads=1, devices=["cpu"]
    )
    assert (row.img_per_s_low, row.img_per_s, row.img_per_s_high) == pytest.approx((15, 20, 30))
    assert row.batch_ms == pytest.approx(200)
    assert (row.rounds, row.img_size, row.params) == (3, (160, 160), 371_240)
    assert (row.environment.batch_size, row.environment.precision) == (4, "float32")


def test_a_sweep_comes_back_from_its_file(scripted: type[Scripted], tmp_path: Path) -> None:
    plan = Plan(("timm/test_vit",), engines=("eager", "channels-last"), batch_sizes=(1, 4))
    rows = [row for rows in sweep(plan) for row in rows]
    record = ThroughputSweep(tuple(rows), ROOFLINE, "evitlab bench", CARD)
    assert ThroughputSweep.load(record.save(tmp_path / "sweep.json")) == record
    assert [(row.batch_size, row.layout) for row in rows] == [
        (1, "contiguous"), (1, "channels_last"), (4, "contiguous"), (4, "channels_last"),
    ]  # fmt: skip


def test_what_is_done_is_not_measured_again_and_what_failed_is(scripted: type[Scripted]) -> None:
    plan = Plan(("timm/test_vit",), batch_sizes=(1, 4))
    scripted.fatal = {("build", "timm/test_vit"): ValueError("no")}
    first = [row for rows in sweep(plan) for row in rows]
    assert [row.error for row in first] == ["no", None]
    (again,) = [row for rows in sweep(plan, done=first) for row in rows]
    assert (again.batch_size, again.error) == (1, None)


def test_a_forward_with_two_inputs_is_a_row_that_says_so(scripted: type[Scripted]) -> None:
    class Two(nn.Module):
        def forward(self, images: Tensor, more: Tensor) -> Tensor:
            return images + more

    card = Card(SIZE, 0, 0, "TypeError: forward() missing 'more'")
    case = Case("Two", "eager", 1, SIZE)
    (found,) = time_groups([[case]], {"Two": card}, rounds=3, seconds=1)
    assert found[case].error == card.error
    assert not scripted.log
    with pytest.raises(ValueError, match=r"^models: expected one that can be pickled, got Two"):
        card_of(Two())


def test_a_precision_that_an_engine_lacks_is_a_row_that_says_so(scripted: type[Scripted]) -> None:
    case = Case("a", "onnxruntime", 1, SIZE, precision="float16")
    (found,) = time_groups([[case]], {"a": Card(SIZE, 1, 1)}, rounds=3, seconds=1)
    assert found[case].error == "onnxruntime runs in float32 alone here"


def test_large_batches_hold_few_models_at_once() -> None:
    plan = Plan(("a", "b", "c"), batch_sizes=(1, 512))
    groups = plan.groups(dict.fromkeys("abc", SIZE))
    assert [[case.model for case in group] for group in groups] == [
        ["a", "b", "c"], ["a"], ["b"], ["c"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "^models: expected at least one, got none"),
        ({"batch_sizes": (1, 0)}, r"^batch_sizes: expected at least 1, got \[1, 0\]"),
        ({"threads": (0,)}, r"^threads: expected at least 1, got \[0\]"),
        ({"rounds": 0}, "^rounds: expected at least 1, got 0"),
        ({"seconds": 0.0}, "^seconds: expected more than 0"),
        ({"precisions": ("float61",)}, "^precision: .* got 'float61'; did you mean 'float16'"),
        ({"devices": ("gpu",)}, "^device: expected cpu or cuda, got 'gpu'"),
        ({"engines": ("cuda-graph",)}, "^device: cuda-graph runs on cuda, got cpu"),
        ({"engines": ("eagre",)}, "^engine: .* did you mean 'eager'"),
        ({"models": ("efficientvit_m9",)}, "^model: .* did you mean 'efficientvit_m"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next(sweep(Plan(**{"models": ("timm/test_vit",), **changes})))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="^device: expected one that torch can use here.*'cuda'"):
        PRESETS["paper-gpu"].check()


@pytest.mark.parametrize("name", [name for name in PRESETS if "gpu" not in name])
def test_a_preset_can_be_carried_out(name: str) -> None:
    PRESETS[name].check()
    assert len(set(PRESETS[name].models)) == len(PRESETS[name].models)


def test_deploy_ratios_are_of_rounds_by_hand(scripted: type[Scripted], tmp_path: Path) -> None:
    """Ours takes 1 s, timm's 2, 3 and 4; the matrix product 0.1 s."""
    scripted.seconds = {"efficientvit_m0": [1.0], "timm/efficientvit_m0": [2.0, 3.0, 4.0] * 4}
    record = compare_deploy(["efficientvit_m0"], rounds=3, command="evitlab bench")
    kinds = [(row.engine, row.peer, row.batch_size, row.rounds) for row in record.rows]
    assert kinds == [
        ("deploy", "eager", 1, 3), ("deploy", "folded", 1, 3),
        ("onnxruntime", "exported", 1, 3), ("onnxruntime", "exported", 16, 3),
    ]  # fmt: skip
    last = record.rows[-1]
    assert (last.ratio_low, last.ratio, last.ratio_high) == pytest.approx((2.5, 3, 3.5))
    (peak,) = record.peak
    assert peak.peak_gmac_s == pytest.approx(1e-9 * 1024**3 / 0.1)
    assert peak.achieved_gmac_s == pytest.approx(16 * 79_193_600e-9)
    assert peak.share == pytest.approx(peak.achieved_gmac_s / peak.peak_gmac_s)
    assert DeployRatios.load(record.save(tmp_path / "deploy.json")) == record
    assert not record.failed


def test_deploy_ratios_leave_out_what_failed_and_say_so(scripted: type[Scripted]) -> None:
    scripted.fatal = {("build", "efficientvit_m0"): ValueError("not today")}
    record = compare_deploy(["efficientvit_m0"], rounds=3)
    assert record.failed == ("efficientvit_m0, deploy, batch 1: not today",)
    assert {row.engine for row in record.rows} == {"onnxruntime"}


class EndsItself(nn.Module):
    """Ends the process that runs it, as the system does where memory ends."""

    def forward(self, images: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return images


def test_a_real_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds, measures, survives what does not fit into memory, and dies of what it must."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    worker = Worker("deploy", threads=1, device="cpu", folder=tmp_path)
    try:
        card = worker.ask("card")
        assert (card.device, card.threads, card.dataset) == ("cpu", 1, "noise")
        for key, name in enumerate(("timm/test_byobnet", "efficientvit_m0")):
            side = (160, 160) if key == 0 else (224, 224)
            assert worker.ask("build", key, name, "name", "float32", 1, side) > 0
            assert worker.ask("round", key) > 0
        with pytest.raises(ValueError, match="^out of memory at batch size 10000000$"):
            worker.ask("build", 2, "timm/test_vit", "name", "float32", 10**7, (160, 160))
        with pytest.raises(ValueError, match="^TypeError"):
            worker.ask("build", 3, "timm/test_vit", "name", None, 1, (160, 160))
        assert worker.ask("round", 0) > 0
        content = pickle.dumps(EndsItself())
        with pytest.raises(WorkerDied, match="^out of memory: the system ended the process$"):
            worker.ask("build", 4, content, "name", "float32", 1, SIZE)
    finally:
        worker.close()
        worker.close()


def test_a_process_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    worker = Worker("eager", threads=1, device="cpu", folder=tmp_path, limit_s=0.05)
    with pytest.raises(WorkerDied, match=r"^no answer within 0 s$"):
        worker.ask("card")
    worker.close()


def test_ours_has_the_weights_of_timms_model_of_its_name() -> None:
    images = torch.randn(1, 3, 224, 224)
    ours, peer = (subject(name, (224, 224)) for name in ("efficientvit_m0", "timm/efficientvit_m0"))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), peer(images), rtol=1e-4, atol=1e-4)
    fresh = create_model("efficientvit_m0").state_dict()
    assert not torch.equal(fresh["head.linear.weight"], ours.state_dict()["head.linear.weight"])
    assert type(ours) is not type(build("timm/efficientvit_m0"))


def test_reasons_are_one_line_without_folders() -> None:
    assert one_line("a\n b /tmp/some/where/model.onnx c") == "a b model.onnx c"
    assert one_line("x" * 500) == "x" * 199 + "…"
    assert reason(MemoryError(), 7) == "out of memory at batch size 7"
    assert reason(RuntimeError("CUDA out of memory."), 7) == "out of memory at batch size 7"
    assert reason(KeyError("ab"), 7) == "KeyError: 'ab'"
