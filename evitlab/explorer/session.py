"""What is being looked at: the explorer without its widgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from evitlab.analysis.conditions import without_progress_bars
from evitlab.analysis.subjects import is_named
from evitlab.explorer.pictures import Labels, Picture, read_pictures
from evitlab.explorer.subject import Block, Look, Off, Subject
from evitlab.records.view import OVERLAYS, AttentionView
from evitlab.wording import check_choice

_TOP = 5  # classes shown
Models = nn.Module | str | Mapping[str, nn.Module | str]


@dataclass(frozen=True)
class State:
    """All that a reader chooses."""

    model: str
    compare: str | None = None
    image: int = 0  # counted from 0
    block: int = 1
    head: int = 1
    pair: int | None = None
    # Of the query on the image, as fractions of its height and width: blocks have other grids.
    place: tuple[float, float] = (0.5, 0.5)
    on_class_token: bool = False  # wherever there is one
    overlay: str = OVERLAYS[0]
    importance: bool = False
    off: Off = frozenset()


class Session:
    """Models, pictures and the state; every change is checked before it is made.

    Args:
        models: a module, a name that `evitlab heads` takes, or several of either under the names
            that they get on screen.
        images: see `read_pictures`.
        labels: the true class of each picture, by number or name.
        weights: of models that are given by name, without weights of their own: a path, or "hub".

    Raises:
        ValueError: see `Subject` and `read_pictures`; no model.
        FileNotFoundError: see there.
    """

    @without_progress_bars()
    def __init__(
        self,
        models: Models,
        images: Any,
        *,
        labels: Labels = None,
        weights: str | None = None,
    ) -> None:
        self._weights = weights
        self._opened: dict[str, Subject] = {}
        if isinstance(models, Mapping):
            if not models:
                raise ValueError("model: expected at least one, got none")
            self._models = dict(models)
            if weights is not None and not any(map(_takes_weights, self._models.values())):
                raise ValueError("weights: expected a model that is given by its name, got none")
            first = next(iter(self._models))
        else:
            subject = Subject(models, weights=weights)
            first = subject.name
            self._models, self._opened[first] = {first: models}, subject
        self.pictures = read_pictures(images, labels, self.subject(first).size)
        self.state: State
        # What is shown: the chosen model's view, and that of the one it is compared with.
        self.views: tuple[AttentionView, AttentionView | None]
        self._apply(State(model=first))

    @property
    def models(self) -> tuple[str, ...]:
        """Names to choose from."""
        return tuple(self._models)

    @property
    def look(self) -> Look:
        """The chosen picture through the chosen model, with the heads off that are off."""
        return self._look(self.state)

    def subject(self, name: str) -> Subject:
        """A model by its name on screen; opened when it is first asked for."""
        if name not in self._opened:
            model = self._models[name]
            weights = self._weights if _takes_weights(model) else None
            self._opened[name] = Subject(model, name=name, weights=weights)
        return self._opened[name]

    @without_progress_bars()
    def add(self, pictures: Sequence[Picture]) -> None:
        """More pictures at the end; the first of them is shown.

        Raises:
            ValueError: it cannot be read; nothing is added then.
        """
        before = self.pictures
        self.pictures = [*before, *pictures]
        try:
            self._apply(replace(self.state, image=len(before)))
        except BaseException:
            self.pictures = before
            raise

    @without_progress_bars()
    def select(
        self,
        *,
        model: str | None = None,
        compare: str | None = None,
        image: int | None = None,
        block: int | None = None,
        head: int | None = None,
        pair: int | None = None,
        query: tuple[int, int] | str | None = None,
        overlay: str | None = None,
        importance: bool | None = None,
    ) -> None:
        """See `AttentionExplorer.select`."""
        state = self.state
        if model is not None:
            check_choice("model", model, self.models)
        if model is not None and model != state.model:
            # What counts blocks and heads of one model says nothing about another's.
            state = replace(state, model=model, off=frozenset(), pair=None)
        if compare is not None:
            if compare:
                check_choice("compare", compare, self.models)
            state = replace(state, compare=compare or None)
        if image is not None:
            state = replace(state, image=_within("image", image, 0, len(self.pictures) - 1))
        blocks = self._look(state).blocks
        if block is not None:
            state = replace(state, block=_within("block", block, 1, len(blocks)))
        state = replace(state, block=min(state.block, len(blocks)))
        heads = blocks[state.block - 1].num_heads
        if head is not None:
            state = replace(state, head=_within("head", head, 1, heads), pair=None)
        if pair is not None:
            pair = _within("pair", pair, 1, heads)
            state = replace(state, pair=None if pair == state.head else pair)
        if overlay is not None:
            check_choice("overlay", overlay, OVERLAYS)
            state = replace(state, overlay=overlay)
        if importance is not None:
            state = replace(state, importance=bool(importance))
        if query is not None:
            state = self._at(state, blocks[state.block - 1], query)
        self._apply(state)

    @without_progress_bars()
    def ablate(self, block: int | None = None, head: int | None = None, *, off: bool) -> None:
        """See `AttentionExplorer.ablate`."""
        block = self.state.block if block is None else block
        blocks = self.look.blocks
        heads = blocks[_within("block", block, 1, len(blocks)) - 1].num_heads
        head = self.state.head if head is None else head
        which = {(block, _within("head", head, 1, heads))}
        before = self.state.off
        self._apply(replace(self.state, off=before | which if off else before - which))

    @without_progress_bars()
    def ask(self, place: tuple[float, float]) -> None:
        """The patch at a place asks; fractions of the picture's height and width, below 1."""
        self._apply(replace(self.state, place=place, on_class_token=False))

    @without_progress_bars()
    def restore(self) -> None:
        """All heads on."""
        self._apply(replace(self.state, off=frozenset()))

    def _apply(self, state: State) -> None:
        """Take a state over once all that it shows is known."""
        state = self._clipped(state, state.block)
        mine, theirs = self._view(state), None
        if state.compare is not None:
            # The same picture and place, at the same depth.
            other = replace(state, model=state.compare, off=frozenset(), pair=None)
            count = len(self._look(other).blocks)
            depth = (state.block - 1) / max(1, mine.blocks - 1)
            other = self._clipped(other, 1 + round(depth * (count - 1)))
            theirs = self._view(replace(other, importance=False))
        self.state, self.views = state, (mine, theirs)

    def _clipped(self, state: State, block: int) -> State:
        """The same choice at a block, where there may be fewer blocks or heads."""
        blocks = self._look(state).blocks
        block = min(block, len(blocks))
        heads = blocks[block - 1].num_heads
        pair = state.pair if state.pair is not None and state.pair <= heads else None
        return replace(state, block=block, head=min(state.head, heads), pair=pair)

    def _look(self, state: State) -> Look:
        return self.subject(state.model).look(self.pictures[state.image], state.off)

    def _at(self, state: State, block: Block, query: tuple[int, int] | str) -> State:
        if query == "class":
            if not self._has_class_token(state, block):
                raise ValueError(
                    f"query: expected (row, column), got 'class': block {state.block} of "
                    f"{state.model} has no class token"
                )
            return replace(state, on_class_token=True)
        rows, columns = block.queries.grid
        if not isinstance(query, Sequence) or isinstance(query, str) or len(query) != 2:
            raise ValueError(f"query: expected (row, column) or 'class', got {query!r}")
        row = _within("query row", query[0], 0, rows - 1)
        column = _within("query column", query[1], 0, columns - 1)
        place = (row + 0.5) / rows, (column + 0.5) / columns
        return replace(state, place=place, on_class_token=False)

    def _has_class_token(self, state: State, block: Block) -> bool:
        return self.subject(state.model).has_class_token and block.queries.prefix > 0

    def _query(self, state: State, block: Block) -> tuple[int, int] | None:
        """The patch of a block's grid at the chosen place; None: the class token."""
        if state.on_class_token and self._has_class_token(state, block):
            return None
        rows, columns = block.queries.grid
        return int(state.place[0] * rows), int(state.place[1] * columns)

    def _view(self, state: State) -> AttentionView:
        subject, picture = self.subject(state.model), self.pictures[state.image]
        look = self._look(state)
        block = look.blocks[state.block - 1]
        query = self._query(state, block)
        maps, on_class = block.seen_from(query)
        similarity, entropy = block.compared
        has_class_token = self._has_class_token(state, block)
        in_windows = block.kind != "global" and block.keys.windows != (1, 1)
        before = subject.look(picture).probabilities if state.off else look.probabilities
        after = look.probabilities if state.off else None
        top = sorted(range(len(before)), key=lambda k: -before[k])[:_TOP]
        if after is not None and int(after.argmax()) not in top:
            top[-1] = int(after.argmax())
        return AttentionView(
            model=subject.name,
            weights=subject.weights,
            picture=look.pixels,
            picture_name=picture.name,
            label=subject.label(picture),
            block=state.block,
            blocks=len(look.blocks),
            block_name=block.name,
            kind=block.kind,
            head=state.head,
            query=query,
            has_class_token=has_class_token,
            grid=block.keys.grid,
            query_grid=block.queries.grid,
            window=block.keys.window if in_windows else None,
            shift=block.keys.shift,
            maps=maps,
            class_weights=on_class if has_class_token else None,
            similarity=similarity,
            pair=state.pair,
            entropy=entropy,
            distance=block.distance,
            on_object=block.on_object,
            mask=look.mask,
            off=tuple(sorted(state.off)),
            classes=tuple(
                (
                    subject.class_name(k),
                    float(before[k]),
                    None if after is None else float(after[k]),
                )
                for k in top
            ),
            overlay=state.overlay,
            heat=None
            if state.overlay == OVERLAYS[0]
            else subject.heat(picture, state.overlay, state.off),
            importance=subject.importance(picture, state.off) if state.importance else None,
        )


def _takes_weights(model: nn.Module | str) -> bool:
    return isinstance(model, str) and is_named(model)


def _within(argument: str, given: Any, first: int, last: int) -> int:
    try:
        number = int(given)
    except (TypeError, ValueError):
        number = first - 1
    if isinstance(given, bool) or number != given or not first <= number <= last:
        raise ValueError(f"{argument}: expected {first} to {last}, got {given!r}")
    return number
