"""How fast the explorer answers, and whether it stays small."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from itertools import count, cycle

from tqdm.auto import tqdm

from evitlab.analysis.conditions import cpu_threads
from evitlab.analysis.memory import peak_resident_mib
from evitlab.explorer.widget import AttentionExplorer
from evitlab.records import ExplorerCost, ExplorerStep, environment_card, quartiles

MODELS = ("efficientvit_m4", "deit_t", "swin_t", "efficientvit_m0_embedded")
WIDTH = 1000  # of the picture, CSS pixels


def measure_explorer(
    models: Sequence[str] = MODELS,
    *,
    rounds: int = 30,
    interactions: int = 1000,
    threads: int = 2,
    command: str = "",
) -> ExplorerCost:
    """Time each kind of step, from the choice to the PNG's bytes, on embedded images.

    Args:
        models: names that `AttentionExplorer` takes.
        rounds: of each step.
        interactions: random ones with the first model, to see whether memory stays flat.
        threads: of torch on the CPU.

    Raises:
        ValueError: unknown model, or a number below one.

    Pitfall: what the browser takes to show the picture comes on top.
    """
    for name, value in (("rounds", rounds), ("interactions", interactions)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    rows: list[ExplorerStep] = []
    with cpu_threads(threads):
        # First of all: the peak so far must not hide what comes.
        explorer = AttentionExplorer(models[0], "embedded")
        early = _interact(explorer, max(1, interactions // 5), seed=0)
        late = _interact(explorer, interactions - interactions // 5, seed=1)
        subject = explorer.session.subject(explorer.session.state.model)
        hooks = sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in subject.model.modules()
        )
        for name in tqdm(models, desc="bench", unit="model"):
            rows.extend(_steps(name, rounds))
        card = environment_card(batch_size=1, dataset="embedded shapes")
    return ExplorerCost(tuple(rows), WIDTH, interactions, early, late, hooks, command, card)


def _steps(name: str, rounds: int) -> list[ExplorerStep]:
    explorer = AttentionExplorer(name, "embedded")
    session = explorer.session
    blocks, pictures = explorer.view.blocks, len(session.pictures)
    place, fresh = count(), cycle(range(2, pictures))
    turn = count()
    found = session.look.blocks
    heads = [(block.number, head + 1) for block in found for head in range(block.num_heads)]

    def ask() -> None:
        height, width = explorer.view.query_grid
        explorer.select(query=divmod(next(place) % (height * width), width))

    def switch() -> None:
        """One more head off, up to all; then one more on: no set of heads comes twice."""
        number = next(turn)
        explorer.ablate(*heads[number % len(heads)], off=number // len(heads) % 2 == 0)

    steps: dict[str, Callable[[], object]] = {
        "query": ask,
        "head": lambda: explorer.select(head=1 + next(turn) % explorer.view.num_heads),
        "block": lambda: explorer.select(block=1 + next(turn) % blocks),
        "head off": switch,
        "seen image": lambda: explorer.select(image=next(turn) % 2),
        "new image": lambda: explorer.select(image=next(fresh)),
    }
    rows = []
    for step, act in steps.items():
        explorer.restore()
        turn = count()
        act(), act()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            act()
            times.append(1e3 * (time.perf_counter() - start))
        low, middle, high = quartiles(times)
        side = explorer.view.size[0]
        rows.append(ExplorerStep(name, side, step, rounds, middle, low, high, max(times)))
    return rows


def _interact(explorer: AttentionExplorer, interactions: int, *, seed: int) -> float | None:
    """Random choices; the largest memory of the process so far, MiB."""
    draw = random.Random(seed)
    for _ in tqdm(range(interactions), desc="interactions", unit="step", delay=2, leave=False):
        view, step = explorer.view, draw.randrange(6)
        rows, columns = view.query_grid
        if step == 0:
            explorer.select(image=draw.randrange(len(explorer.session.pictures)))
        elif step == 1:
            explorer.select(block=draw.randint(1, view.blocks))
        elif step == 2:
            explorer.select(head=draw.randint(1, view.num_heads))
        elif step == 3:
            explorer.select(query=(draw.randrange(rows), draw.randrange(columns)))
        elif step == 4:
            explorer.ablate(off=draw.random() < 0.5)
        else:
            explorer.restore()
    return peak_resident_mib()
