"""The environment card: where and how a number was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from evitlab.wording import check_choice

SCALES = ("smoke", "quick", "lab", "paper")


@dataclass(frozen=True)
class Environment:
    """Environment card: where and how a number was measured. Names no user, machine or path."""

    device: str  # "cpu", or with the accelerator's name: "cuda (NVIDIA H200)"
    cpu_model: str
    cores: int  # logical cores this process may use
    threads: int  # torch's intra-operator threads
    python: str
    torch: str
    timm: str
    precision: str  # "float32", "bfloat16", ...
    layout: str  # memory format: "contiguous" or "channels_last"
    batch_size: int | None
    seed: int | None
    dataset: str | None  # title as shown to the reader
    scale: str | None  # one of SCALES
    date: str  # ISO 8601, UTC, seconds
    git_commit: str | None  # of evitlab's checkout; "+" at the end: the package had local changes

    @property
    def hardware(self) -> str:
        """What the computation ran on, for captions: the CPU's or the accelerator's name."""
        if self.device == "cpu":
            return f"{self.cpu_model}, {self.threads} thread{'s' if self.threads != 1 else ''}"
        return self.device


def environment_card(
    *,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    layout: str = "contiguous",
    batch_size: int | None = None,
    seed: int | None = None,
    dataset: str | None = None,
    scale: str | None = None,
) -> Environment:
    """The environment card of this process, now.

    Raises:
        ValueError: `scale` is not one of SCALES.
    """
    if scale is not None:
        check_choice("scale", scale, SCALES)
    return Environment(
        device=_device_name(torch.device(device)),
        cpu_model=_cpu_model(),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        timm=version("timm"),  # importing it takes seconds
        precision=precision,
        layout=layout,
        batch_size=batch_size,
        seed=seed,
        dataset=dataset,
        scale=scale,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=_git_commit(),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may hold fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """The processor's own name; where the system has none to give, the architecture's."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    if platform.system() == "Darwin":  # platform.processor() only says "arm" there
        name = _output_of("sysctl", "-n", "machdep.cpu.brand_string")
        if name:
            return name
    return platform.processor() or platform.machine() or "unknown"


def _git_commit() -> str | None:
    """Commit of evitlab's own checkout, "+" added where the package has uncommitted changes.

    None without git or outside a checkout: an installed copy may lie inside another project's
    repository, whose commit says nothing about it.
    """
    package = Path(__file__).resolve().parents[1]
    root = _output_of("git", "-C", str(package), "rev-parse", "--show-toplevel")
    if not root or Path(root).resolve() != package.parent:
        return None
    commit = _output_of("git", "-C", str(package), "rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    changes = _output_of(
        "git", "-C", str(package), "status", "--porcelain", "--untracked-files=no", "--", "."
    )
    return f"{commit}+" if changes else commit


def _output_of(*command: str) -> str | None:
    """What a command prints, or None where it is not installed or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
