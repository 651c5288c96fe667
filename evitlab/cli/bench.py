"""`evitlab bench`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from evitlab.cli.parser import AddCommand
from evitlab.records import DetectorSpeed, DetectorTiming, ThroughputRecord, ThroughputSweep
from evitlab.wording import check_choice

# By preset: what it takes beside --rounds, --threads and --json.
_COMPARISONS: dict[str, tuple[str, ...]] = {
    "deploy": (), "timm": ("batch_sizes",), "analysis": ("batch_sizes",),
    "explorer": (), "train": ("batch_sizes", "img_size", "device"),
    "detector": ("batch_sizes", "img_size", "device"),
}  # fmt: skip


def add(command: AddCommand) -> None:
    bench = command(
        "bench", _bench, "measure images per second, over engines, batch sizes and precisions",
        "evitlab bench efficientvit_m0 timm/levit_128s --engines eager deploy --batch-sizes 1 16",
    )  # fmt: skip
    bench.add_argument("models", nargs="*", metavar="MODEL",
                       help="a name of ours, timm/NAME, torchvision/NAME")  # fmt: skip
    bench.add_argument(
        "--preset", default="quick", metavar="NAME",
        help="paper-cpu, paper-gpu, sweep, sweep-gpu, quick: models, engines and conditions, which "
        "the other options change; deploy: ratios of the deployed family to timm's models; timm: "
        "ratios of forward pass and training step, and the data path; analysis: what "
        "head_similarity and channel_importance cost; explorer: how fast it repaints; detector: "
        "backbone, neck, head and post-processing of detectors, built on MODEL or in the folder of "
        "a run; train: see --train "
        "(default: %(default)s)",
    )  # fmt: skip
    bench.add_argument("--train", dest="preset", action="store_const", const="train",
                       help="training speed beside a plain timm loop, where a step's time goes, "
                       "and peak memory")  # fmt: skip
    bench.add_argument("--engines", nargs="+", metavar="NAME",
                       help="eager, channels-last, deploy, traced, compile, cuda-graph, "
                       "onnxruntime, openvino")  # fmt: skip
    bench.add_argument("--batch-sizes", type=int, nargs="+", metavar="N", help="images per call")
    bench.add_argument("--precision", nargs="+", metavar="NAME",
                       help="float32, bfloat16, float16")  # fmt: skip
    bench.add_argument("--threads", type=int, nargs="+", metavar="N", help="of the CPU")
    bench.add_argument("--device", nargs="+", metavar="NAME", help="cpu, cuda")
    bench.add_argument("--img-size", type=int, metavar="N", help="default: each model's own")
    bench.add_argument("--rounds", type=int, metavar="N", help="of each measurement, at most")
    bench.add_argument("--seconds", type=float, metavar="X",
                       help="for the rounds of each measurement, at most")  # fmt: skip
    bench.add_argument("--json", metavar="FILE", help="also write the record there")
    bench.add_argument("--resume", action="store_true",
                       help="keep what FILE holds and measure what is missing")  # fmt: skip


def _bench(args: argparse.Namespace) -> None:
    if args.resume and not args.json:
        raise ValueError("--resume: expected --json FILE, which it continues")
    if args.preset in _COMPARISONS:
        _refuse_other_options(args)
        run = {"deploy": _deploy, "timm": _timm, "analysis": _analysis, "explorer": _explorer,
               "train": _train, "detector": _detector}  # fmt: skip
        run[args.preset](args)
    else:
        _sweep(args)


def _sweep(args: argparse.Namespace) -> None:
    from evitlab.analysis.presets import PRESETS
    from evitlab.analysis.roofline import measure_roofline
    from evitlab.analysis.throughput import sweep
    from evitlab.records import environment_card

    if args.preset not in PRESETS:  # a comparison would have been taken above
        check_choice("--preset", args.preset, [*PRESETS, *_COMPARISONS])
    given = {
        "models": args.models,
        "engines": args.engines,
        "batch_sizes": args.batch_sizes,
        "precisions": args.precision,
        "threads": args.threads,
        "devices": args.device,
    }
    changes: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values}
    for name in ("img_size", "rounds", "seconds"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    plan = dataclasses.replace(PRESETS[args.preset], **changes)
    plan.check()
    rows = list(_earlier(args))
    roofline = measure_roofline(plan.devices[0], threads=plan.threads[0])
    card = dataclasses.replace(
        environment_card(device=plan.devices[0], seed=0, dataset="noise"), threads=plan.threads[0]
    )
    command = args.command_line.replace(" --resume", "")  # what measures all of it again
    record = ThroughputSweep(tuple(rows), roofline, command, card)
    for found in sweep(plan, done=rows):
        retried = {_subject(row) for row in found}
        rows = [row for row in rows if row.error is None or _subject(row) not in retried] + found
        record = dataclasses.replace(record, rows=tuple(rows))
        if args.json:
            record.save(args.json)  # after each group: a long sweep can be continued
    print(table(record).to_string(index=False))
    print(
        f"img/s: median of the rounds, quartiles beside it; peak: share of the "
        f"{roofline.peak_gmac_s:.0f} GMAC/s that a large matrix product reached; {card.hardware}"
    )
    if all(row.img_per_s is None for row in rows):
        raise ValueError(f"nothing could be measured: {rows[0].error}")


def table(record: ThroughputSweep) -> pd.DataFrame:
    """The rows of a sweep as they are printed."""

    def cells(row: ThroughputRecord) -> dict[str, object]:
        plain = {
            "model": row.model,
            "engine": row.engine,
            "precision": row.precision,
            "px": row.img_size[0],
            "batch": row.batch_size,
            "threads": row.threads,
        }
        if row.img_per_s is None:
            return {**plain, "img/s": "-", "quartiles": "", "ms": "", "peak": "", "": row.error}
        share = 1e-9 * row.macs * row.img_per_s / record.roofline.peak_gmac_s
        here, ceiling = row.environment, record.roofline.environment
        same = (row.precision, row.threads, here.device) == (
            ceiling.precision, ceiling.threads, ceiling.device,
        )  # fmt: skip
        return {
            **plain,
            "img/s": f"{row.img_per_s:.1f}",
            "quartiles": f"{row.img_per_s_low:.1f}-{row.img_per_s_high:.1f}",
            "ms": f"{row.batch_ms:.2f}",
            "peak": f"{share:.0%}" if same else "",
            "": "",
        }

    return pd.DataFrame([cells(row) for row in record.rows])


def _earlier(args: argparse.Namespace) -> tuple[ThroughputRecord, ...]:
    """Rows of the file that is continued; none where there is no file yet."""
    from evitlab.records import environment_card

    if not args.resume or not Path(args.json).exists():
        return ()
    rows = ThroughputSweep.load(args.json).rows
    here = environment_card().cpu_model
    for row in rows:
        if row.environment.cpu_model != here:
            raise ValueError(
                f"--resume: expected a record of this machine ({here}), "
                f"{args.json} was measured on {row.environment.cpu_model}"
            )
    return rows


def _subject(row: ThroughputRecord) -> tuple[object, ...]:
    return (row.model, row.engine, row.precision, row.batch_size, row.threads, row.img_size,
            row.environment.device)  # fmt: skip


def _deploy(args: argparse.Namespace) -> None:
    from evitlab.analysis.deploy_ratios import compare_deploy

    options: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("rounds", "seconds")
        if getattr(args, name) is not None
    }
    record = compare_deploy(
        *([args.models] if args.models else []),
        threads=(args.threads or [1])[0],
        command=args.command_line,
        **options,
    )
    print(record.to_frame().to_string(index=False, float_format="{:.2f}".format))
    for row in record.peak:
        print(
            f"{row.model}, {row.engine}, batch {row.batch_size}: {row.achieved_gmac_s:.1f} of "
            f"{row.peak_gmac_s:.1f} GMAC/s, {row.share:.0%} of the peak "
            f"({row.share_low:.0%} to {row.share_high:.0%})"
        )
    for line in record.failed:
        print(f"not measured: {line}")
    print(
        f"ratio: timm's time / ours, median of the rounds, quartiles beside it; "
        f"{record.environment.hardware}"
    )
    if args.json:
        record.save(args.json)
    if not record.rows:
        raise ValueError(f"nothing could be measured: {record.failed[0]}")


def _timm(args: argparse.Namespace) -> None:
    from evitlab.analysis.comparison import compare_with_timm
    from evitlab.models.zoo import VARIANTS

    record = compare_with_timm(
        args.models or tuple(VARIANTS),
        batch_sizes=args.batch_sizes or (1, 32),
        rounds=15 if args.rounds is None else args.rounds,
        threads=(args.threads or [1])[0],
    )
    print(record.to_frame().to_string(index=False, float_format="{:.2f}".format))
    for row in record.data_path:
        print(
            f"data path of recipe {row.recipe}: {row.data_ms:.1f} of {row.step_ms:.1f} ms a step, "
            f"{row.share_pct:.1f} % ({row.model}, batch {row.batch_size})"
        )
    print(f"ratio: timm's time / ours, median of {record.rounds} rounds, quartiles beside it; "
          f"{record.environment.hardware}")  # fmt: skip
    if args.json:
        record.save(args.json)


def _analysis(args: argparse.Namespace) -> None:
    from evitlab.analysis.analysis_cost import MODELS, compare_cost

    sizes = args.batch_sizes or [8]
    if len(sizes) > 1:
        raise ValueError(f"--batch-sizes: expected one number with --preset analysis, got {sizes}")
    record = compare_cost(
        args.models or MODELS,
        batch_size=sizes[0],
        rounds=9 if args.rounds is None else args.rounds,
        threads=(args.threads or [1])[0],
        command=args.command_line,
    )
    print(record.to_frame().to_string(index=False, float_format="{:.2f}".format))
    print(f"ratio: time with the analysis / of the plain passes, median of {record.rounds} rounds, "
          f"quartiles beside it; {record.environment.hardware}")  # fmt: skip
    if args.json:
        record.save(args.json)


def _explorer(args: argparse.Namespace) -> None:
    from evitlab.explorer.cost import MODELS, measure_explorer

    record = measure_explorer(
        args.models or MODELS,
        rounds=30 if args.rounds is None else args.rounds,
        threads=(args.threads or [2])[0],
        command=args.command_line,
    )
    print(record.to_frame().to_string(index=False, float_format="{:.0f}".format))
    print(f"from the choice to the picture's bytes, {record.width} pixels wide, median of the "
          f"rounds, quartiles beside it; {record.environment.hardware}")  # fmt: skip
    if record.peak_mib is not None and record.peak_mib_early is not None:
        print(f"memory: {record.peak_mib_early:.0f} MiB at most in the first fifth of "
              f"{record.interactions:,} interactions, {record.peak_mib:.0f} MiB in all of them; "
              f"{record.hooks_left} hooks left")  # fmt: skip
    if args.json:
        record.save(args.json)


def _detector(args: argparse.Namespace) -> None:
    from evitlab.analysis.detector_speed import MODELS, measure_detector

    for name in ("batch_sizes", "device"):
        if len(getattr(args, name) or [None]) > 1:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected one value with --preset detector"
            )
    record = measure_detector(
        args.models or MODELS,
        img_size=args.img_size,
        batch_size=(args.batch_sizes or [1])[0],
        rounds=15 if args.rounds is None else args.rounds,
        threads=(args.threads or [1])[0],
        device=(args.device or ["cpu"])[0],
        command=args.command_line,
    )
    print(detector_table(record).to_string(index=False))
    firsts = {row.model: row for row in reversed(record.rows)}
    for name in dict.fromkeys(row.model for row in record.rows):
        print(candidates_line(firsts[name]))
    print(f"milliseconds a call, median of {record.rounds} rounds in turns, batch "
          f"{record.batch_size}, a picture of {record.environment.dataset}; "
          f"{record.environment.hardware}")  # fmt: skip
    if args.json:
        record.save(args.json)


def detector_table(record: DetectorSpeed) -> pd.DataFrame:
    """The rows of a detector's speed as they are printed: milliseconds and share of each part."""

    def cells(row: DetectorTiming) -> dict[str, str]:
        height, width = row.img_size
        return {
            "model": row.model,
            "form": row.form,
            "px": f"{width}x{height}",
            **{part.part: f"{part.ms:.1f} ({part.share:.0%})" for part in row.parts},
            "whole": f"{row.whole_ms:.1f}",
            "quartiles": f"{row.whole_ms_low:.1f}-{row.whole_ms_high:.1f}",
            "img/s": f"{row.img_per_s:.2f}",
            "speedup": "" if row.speedup is None else f"{row.speedup:.2f}",
            "GMAC": f"{sum(part.macs for part in row.parts) / 1e9:.1f}",
        }

    return pd.DataFrame([cells(row) for row in record.rows])


