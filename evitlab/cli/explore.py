"""`evitlab explore`."""

from __future__ import annotations

import argparse
from pathlib import Path

from evitlab.cli.parser import AddCommand

DEFAULT_MODEL = "efficientvit_m0_embedded"  # trained on the default images


def add(command: AddCommand) -> None:
    explore = command(
        "explore", _explore, "look at attention heads in the browser, one by one",
        "evitlab explore efficientvit_m4 --images photographs",
    )  # fmt: skip
    explore.add_argument("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL",
                         help="ours, timm's, a run's folder, a .safetensors file, or a name in "
                         "data/checkpoints (default: %(default)s)")  # fmt: skip
    explore.add_argument("--images", default="embedded", metavar="DIR|NAME",
                         help="a picture, a folder of them, or a named data set "
                         "(default: %(default)s)")  # fmt: skip
    explore.add_argument("--weights", metavar="hub|PATH",
                         help="of models that are given by name (default: random)")
    explore.add_argument("--compare", metavar="MODEL", help="a second model beside the first")
    explore.add_argument("--app", action="store_true",
                         help="as a page without the code, by Voila; else in JupyterLab")
    explore.add_argument("--port", type=int, metavar="N",
                         help="of the server (default: 8888, with --app 8866, or the next free)")
    explore.add_argument("--no-browser", action="store_true",
                         help="print the address, open nothing")
    explore.add_argument("--notebook", type=Path, metavar="FILE",
                         help="keep the notebook there; never overwrites one")


def _explore(args: argparse.Namespace) -> int:
    from evitlab import serving

    # All that can be wrong is said before a server starts; what costs nothing first.
    if args.app:
        serving.check_voila()
    if args.port is not None:
        serving.check_port(args.port)
    if args.notebook is not None:
        serving.check_new_notebook(args.notebook)
    models = _named_on_screen(args.model, args.compare)
    images = _absolute(args.images)
    weights = None if args.weights is None else _absolute(args.weights)
    _look_once(models, images, weights)

    notebook = serving.explorer_notebook(
        models, images, weights=weights, app=args.app,
        folder=None if args.notebook is not None else Path.cwd(),
    )  # fmt: skip
    with serving.placed(notebook, args.notebook) as file:
        command = serving.server_command(
            file, app=args.app, port=args.port, browser=not args.no_browser
        )
        print(_announcement(args), flush=True)
        try:
            return serving.serve(command)
        except KeyboardInterrupt:
            return 130


def _look_once(models: dict[str, str], images: str, weights: str | None) -> None:
    """What the notebook will do, to raise what it would raise.

    Nothing of it stays: the kernel has models of its own, and the server runs for hours.
    """
    from evitlab.explorer.session import Session

    session = Session(models, images, weights=weights)
    for name in list(models)[1:]:  # the first has been looked through
        session.select(compare=name)


def _announcement(args: argparse.Namespace) -> str:
    if args.app:
        return "Voila starts on this machine alone; Ctrl-C ends it"
    kept = (
        "the notebook goes with it, --notebook FILE keeps what you write there"
        if args.notebook is None else f"the notebook stays in {args.notebook}"
    )  # fmt: skip
    return f"JupyterLab starts on this machine alone; Ctrl-C ends it ({kept})"


def _named_on_screen(first: str, second: str | None) -> dict[str, str]:
    """{short name: name or absolute path}"""
    import timm

    from evitlab.models.zoo import list_models

    def is_a_name(model: str) -> bool:  # also where a folder is called the same
        return model in list_models() or timm.is_model(model.partition(".")[0])

    given = [first] if second is None else [first, second]
    found = [model if is_a_name(model) else _absolute(model) for model in given]
    if len(set(found)) < len(found):
        raise ValueError(f"--compare: expected another model than {first}")
    short = [Path(model).name if Path(model).is_absolute() else model for model in found]
    return dict(zip(short if len(set(short)) == len(short) else found, found, strict=True))


def _absolute(name: str) -> str:
    """A path from the working directory, as seen from anywhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
