"""Measure parameters, multiply-accumulates (MACs), size and latency of a network."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dreamstill.evaluation import device_of, evaluating
from dreamstill.input_spec import InputSpec

__all__ = [
    "Profile",
    "Latency",
    "Size",
    "count_macs",
    "macs_of",
    "measure_profile",
    "measure_latency",
    "measure_size",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latency of one image in milliseconds: median, 10th (low) and 90th (high) percentile."""

    median: float
    low: float
    high: float
    runtime: str = "PyTorch"
    """Runtime that was measured; latencies of different runtimes are not comparable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of a network."""

    parameters: int
    macs: int
    """MACs for one image in convolutions, linear and recurrent layers, and attention."""
    bytes: int
    """Bytes of parameters and buffers as stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Size):
    """Size of a network and its latency for one image."""

    latency_ms: Latency


def measure_size(module: nn.Module, spec: InputSpec) -> Size:
    """Count a network's parameters, MACs and bytes."""
    stored = [*module.parameters(), *module.buffers()]
    return Size(
        parameters=sum(p.numel() for p in module.parameters()),
        macs=count_macs(module, spec),
        bytes=sum(t.numel() * t.element_size() for t in stored),
    )


def measure_profile(module: nn.Module, spec: InputSpec) -> Profile:
    """Measure a network's size, and its latency in PyTorch with the current number of threads."""
    device = device_of(module)
    runtime = "PyTorch" if device.type == "cpu" else f"PyTorch on {device.type}"
    with evaluating(module):
        latency = measure_latency(module, spec, device=device, runtime=runtime)
    return Profile(**asdict(measure_size(module, spec)), latency_ms=latency)


def count_macs(module: nn.Module, spec: InputSpec) -> int:
    """Count the MACs for one image, see `Size`."""
    return macs_of(module, torch.zeros(1, *spec.shape, device=device_of(module)))


def macs_of(module: nn.Module, inputs: Tensor) -> int:
    """Count the MACs for inputs (N, ...) of any kind, see `Size`."""
    with evaluating(module), _no_fused_kernels(), FlopCounterMode(display=False) as counter:
        module(inputs)
    macs: int = counter.get_total_flops() // 2
    return macs


@contextmanager
def _no_fused_kernels() -> Iterator[None]:
    """Run attention and LSTM without fused kernels, which the counter would count as 0."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch reads settings of other devices
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def measure_latency(
    run: Callable[[Tensor], Tensor],
    spec: InputSpec,
    *,
    device: torch.device | str = "cpu",
    num_runs: int = 50,
    runtime: str = "PyTorch",
) -> Latency:
    """Measure the latency of a function on one image, with the current number of threads.

    Args:
        run: function of inputs (1, C, H, W) to logits.
        spec: input of the function.
        device: device of the inputs.
        num_runs: number of timed calls, after five warm-up calls.
        runtime: name of the runtime for the record.

    """
    image = torch.zeros(1, *spec.shape, device=device)
    seconds = [_time_once(run, image) for _ in range(num_runs + 5)][5:]
    median, low, high = (float(np.quantile(seconds, q)) * 1e3 for q in (0.5, 0.1, 0.9))
    return Latency(median=median, low=low, high=high, runtime=runtime)


def _time_once(run: Callable[[Tensor], Tensor], image: Tensor) -> float:
    start = time.perf_counter()
    run(image)
    if image.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
