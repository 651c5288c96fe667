"""A picture in the browser that takes clicks and arrow keys."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets

_HERE = Path(__file__).parent


class PictureWidget(anywidget.AnyWidget):
    """PNG bytes on screen. Messages from the browser: {"kind": "click", "x", "y"}, fractions of
    the picture from its upper left, and {"kind": "key", "key": "ArrowUp", …}. A message
    {"kind": "copy", "text"} puts a text on the clipboard; {"kind": "copied", "done"} answers it.
    """

    _esm = _HERE / "view.js"
    _css = _HERE / "view.css"

    value = traitlets.Bytes().tag(sync=True)  # a PNG
    shown_width = traitlets.Int(1000).tag(sync=True)  # CSS pixels
    description = traitlets.Unicode().tag(sync=True)  # in words, for those who do not see it
    # Said by the browser:
    room = traitlets.Int(1000).tag(sync=True)  # CSS pixels that the picture may take
    dark = traitlets.Bool(False).tag(sync=True)  # the page's ground is dark
    pixel_ratio = traitlets.Float(1.0).tag(sync=True)  # device pixels per CSS pixel, 2 at most
