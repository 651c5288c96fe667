"""Our loop beside timm's: the same model, steps that are counted whole, and what is printed."""

from __future__ import annotations

import threading
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch

from evitlab import cli, create_model, environment_card
from evitlab.analysis import training_speed
from evitlab.analysis.timm_loop import timm_twin
from evitlab.records import LoopRatio, LoopSpeed, TrainingSpeed
from evitlab.records.training_speed import PHASES


@pytest.mark.parametrize(("name", "size"), [("efficientvit_m0_p8", 64), ("efficientvit_m1_p4", 32)])
def test_the_twin_is_our_model(name: str, size: int) -> None:
    """Same weights, same logits: the two loops train the same thing."""
    torch.manual_seed(0)
    ours = create_model(name, img_size=size, num_classes=7).eval()
    twin = timm_twin(name, img_size=size, num_classes=7).eval()
    twin.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(twin(images), ours(images), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="one of the EfficientViT family, got 'deit_t'"):
        timm_twin("deit_t", img_size=64, num_classes=7)


def test_a_step_is_asked_for_and_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two epochs "data" begins twice: what lies between is no step."""

    def loop(*_: Any, **__: Any) -> None:
        on_phase = _[-1]
        for _epoch in range(2):
            on_phase("data")
            for _step in range(2):
                for phase in (*PHASES[1:], "data"):
                    on_phase(phase)

    monkeypatch.setattr(training_speed, "_loop", loop)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    ours, theirs = Pipe()
    recipe = training_speed.RECIPES["smoke"]
    served = ("evitlab", "a model", None, recipe, 1, "cpu", theirs)
    with torch.random.fork_rng([]):
        thread = threading.Thread(target=training_speed._serve, args=served, daemon=True)
        thread.start()
        steps = []
        for _ in range(3):
            ours.send(True)
            assert ours.poll(30)
            steps.append(ours.recv())
        ours.send(False)
        assert ours.poll(30)
        before, most = ours.recv()
        thread.join(30)
    assert all(set(step) == set(PHASES) and min(step.values()) >= 0 for step in steps)
    assert 0 < before <= most and not thread.is_alive()


def record(command: str = "") -> TrainingSpeed:
    loops = tuple(
        LoopSpeed("efficientvit_m0_p8", loop, 128e3 / sum(ms), *ms, peak, peak - 500)
        for loop, ms, peak in (
            ("evitlab", (1.0, 19.0, 200.0, 260.0, 20.0), 1100.0),
            ("timm", (80.0, 10.0, 230.0, 350.0, 80.0), 1000.0),
        )
    )
    ratio = LoopRatio("efficientvit_m0_p8", 24_000_000, 1.5, 1.4, 1.6, 1.375, 250.0)
    card = environment_card(dataset="embedded shapes", batch_size=128)
    return TrainingSpeed(loops, (ratio,), (64, 64), 128, "imagenet", 15, 37.0, command, card)


def test_the_record_adds_up_and_survives_a_file(tmp_path: Path) -> None:
    made = record()
    ours, timms = made.loops
    assert ours.step_ms == 500 and ours.input_share == 20 / 500 and timms.step_ms == 750
    assert TrainingSpeed.load(made.save(tmp_path / "speed.json")) == made
    frame = made.to_frame()
    assert frame["ratio"].tolist() == [1.5, 1.0] and frame["step_ms"].tolist() == [500, 750]


def test_ratios_are_rounds_of_the_same_turn() -> None:
    steps = {
        "timm": [dict.fromkeys(PHASES, seconds) for seconds in (2.0, 6.0)],
        "evitlab": [dict.fromkeys(PHASES, seconds) for seconds in (1.0, 2.0)],
    }
    assert training_speed._ratios(steps, PHASES) == [2.0, 3.0]


def test_the_command_prints_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def compare(models: Any, **options: Any) -> TrainingSpeed:
        asked.update(options, models=models)
        return record(options["command"])

    monkeypatch.setattr(training_speed, "compare_training", compare)
    file = tmp_path / "speed.json"
    command = ["bench", "--train", "efficientvit_m0", "--rounds", "4", "--json", str(file)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "1.50 times timm's loop (quartiles 1.40 to 1.60), 1.38 without its input" in printed
    assert "input 4.0% of the step (timm's 12.0%); 1.10 times its memory" in printed
    assert asked["models"] == ["efficientvit_m0"] and asked["rounds"] == 4
    assert TrainingSpeed.load(file).command.startswith("evitlab bench --train efficientvit_m0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("resnet18",)}, "models: expected some of efficientvit_m0"),
        ({"batch_size": 1}, "batch_size: expected at least 2"),
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_speed.compare_training(**options)
