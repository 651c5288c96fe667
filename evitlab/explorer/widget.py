"""The explorer: a `Session` on screen, with thin widgets around it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self

import ipywidgets as widgets

from evitlab.analysis.conditions import ALONE
from evitlab.explorer.controls import Controls
from evitlab.explorer.picture_widget import PictureWidget
from evitlab.explorer.pictures import Labels, read_bytes, read_path
from evitlab.explorer.session import Models, Session
from evitlab.figures.attention_view import ViewCanvas, attention_view, describe
from evitlab.figures.style import save_picture
from evitlab.records.view import OVERLAYS, AttentionView
from evitlab.wording import on_one_line

_NARROWEST, _WIDEST = 420, 1400  # CSS pixels that are drawn
_STEPS = {"ArrowUp": (-1, 0), "ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowRight": (0, 1)}


class AttentionExplorer(widgets.VBox):
    """Look at attention heads: pick a picture, a block, a head, and click the patch that asks.

    Every widget has a method that does the same, so a script can do all that a reader can; the
    methods return the explorer, so that they can be chained.

    Args:
        model: a module that `capture_attention` takes; a name that `evitlab heads` takes; or
            several of either, as {name on screen: model}, to switch between.
        images: an image file or a folder of them, the name of a data set, a `Dataset`, a tensor or
            array [N, 3, H, W] or [N, H, W, 3] (uint8 or floats of 0 to 1), or a list of paths,
            PIL images and arrays. Each is resized and cut to what the model takes.
        labels: the true class of each picture, by number or name; None takes the data set's.
        weights: of models that are given by name, without weights of their own: a path, or "hub"
            for timm's ImageNet weights.

    Raises:
        ValueError: a model without attention that is known here, no picture, one that cannot be
            read, or another number of labels than pictures.
        FileNotFoundError: a path that is none, or weights that cannot be fetched.

    Pitfall: a map shows where one head looks, not what the model decides by; turn the head off to
        see what depends on it.
    """

    def __init__(
        self,
        model: Models,
        images: Any,
        *,
        labels: Labels = None,
        weights: str | None = None,
    ) -> None:
        self.session = Session(model, images, labels=labels, weights=weights)
        self._call = _written(model, images, labels, weights)
        self._added: list[str] = []
        self._canvas = ViewCanvas(1000, False)
        self._following = False  # widgets are being set to the state: they ask for nothing
        self._picture = PictureWidget()
        self.controls = controls = Controls(self.session.models)
        super().__init__(children=[*controls.above(), self._picture, controls.below()])
        self._bind()
        self._follow()

    @property
    def view(self) -> AttentionView:
        """What is shown, as numbers."""
        return self.session.views[0]

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
    ) -> Self:
        """Choose what to look at; what is not named stays, as far as there is such a thing.

        Args:
            model: which, by its name on screen; turns all heads on.
            compare: a model to show beside it, on the same picture, at the same place and the same
                share of its depth; "" for none.
            image: counted from 0.
            block: counted from 1, as `capture_attention` counts.
            head: counted from 1.
            pair: another head of the block, to compare with `head`, counted from 1.
            query: (row, column) of the patch that asks, counted from 0 in the block's grid; or
                "class", the class token.
            overlay: what is laid over the picture: "attention" of the head, "rollout" of all
                blocks, "grad_cam" or "integrated_gradients" of the predicted class.
            importance: also show how much of its probability the predicted class loses with each
                head off; takes one forward pass per head.

        Raises:
            ValueError: there is no such thing; nothing has changed then.
        """
        with ALONE:
            self.session.select(
                model=model, compare=compare, image=image, block=block, head=head, pair=pair,
                query=query, overlay=overlay, importance=importance,
            )  # fmt: skip
            return self._follow()

    def ablate(
        self, block: int | None = None, head: int | None = None, *, off: bool = True
    ) -> Self:
        """Turn a head off: its output is zero, and what it would pass on in a cascade too. Maps and
        probabilities are then those of the model without it.

        Args:
            block: counted from 1; None: the chosen one.
            head: counted from 1; None: the chosen one.
            off: False turns it on again.

        Raises:
            ValueError: no such block or head.
        """
        with ALONE:
            self.session.ablate(block, head, off=off)
            return self._follow()

    def restore(self) -> Self:
        """All heads on."""
        with ALONE:
            self.session.restore()
            return self._follow()

    def add(self, path: str | os.PathLike[str]) -> Self:
        """A picture, or a folder of them, after those that are there; the first one is shown.

        Raises:
            ValueError: it is none, or cannot be read.
            FileNotFoundError: nothing there.
        """
        with ALONE:
            self.session.add(read_path(path))
            self._added.append(os.fspath(path))
            return self._follow()

    def render(self) -> bytes:
        """The view as a PNG, as it stands on screen."""
        with ALONE:
            return self._canvas.draw(*self.session.views)

    def figure(self, *, width: int | None = None, dark: bool | None = None) -> Any:
        """The view as a matplotlib figure.

        Args:
            width: in CSS pixels; None: as on screen.
            dark: light ink on a dark ground; None: as on screen.
        """
        canvas = self._canvas
        return attention_view(
            *self.session.views,
            width=canvas.width if width is None else width,
            dark=canvas.dark if dark is None else dark,
        )

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write the view as NAME.png and NAME.svg, each atomically; existing files are replaced.

        Args:
            path: with or without one of the endings.

        Raises:
            OSError: the folder cannot be written.
        """
        return save_picture(self.figure(), path)

    def code(self) -> str:
        """The line that makes this view again, without a widget on screen.

        A picture that was uploaded stands in it by its file's name.
        """
        state = self.session.state
        chosen: dict[str, Any] = {}
        if len(self.session.models) > 1:
            chosen["model"] = state.model
        if state.compare is not None:
            chosen["compare"] = state.compare
        query = self.view.query
        chosen |= {"image": state.image, "block": state.block, "head": state.head}
        if state.pair is not None:
            chosen["pair"] = state.pair
        chosen["query"] = "class" if query is None else query
        if state.overlay != OVERLAYS[0]:
            chosen["overlay"] = state.overlay
        if state.importance:
            chosen["importance"] = True
        choice = ", ".join(f"{key}={value!r}" for key, value in chosen.items())
        line = self._call + "".join(f".add({path!r})" for path in self._added)
        line += f".select({choice})"
        line += "".join(f".ablate({block}, {head})" for block, head in sorted(state.off))
        return line + '.save("view")'

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget; in words where none can be shown."""
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = describe(self.view)
        return bundle

    # What follows binds widgets to the methods above.

    def _bind(self) -> None:
        controls = self.controls
        bound: dict[widgets.Widget, Callable[[Any], Any]] = {
            controls.model: lambda value: self.select(model=value),
            controls.compare: lambda value: self.select(compare=value),
            controls.overlay: lambda value: self.select(overlay=value),
            controls.importance: lambda value: self.select(importance=value),
            controls.image: lambda value: self.select(image=value),
            controls.block: lambda value: self.select(block=value),
            controls.head: lambda value: self.select(head=value),
            controls.class_token: self._ask_by_class_token,
            controls.head_off: lambda value: self.ablate(off=value),
            controls.upload: self._take_uploads,
            controls.path: self._take_path,
        }
        for widget, act in bound.items():
            widget.observe(lambda change, act=act: self._try(act, change["new"]), "value")
        controls.restore.on_click(lambda _: self._try(lambda _: self.restore()))
        controls.save.on_click(lambda _: self._try(self._save_beside))
        controls.copy.on_click(
            lambda _: self._picture.send({"kind": "copy", "text": self.code()})
        )
        self._picture.on_msg(self._on_message)
        self._picture.observe(self._on_room, ["room", "dark", "pixel_ratio"])

    def _try(self, act: Callable[[Any], Any], value: Any = None) -> None:
        """Do what a widget asks for; a mistake becomes a message, and the view stays."""
        with ALONE:
            if self._following:
                return
            self.controls.say("…")  # some overlays take seconds
            try:
                said = act(value)
            except BaseException as error:
                self._follow()
                self.controls.say(on_one_line(error) or repr(error), wrong=True)
                if not isinstance(error, (ValueError, OSError)):
                    raise  # no mistake of the reader's: the log has the traceback
            else:
                self.controls.say(said if isinstance(said, str) else "")

    @contextmanager
    def _silently(self) -> Iterator[None]:
        before, self._following = self._following, True
        try:
            yield
        finally:
            self._following = before

    def _follow(self) -> Self:
        """Widgets and picture show the state."""
        with ALONE:
            with self._silently():
                self.controls.follow(self.session, self.view, self.code())
            self._paint()
        return self

    def _paint(self) -> None:
        picture = self._picture
        with picture.hold_sync():
            picture.value = self.render()
            picture.shown_width = self._canvas.width
            picture.description = describe(self.view)

    def _on_room(self, _change: object) -> None:
        picture, canvas = self._picture, self._canvas
        width = max(_NARROWEST, min(_WIDEST, picture.room))
        wanted = width, picture.dark, picture.pixel_ratio
        if wanted != (canvas.width, canvas.dark, canvas.pixel_ratio):
            with ALONE:
                self._canvas = ViewCanvas(*wanted)
                self._paint()

    def _on_message(self, _widget: object, content: dict[str, Any], _buffers: object) -> None:
        if content.get("kind") == "copied":
            said = "copied" if content.get("done") else "not allowed here: select the text and copy"
            self.controls.say(said, wrong=not content.get("done"))
        elif content.get("kind") == "click":
            self._try(self._click, (float(content["x"]), float(content["y"])))
        elif content.get("key") in _STEPS:
            self._try(self._move, _STEPS[content["key"]])

    def _click(self, where: tuple[float, float]) -> None:
        hit = self._canvas.locate(*where)
        if hit is None:
            return
        if hit.part == "query":
            self._ask_by_place(hit.model, hit.row, hit.column)
        elif hit.model == 0:
            self.select(block=hit.block, head=hit.head, pair=hit.other)

    def _ask_by_place(self, which: int, row: int | None, column: int | None) -> None:
        """A patch of either model's picture: the same place is asked in both."""
        view = self.session.views[which]
        assert view is not None and row is not None and column is not None
        rows, columns = view.query_grid
        self.session.ask(((row + 0.5) / rows, (column + 0.5) / columns))
        self._follow()

    def _move(self, step: tuple[int, int]) -> None:
        query, grid = self.view.query, self.view.query_grid
        if query is None:  # the class token: back to where the patch was
            self._ask_by_class_token(False)
            return
        row, column = (
            min(max(at + by, 0), count - 1) for at, by, count in zip(query, step, grid, strict=True)
        )
        self.select(query=(row, column))

    def _ask_by_class_token(self, on: bool) -> None:
        if on:
            self.select(query="class")
        else:
            self.session.ask(self.session.state.place)
            self._follow()

    def _take_uploads(self, files: Sequence[Any]) -> None:
        if not files:
            return
        with self._silently():
            self.controls.upload.value = ()  # so that the same file can be chosen again
        pictures = [read_bytes(bytes(file["content"]), str(file["name"])) for file in files]
        self.session.add(pictures)
        self._added += [picture.name for picture in pictures]
        self._follow()

    def _take_path(self, path: str) -> None:
        if path.strip():
            self.add(path.strip())
            with self._silently():
                self.controls.path.value = ""

    def _save_beside(self, _: object) -> str:
        name = f"attention_{self.view.model}".replace("/", "-")
        number = next(
            n for n in count(1)
            if not any(Path(f"{name}_{n}.{ending}").exists() for ending in ("png", "svg"))
        )  # fmt: skip
        png, svg = self.save(f"{name}_{number}")
        return f"saved: {png.name} and {svg.name}"


def _written(model: Models, images: Any, labels: Any, weights: str | None) -> str:
    """The call that makes the explorer; objects stand under the names of its arguments."""
    if isinstance(model, Mapping):
        names = all(isinstance(value, str) for value in model.values())
        shown = repr(dict(model)) if names else "models"
    else:
        shown = repr(model) if isinstance(model, str) else "model"
    source = repr(os.fspath(images)) if isinstance(images, (str, os.PathLike)) else "images"
    rest = "" if labels is None else ", labels=labels"
    rest += "" if weights is None else f", weights={weights!r}"
    return f"evitlab.AttentionExplorer({shown}, {source}{rest})"
