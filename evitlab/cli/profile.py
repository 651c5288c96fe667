"""`evitlab profile`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from evitlab.cli.parser import AddCommand
from evitlab.records import OperatorProfile, OperatorProfiles, check_writable

_FIGURE_2 = (
    "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "efficientvit_m4",
    "deploy/efficientvit_m4",
)  # fmt: skip
_FUSED = {"off": (False,), "on": (True,), "both": (False, True)}


def add(command: AddCommand) -> None:
    profile = command(
        "profile", _profile, "show which operators and parts of a model its time goes to",
        f"evitlab profile {' '.join(_FIGURE_2)} --threads 1",
    )  # fmt: skip
    profile.add_argument("models", nargs="*", metavar="MODEL",
                         help="ours, deploy/NAME for its exact inference form, timm's, timm/NAME "
                         "or torchvision/NAME (default: as in the example)")  # fmt: skip
    profile.add_argument("--batch-size", type=int, default=1, metavar="N",
                         help="images (default: %(default)s)")  # fmt: skip
    profile.add_argument("--img-size", type=int, metavar="N",
                         help="pixels of both sides (default: the model's own)")  # fmt: skip
    profile.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    profile.add_argument("--fused", choices=tuple(_FUSED), default="both",
                         help="attention as one operator, as several (the paper's conditions), "
                         "or both in turn (default: %(default)s)")  # fmt: skip
    profile.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    profile.add_argument("--rounds", type=int, default=5, metavar="N",
                         help="profiled passes (default: %(default)s)")  # fmt: skip
    profile.add_argument("--trace", metavar="FILE.json",
                         help="the last pass as a trace for Chrome or Perfetto; of several, each "
                         "file's name gets the model's")  # fmt: skip
    profile.add_argument("--out", default="figures", metavar="DIR",
                         help="draw Fig. 2 there (default: %(default)s)")  # fmt: skip
    profile.add_argument("--json", metavar="FILE", help="also write the record there")


def _profile(args: argparse.Namespace) -> None:
    import torch

    from evitlab.analysis.conditions import cpu_threads
    from evitlab.analysis.operators import profile_operators
    from evitlab.analysis.subjects import build, default_img_size
    from evitlab.training.evaluation import checked_device

    if args.batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {args.batch_size}")
    check_writable(args.out, folder=True)
    names = list(dict.fromkeys(args.models or _FIGURE_2))
    states = _FUSED[args.fused]
    device = checked_device(args.device)
    profiles = []
    with cpu_threads(args.threads):
        for name, model in [(name, build(name, img_size=args.img_size)) for name in names]:
            side = args.img_size or default_img_size(model)
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(args.batch_size, 3, side, side, generator=generator)
            for fused in states:
                one_file = len(names) * len(states) == 1
                profiles.append(
                    profile_operators(
                        model.to(device),
                        images,
                        fused_attention=fused,
                        rounds=args.rounds,
                        name=name,
                        trace_path=args.trace and _trace(args.trace, name, fused, one_file),
                    )
                )
                print(_report(profiles[-1]), flush=True)
            model.cpu()
    print(_summary(profiles).to_string(index=False, float_format="{:.2f}".format))
    print(_ceilings(profiles[0]))
    if args.json:
        card = profiles[0].environment
        OperatorProfiles(tuple(profiles), args.command_line, card).save(args.json)
    _draw(profiles, Path(args.out))


def _trace(file: str, name: str, fused: bool, one_file: bool) -> Path:
    path = Path(file)
    state = "fused" if fused else "unfused"
    return path if one_file else path.with_stem(f"{path.stem}-{name.replace('/', '-')}-{state}")


def _title(profile: OperatorProfile) -> str:
    state = "fused" if profile.fused_attention else "unfused"
    return f"{profile.model}, batch {profile.batch_size}, attention {state}"


def _report(profile: OperatorProfile) -> str:
    """Shares by category and by part, those that ran, as one text."""
    tables = []
    for frame in (profile.by_category(), profile.by_module()):
        frame = frame[frame["calls"] > 0]
        table = pd.DataFrame(
            {
                frame.columns[0]: frame.iloc[:, 0],
                "share %": 100 * frame["share"],
                "ms": frame["self_ms"],
                "calls": frame["calls"],
                "MB": 1e-6 * frame["bytes"],
                "MMAC": 1e-6 * frame["macs"],
                "MAC/B": frame["intensity"],
                "achieved %": 100 * frame["achieved"],
            }
        )
        tables.append(table.to_string(index=False, float_format="{:.1f}".format, na_rep="-"))
    return "\n".join([_title(profile), *tables, ""])


def _summary(profiles: Sequence[OperatorProfile]) -> pd.DataFrame:
    """One row per profile: what is memory-bound, and what the profiler cost."""
    return pd.DataFrame(
        {
            "model": profile.model,
            "attention": "fused" if profile.fused_attention else "unfused",
            "memory-bound %": 100 * profile.memory_bound_share,
            "achieved / peak %": 100 * profile.peak_share,
            "plain ms": profile.plain_ms,
            "profiled / plain": profile.overhead,
            "calls alone ms": profile.dispatch_ms,
        }
        for profile in profiles
    )


def _ceilings(profile: OperatorProfile) -> str:
    ceilings = profile.roofline
    return (
        "memory-bound: softmax, normalisation, element-wise and reshape/copy, of the operators' "
        f"self time.\n{profile.environment.hardware}: measured peak {ceilings.peak_gmac_s:.1f} "
        f"GMAC/s, {ceilings.bandwidth_gb_s:.1f} GB/s, {ceilings.dispatch_us:.1f} µs a call"
    )


def _draw(profiles: Sequence[OperatorProfile], folder: Path) -> None:
    from evitlab.figures import fig2_operators, save_figure

    data = pd.concat([profile.to_frame() for profile in profiles], ignore_index=True)
    figure = fig2_operators(profiles)
    save_figure(figure, "fig2_profile", data, out_dir=folder)
    print(f"drawn: {folder / 'fig2_profile.png'}")
