"""`evitlab heads`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from evitlab.cli.parser import AddCommand
from evitlab.records import HeadSimilarities, HeadSimilarity, check_writable


def add(command: AddCommand) -> None:
    heads = command(
        "heads", _heads, "show how alike the heads of each attention block attend",
        "evitlab heads vit_tiny_patch16_224 --images photographs\n"
        "  evitlab heads efficientvit_m0_cifar10 --images cifar10\n"
        "  evitlab heads --sweep --json data/results/capture_sweep.json",
    )  # fmt: skip
    heads.add_argument("model", nargs="?", metavar="MODEL",
                       help="ours, timm's, a run's folder, a .safetensors file, or a name in "
                       "data/checkpoints")  # fmt: skip
    heads.add_argument("--images", metavar="DIR|NAME",
                       help="a folder of photographs of any size, or a named data set")
    heads.add_argument("--weights", metavar="hub|PATH", help="of a MODEL (default: random)")
    heads.add_argument("--split", metavar="NAME",
                       help="of the data set (default: val; of a folder: all of it)")
    heads.add_argument("--limit", type=int, default=128, metavar="N",
                       help="images at most (default: %(default)s)")
    heads.add_argument("--img-size", type=int, metavar="N",
                       help="pixels of both sides (default: the model's own)")
    heads.add_argument("--per", choices=("map", "query"), default="map",
                       help="compare whole maps, or query by query (default: %(default)s)")
    heads.add_argument("--batch-size", type=int, default=32, metavar="N",
                       help="images per forward pass (default: %(default)s)")
    heads.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    heads.add_argument("--threads", type=int, metavar="N", help="of the CPU")
    heads.add_argument("--out", default="figures", metavar="DIR",
                       help="heat-maps and curves (default: %(default)s)")
    heads.add_argument("--json", metavar="FILE", help="also write the record there")
    heads.add_argument("--sweep", action="store_true",
                       help="instead: capture attention in many models of timm; continues FILE")


def _heads(args: argparse.Namespace) -> None:
    if args.sweep:
        _sweep(args)
        return
    from evitlab.analysis.conditions import cpu_threads
    from evitlab.analysis.heads import head_similarity
    from evitlab.analysis.subjects import default_img_size, open_model, untrained
    from evitlab.training.evaluation import checked_device

    if args.model is None:
        raise ValueError("MODEL: expected a model, or --sweep")
    if args.images is None:
        raise ValueError("--images: expected a folder of images or the name of a data set")
    check_writable(args.out, folder=True)
    device = checked_device(args.device)
    model, weights = open_model(args.model, weights=args.weights, img_size=args.img_size)
    data = _images(args, args.img_size or default_img_size(model))
    name = Path(args.model).name
    subjects = [(model, weights)]
    if weights != "untrained":
        subjects.append((untrained(model), "untrained"))
    with cpu_threads(args.threads):
        records = [
            head_similarity(
                subject, data, per=args.per, batch_size=args.batch_size, device=device,
                name=name, weights=label,
            )
            for subject, label in subjects
        ]  # fmt: skip
    print(table(records).to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    print(_legend(records[0]))
    if args.json:
        card = records[0].environment
        HeadSimilarities(tuple(records), args.command_line, card).save(args.json)
    _draw(records, Path(args.out))


def _images(args: argparse.Namespace, side: int):  # type: ignore[no-untyped-def]
    from evitlab.datasets import open_dataset

    split = args.split or ("all" if Path(args.images).exists() else "val")
    return open_dataset(args.images, split, img_size=side, limit=args.limit)


def table(records: list[HeadSimilarity]) -> pd.DataFrame:
    """One row per block; the second record, if any, is the model untrained."""
    frames = [record.by_block() for record in records]
    first = frames[0]
    shown = {
        "block": first["block"],
        "kind": first["kind"],
        "heads": first["heads"],
        "tokens": first["keys"],
        "similarity": first["max_similarity"],
        "q25": first["q25"],
        "q75": first["q75"],
        "permuted": first["max_permuted"],
    }
    if len(frames) > 1:
        shown["untrained"] = frames[1]["max_similarity"]
    rest = {
        "correlation": first["max_correlation"],
        "centred": first["max_centred"],
        "entropy": first["entropy"],
    }
    return pd.DataFrame({**shown, **rest})


def _legend(record: HeadSimilarity) -> str:
    return (
        f"{record.model}, {record.weights}, {record.images} images of "
        f"{record.environment.dataset}.\n"
        "similarity: each head's largest cosine to another head's map, mean over heads; q25, q75: "
        "of the images.\npermuted: what heads as sharp as these have by chance; correlation: maps "
        "less the uniform map; centred: less the heads' mean map; entropy: 1 is uniform."
    )


def _draw(records: list[HeadSimilarity], folder: Path) -> None:
    from evitlab.figures import head_curves, head_maps, save_figure

    name = records[0].model.replace("/", "-")
    for kind, figure, frame in (
        ("maps", head_maps(records[0]), records[0].pairs()),
        ("blocks", head_curves(records), pd.concat([r.by_block() for r in records])),
    ):
        png, *_ = save_figure(figure, f"heads_{kind}_{name}", frame, out_dir=folder)
        print(f"drawn: {png}")


def _sweep(args: argparse.Namespace) -> None:
    from evitlab.analysis.capture_sweep import sweep
    from evitlab.analysis.conditions import cpu_threads
    from evitlab.records import CaptureSweep, environment_card

    earlier = CaptureSweep.load(args.json).rows if args.json and Path(args.json).exists() else ()
    rows = list(earlier)
    card = environment_card(seed=0, batch_size=1, dataset="noise")
    record = CaptureSweep(tuple(rows), args.command_line, card)
    with cpu_threads(args.threads):
        for row in sweep(done={row.model for row in rows if row.error is None}):
            rows = [other for other in rows if other.model != row.model] + [row]
            record = CaptureSweep(tuple(rows), args.command_line, card)
            if args.json:
                record.save(args.json)  # after each model: a sweep can be continued
    frame = record.to_frame()
    shown = ["model", "img_size", "blocks", "kinds", "heads", "identity_error", "output_error"]
    print(frame[shown].to_string(index=False))
    failed = [row for row in record.rows if row.error]
    print(f"{len(record.rows) - len(failed)} of {len(record.rows)} models captured")
    for row in failed:
        print(f"{row.model}: {row.error}")
