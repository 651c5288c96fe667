"""The widgets beside the explorer's picture: they show its state and keep none of their own."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from evitlab.explorer.session import Session
from evitlab.records.view import AttentionView

_OVERLAYS = {
    "Attention": "attention",
    "Rollout of all blocks": "rollout",
    "Grad-CAM": "grad_cam",
    "Integrated gradients": "integrated_gradients",
}
_STYLE = {"description_width": "auto"}


class Controls:
    """What a reader can set, named as on screen."""

    def __init__(self, models: Sequence[str]) -> None:
        named = [(name, name) for name in models]
        self.model = _dropdown("Model", named, "270px")
        self.compare = _dropdown("Compare with", [("nothing", ""), *named], "290px")
        self.overlay = _dropdown("Show", list(_OVERLAYS.items()), "240px")
        self.importance = _check("Importance", "The loss of probability with each head off alone")
        self.image = _slider("Image", 0)
        self.block = _slider("Block", 1)
        self.head = _slider("Head", 1)
        self.class_token = _check("Class token", "The class token asks, instead of a patch")
        self.head_off = _check("Head off", "This head's output is zero")
        self.restore = _button("All heads on", "Turn every head on again")
        self.upload = widgets.FileUpload(
            description="Upload", accept="image/*", layout=widgets.Layout(width="auto")
        )
        self.path = widgets.Text(
            description="Path", placeholder="a picture or a folder, then Enter", style=_STYLE,
            continuous_update=False, layout=widgets.Layout(width="300px"),
        )  # fmt: skip
        self.message = widgets.HTML().add_class("evitlab-message")
        self.save = _button("Save", "The view as PNG and SVG, in the working directory")
        self.copy = _button("Copy code", "The line that makes this view again")
        self.code = widgets.Textarea(
            description="Code", rows=3, style=_STYLE, layout=widgets.Layout(flex="1 1 400px")
        )

    def above(self) -> tuple[widgets.Widget, ...]:
        """Rows above the picture."""
        return (
            _row(self.model, self.compare, self.overlay, self.importance),
            _row(self.image, self.block, self.head, self.class_token),
            _row(self.head_off, self.restore, self.upload, self.path),
            self.message,
        )

    def below(self) -> widgets.Widget:
        """The row below it."""
        return _row(self.save, self.copy, self.code)

    def follow(self, session: Session, view: AttentionView, code: str) -> None:
        """Show a state; what cannot be chosen in it is disabled."""
        state = session.state
        self.model.value = state.model
        self.model.disabled = self.compare.disabled = len(session.models) < 2
        self.compare.value = state.compare or ""
        self.overlay.value = state.overlay
        self.importance.value = state.importance
        for slider, last, value in (
            (self.image, len(session.pictures) - 1, state.image),
            (self.block, view.blocks, state.block),
            (self.head, view.num_heads, state.head),
        ):
            slider.max = last
            slider.value = value
            slider.disabled = slider.min == last
        self.class_token.value = view.query is None
        self.class_token.disabled = not view.has_class_token
        self.head_off.value = (state.block, state.head) in state.off
        self.restore.disabled = not state.off
        self.code.value = code

    def say(self, text: str, *, wrong: bool = False) -> None:
        """A line above the picture; screen readers read it out."""
        kind = "evitlab-wrong" if wrong else "evitlab-done"
        self.message.value = f'<span role="status" class="{kind}">{html.escape(text)}</span>'


def _row(*children: widgets.Widget) -> widgets.Box:
    return widgets.Box(children).add_class("evitlab-controls")


def _dropdown(description: str, options: Any, width: str) -> widgets.Dropdown:
    layout = widgets.Layout(width=width)
    return widgets.Dropdown(description=description, options=options, style=_STYLE, layout=layout)


def _slider(description: str, first: int) -> widgets.IntSlider:
    return widgets.IntSlider(
        description=description, value=first, min=first, max=first, style=_STYLE,
        layout=widgets.Layout(width="260px"),
    )  # fmt: skip


def _button(description: str, tooltip: str) -> widgets.Button:
    layout = widgets.Layout(width="auto")
    return widgets.Button(description=description, tooltip=tooltip, layout=layout)


def _check(description: str, tooltip: str) -> widgets.Checkbox:
    layout = widgets.Layout(width="auto")
    return widgets.Checkbox(description=description, indent=False, tooltip=tooltip, layout=layout)
