"""`evitlab detect predict`: what a detector finds on pictures and videos, drawn and written."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitlab.cli.data import on_error
from evitlab.cli.parser import AddCommand

if TYPE_CHECKING:
    from evitlab.datasets.detection import Detections
    from evitlab.datasets.frames import Frame, Frames

_QUALITY = 92  # of the JPEGs with boxes
_RESULTS = "detections.json"


def add(command: AddCommand) -> None:
    predict = command(
        "predict", _predict, "draw what a detector finds on images, folders and videos",
        "evitlab detect predict runs/boxes photos/ --out found\n"
        "  evitlab detect predict runs/boxes street.mp4 --every 25 --threshold 0.5 --out found",
    )  # fmt: skip
    predict.add_argument("weights", metavar="RUN|FILE",
                         help="a run's folder or a .safetensors file")
    predict.add_argument("images", nargs="+", metavar="IMAGES",
                         help="images, folders of them, videos, animations")
    predict.add_argument("--out", required=True, metavar="DIR",
                         help=f"for a picture of each, and {_RESULTS}: COCO results with the "
                         "names of the file and of its picture")  # fmt: skip
    predict.add_argument("--threshold", type=float, default=0.3, metavar="X",
                         help="scores from which on a box is shown and written (default: "
                         "%(default)s)")  # fmt: skip
    predict.add_argument("--every", type=int, default=1, metavar="N",
                         help="each N-th frame of a video (default: %(default)s)")
    predict.add_argument("--limit", type=int, metavar="N", help="pictures at most")
    predict.add_argument("--skip-corrupt", action="store_true",
                         help="leave out what cannot be read")
    predict.add_argument("--batch-size", type=int, default=1, metavar="N",
                         help="pictures per forward pass (default: %(default)s)")
    predict.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    predict.add_argument("--threads", type=int, metavar="N", help="CPU threads")


def _predict(args: argparse.Namespace) -> None:
    from evitlab.training.folder_lock import held

    with held(args.out, command=args.command_line):
        _predict_there(args)


def _predict_there(args: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from evitlab.analysis.conditions import cpu_threads
    from evitlab.datasets.frames import Frames
    from evitlab.models.detector import load_detector
    from evitlab.training.detecting import coco_results, predict_boxes
    from evitlab.training.evaluation import checked_device

    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold: expected 0 to 1, got {args.threshold}")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {args.batch_size}")
    device = checked_device(args.device)
    model = load_detector(args.weights).to(device)
    names = model.class_names or tuple(map(str, range(model.num_classes)))
    ids = model.category_ids or tuple(range(1, model.num_classes + 1))
    out = Path(args.out)
    frames = Frames(
        args.images, every=args.every, limit=args.limit, on_error=on_error(args), leave_out=out
    )
    _check_targets(frames, out)
    if not (out / _RESULTS).is_file():
        write_json(out / _RESULTS, [])  # says whose the drawings are, should this run be cut off
    results: list[dict[str, Any]] = []
    used: set[str] = set()
    with cpu_threads(args.threads), tqdm(
        total=frames.total, desc="detect", unit="img", leave=False, delay=2
    ) as bar:  # fmt: skip
        for batch in _batched(frames, args.batch_size):
            pictures = [(frame.name, frame.picture) for frame in batch]
            found = predict_boxes(model, pictures, batch_size=args.batch_size, progress=False)
            for frame, one in zip(batch, found, strict=True):
                shown = _from_threshold(one, args.threshold, number=len(used) + 1)
                file = _target(frame.file, frame.number, used)
                _write_picture(out / file, frame, shown, names)
                rows = coco_results([shown], ids)
                results += [{**row, "file_name": frame.name, "drawn": file} for row in rows]
            bar.update(len(batch))
    if not used:
        raise ValueError(f"IMAGES: expected one that can be read; {'; '.join(frames.skipped)}")
    write_json(out / _RESULTS, results)
    for reason in frames.skipped:
        print(f"left out: {reason}")
    counts = Counter(names[ids.index(row["category_id"])] for row in results)
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common(10))
    found_all = f"{counted(len(used), 'picture')}, {counted(len(results), 'box')}"
    print(
        f"{found_all} with a score of {args.threshold:g} or more"
        f"{f' ({listed})' if listed else ''}; drawn in {out}, written to {out / _RESULTS}"
    )


def _check_targets(frames: Frames, out: Path) -> None:
    """Raise a ValueError where a drawing would be written over a picture that is none."""
    from evitlab.datasets.frames import may_move

    sources = {file.resolve() for file, _ in frames.files}
    own = (out / _RESULTS).is_file()  # by an earlier run: its drawings may be written over
    used: set[str] = set()
    for file, name in frames.files:
        targets = _frames_of(out, name) if may_move(file) else [out / _target(name, None, used)]
        for target in targets:
            if target.resolve() in sources or (target.exists() and not own):
                raise ValueError(
                    f"--out: expected another folder, got {out}, where the picture {target} would "
                    "be written over"
                )


def _frames_of(out: Path, file: str) -> list[Path]:
    """What there is under names that a video's drawings may get."""
    stem = out / Path(file).with_suffix("")
    there = stem.parent.iterdir() if stem.parent.is_dir() else ()
    name = re.compile(re.escape(stem.name) + r"_\d{6,}\.jpg", re.IGNORECASE)
    return [path for path in there if name.fullmatch(path.name)]


def _batched(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """As itertools.batched of Python 3.12."""
    rest = iter(frames)
    while batch := list(islice(rest, size)):
        yield batch


def _target(file: str, number: int | None, used: set[str]) -> str:
    """Where the drawing of a picture goes, below the folder; each name is given once."""
    stem = Path(file).with_suffix("").as_posix()
    chosen = stem = stem if number is None else f"{stem}_{number:06d}"
    count = 1
    # Without regard to case, as Windows and macOS name files.
    while chosen.casefold() in used:
        count += 1
        chosen = f"{stem}_{count}"
    used.add(chosen.casefold())
    return f"{chosen}.jpg"


def _from_threshold(found: Detections, threshold: float, *, number: int) -> Detections:
    kept = found.scores >= threshold
    return dataclasses.replace(
        found,
        image_id=number,
        boxes=found.boxes[kept],
        labels=found.labels[kept],
        scores=found.scores[kept],
    )


def _write_picture(path: Path, frame: Frame, found: Detections, names: Sequence[str]) -> None:
    from evitlab.figures.detections import draw_boxes
    from evitlab.records import write_atomically

    drawn = draw_boxes(
        frame.picture,
        found.boxes.tolist(),
        found.labels.tolist(),
        class_names=names,
        scores=found.scores.tolist(),
    )
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)  # letters stay sharp
    write_atomically(path, buffer.getvalue())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    from evitlab.records import write_atomically

    write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")


def counted(count: int, word: str) -> str:
    ending = "" if count == 1 else "es" if word.endswith(("x", "s")) else "s"
    return f"{count} {word}{ending}"
