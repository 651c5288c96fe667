"""The ceilings of this device, measured: computation, memory, and the cost of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median

import torch

from evitlab.analysis.conditions import cpu_threads
from evitlab.records import Roofline, environment_card
from evitlab.training.evaluation import checked_device

_SIDES = {"cpu": (512, 1024, 1536), "gpu": (4096, 8192)}  # of square matrices
_COPIED_BYTES = {"cpu": 256 * 2**20, "gpu": 2**30}  # far beyond the last cache
_SECONDS = 0.3  # spent on each size
_CALLS = 500  # of the tiny operator, timed together


def measure_roofline(
    device: str | torch.device | None = None,
    *,
    threads: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Roofline:
    """Measure what this device can do at best; about two seconds, once per process and setting.

    The peak is the best of large square matrix products, the bandwidth the best of copying an
    array far beyond the last cache, with the bytes read and the bytes written counted; the
    dispatch time is the median of an out-of-place operator on one element.

    Args:
        device: None is the CPU.
        threads: of torch on the CPU; None takes as many as it has now.
        dtype: of the matrix product.

    Raises:
        ValueError: torch cannot use the device here, `threads` below one, or `dtype` not floating.

    Pitfall: a CPU that writes a line it did not hold reads it first (write-allocate). That traffic
    is not counted, here or in `analysis.traffic`, so work in place can beat this bandwidth; so
    can work on what still lies in a cache.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point type, got {dtype}")
    place = checked_device("cpu" if device is None else device)
    with cpu_threads(threads):
        return _measured(place, torch.get_num_threads(), dtype)


@cache
def _measured(place: torch.device, threads: int, dtype: torch.dtype) -> Roofline:
    with torch.inference_mode():
        peak, bandwidth = _peak_gmac_s(place, dtype), _bandwidth_gb_s(place)
        dispatch_us = _dispatch_us(place)
    precision = str(dtype).removeprefix("torch.")
    return Roofline(
        peak_gmac_s=peak,
        bandwidth_gb_s=bandwidth,
        dispatch_us=dispatch_us,
        environment=environment_card(device=place, precision=precision),
    )


def _peak_gmac_s(place: torch.device, dtype: torch.dtype) -> float:
    generator = torch.Generator(place).manual_seed(0)
    rates = []
    for side in _SIDES["cpu" if place.type == "cpu" else "gpu"]:
        # Noise: on a GPU, constant numbers draw less power and would run at a higher clock.
        a = torch.randn(side, side, device=place, generator=generator).to(dtype)
        out = torch.empty_like(a)
        seconds = min(_times(partial(torch.mm, a, a, out=out), place))
        rates.append(1e-9 * side**3 / seconds)
    return max(rates)


def _bandwidth_gb_s(place: torch.device) -> float:
    size = _COPIED_BYTES["cpu" if place.type == "cpu" else "gpu"]
    source = torch.ones(size // 4, device=place)
    target = torch.zeros_like(source)
    return 1e-9 * 2 * size / min(_times(partial(target.copy_, source), place))


def _dispatch_us(place: torch.device) -> float:
    one = torch.zeros(1, device=place)

    def calls() -> None:
        for _ in range(_CALLS):
            torch.neg(one)

    return 1e6 * median(_times(calls, place)) / _CALLS


def _times(call: Callable[[], object], place: torch.device) -> list[float]:
    """Seconds of each call, after one of warm-up, until `_SECONDS` are spent."""
    seconds: list[float] = []
    call()
    synchronize(place)
    while sum(seconds) < _SECONDS or len(seconds) < 3:
        began = time.perf_counter()
        call()
        synchronize(place)
        seconds.append(time.perf_counter() - began)
    return seconds


def synchronize(place: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if place.type != "cpu":
        torch.accelerator.synchronize(place)