def candidates_line(row: DetectorTiming) -> str:
    """What post-processing had to select from, in words."""
    drawn = "" if row.learnt else " (its head is as drawn: trained, it has more to do)"
    return (
        f"{row.model}: {row.candidates:,} candidate boxes, {row.detections} left of them{drawn}; "
        f"with {row.full_candidates:,} post-processing takes {row.full_ms:.1f} ms"
    )


def _train(args: argparse.Namespace) -> None:
    from evitlab.analysis.training_speed import MODELS, compare_training

    for name in ("batch_sizes", "device"):
        if len(getattr(args, name) or [None]) > 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected one value with --train")
    record = compare_training(
        args.models or MODELS,
        img_size=args.img_size or 64,
        batch_size=(args.batch_sizes or [128])[0],
        rounds=15 if args.rounds is None else args.rounds,
        threads=(args.threads or [1])[0],
        device=(args.device or ["cpu"])[0],
        command=args.command_line,
    )
    print(record.to_frame().drop(columns=["training_mib", "ratio", "floor_ms"])
          .to_string(index=False, float_format="{:.2f}".format))  # fmt: skip
    for row in record.ratios:
        ours, timms = (loop for loop in record.loops if loop.model == row.model)
        memory = "memory not known"
        if timms.peak_mib:
            memory = f"{ours.peak_mib / timms.peak_mib:.2f} times its memory"
        print(
            f"{row.model}: {row.ratio:.2f} times timm's loop (quartiles {row.ratio_low:.2f} to "
            f"{row.ratio_high:.2f}), {row.compute_ratio:.2f} without its input; input "
            f"{ours.input_share:.1%} of the step (timm's {timms.input_share:.1%}); "
            f"{memory}; "
            f"{row.floor_ms / ours.step_ms:.0%} of the peak"
        )
    print(f"milliseconds a step, median of {record.rounds} rounds in turns; {record.batch_size} "
          f"images of {record.img_size[0]} pixels, recipe {record.recipe}; "
          f"{record.environment.hardware}")  # fmt: skip
    if args.json:
        record.save(args.json)


def _refuse_other_options(args: argparse.Namespace) -> None:
    """A comparison has its own engines and conditions: an option it ignored would mislead."""
    able = (*_COMPARISONS[args.preset], *(("seconds",) if args.preset == "deploy" else ()))
    for name in ("engines", "batch_sizes", "precision", "device", "img_size", "seconds", "resume"):
        if getattr(args, name) and name not in able:
            raise ValueError(f"--{name.replace('_', '-')}: not an option of --preset {args.preset}")
    if args.threads and len(args.threads) > 1:
        raise ValueError(f"--threads: expected one number with --preset {args.preset}")
