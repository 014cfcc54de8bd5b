"""Several processes of one run, such as those that torchrun starts.

In the body of `distributed` every process calls the same function. Methods make their batches in
parallel, one in each process, and every process gets all of them; of each training batch a process
takes its share, and gradients and BatchNorm statistics are those of the whole batch. Outside of it,
and in a process alone, all of this does nothing.
"""

import atexit
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from dreamstill.errors import ConfigError, RunError

__all__ = [
    "check_processes",
    "distributed",
    "from_main",
    "gathered",
    "gathered_states",
    "is_main",
    "mean_over_processes",
    "own_rng",
    "parallel",
    "rank",
    "share_files",
    "share_of",
    "started_by_torchrun",
    "state_of_this",
    "sum_over_processes",
    "synchronized",
    "together",
    "world_size",
]

T = TypeVar("T")
LOST = ("peer", "gloo", "NCCL", "socket", "Socket", "TCPStore", "Broken pipe")
"""Words in the messages of torch.distributed when another process is gone."""
PART = 2**26
"""Bytes of a file that are sent at a time."""

_joined = False


def started_by_torchrun() -> int:
    """Return how many processes torchrun has started; 1 if none.

    >>> started_by_torchrun()
    1
    """
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def world_size() -> int:
    """Return the number of processes that work together."""
    return dist.get_world_size() if _joined else 1


def rank() -> int:
    """Return the number of this process among them; the main one has 0."""
    return dist.get_rank() if _joined else 0


def is_main() -> bool:
    """Tell whether this process writes the files."""
    return rank() == 0


@contextmanager
def distributed() -> Iterator[None]:
    """Let processes work together in the body, in which every one calls the same functions.

    They are those that torchrun has started, or those of the process group that is open, as in a
    worker of Ray Train. `distill` and `synthesize` know of it. "cuda" is the GPU of the process's
    number.

    Raises:
        ConfigError: there is neither torchrun nor a process group.
        RunError: another process has ended.

    """
    global _joined
    if not dist.is_initialized() and "RANK" not in os.environ:
        raise ConfigError("there are no other processes: start the command with torchrun")
    with _naming_the_lost():
        if not dist.is_initialized():
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local < torch.cuda.device_count():
                torch.cuda.set_device(local)
            dist.init_process_group()  # NCCL for tensors on GPUs, where there are any, else Gloo
            atexit.register(dist.destroy_process_group)  # opening another one may hang
        _joined = True
        try:
            yield
        finally:
            _joined = False


def together() -> AbstractContextManager[None]:
    """Return `distributed`, or a context of no effect if torchrun has not started processes."""
    return distributed() if started_by_torchrun() > 1 else nullcontext()


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in LOST):
            raise
        raise RunError(
            "another process of the run has ended, and so this one does: start all of them again, "
            "with --resume where the run has a directory"
        ) from error


def check_processes(budget: int | None, device: torch.device) -> None:
    """Raise ConfigError if several processes would spend one budget of queries, or share a GPU."""
    if world_size() == 1:
        return
    if device.type == "cuda" and device.index not in (None, own := torch.cuda.current_device()):
        raise ConfigError(
            f"the teacher is on {device}, and this process has cuda:{own}: say cuda, and open the "
            "teacher where the processes are together"
        )
    if budget is not None:
        raise ConfigError(
            "the queries of a black box are counted in one process: start it without torchrun"
        )


def from_main(value: T) -> T:
    """Return the main process's value in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_files(folder: Path, patterns: Sequence[str]) -> None:
    """Write the files of these names in the main process's directory to those of the others."""
    if world_size() == 1:
        return
    paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    for name, size in from_main([(str(p.relative_to(folder)), p.stat().st_size) for p in paths]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb" if is_main() else "wb") as file:
            for _ in range(0, size, PART):
                part = from_main(file.read(PART) if is_main() else b"")
                if not is_main():
                    file.write(part)


def gathered(*parts: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the parts of a batch of each process, in the order of the ranks, in every process."""
    return [parts] if world_size() == 1 else [*zip(*map(_all, parts), strict=True)]


def _all(values: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return parts


def gathered_states(state: Any) -> list[Any]:
    """Return the states of all processes in the main one, and this one's own in the others."""
    if world_size() == 1:
        return [state]
    buffer = io.BytesIO()  # tensors on a GPU are not to come to life on another machine's
    torch.save(state, buffer)
    states = [b""] * world_size() if is_main() else None
    dist.gather_object(buffer.getvalue(), states, dst=0)
    if states is None:
        return [state]
    return [torch.load(io.BytesIO(one), map_location="cpu", weights_only=True) for one in states]


def state_of_this(states: Sequence[dict[str, Any]], rng: torch.Generator) -> dict[str, Any]:
    """Return this process's of the states that `gathered_states` returned, and restore its `rng`.

    There may be more or fewer processes than there were. One that is new has the main one's state,
    and random numbers of its own; so has the main one after it was alone.

    Args:
        states: one of each process, with the state of its random numbers as "rng".
        rng: set to that state.

    """
    rng.set_state(states[0]["rng"].cpu())  # a checkpoint is mapped to the run's device
    if world_size() > len(states):
        rng.set_state(own_rng(rng).get_state())
    if rank() >= len(states):
        return states[0]
    if len(states) > 1:
        rng.set_state(states[rank()]["rng"].cpu())
    return states[rank()]


def own_rng(rng: torch.Generator) -> torch.Generator:
    """Return random numbers of this process's own, where `rng` is in step in all of them."""
    if world_size() == 1:
        return rng
    seed = torch.randint(2**48, (), generator=rng, device=rng.device)
    return torch.Generator(rng.device).manual_seed(int(seed) + rank())


def share_of(values: Tensor) -> Tensor:
    """Return this process's part of a batch (N, ...) that all of them have."""
    return values[rank() :: world_size()]


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a value over the processes, without a gradient."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


def sum_over_processes(number: int) -> int:
    """Return the sum of a number over the processes."""
    if world_size() == 1:
        return number
    total = torch.tensor(number)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return int(total)


def parallel(module: nn.Module) -> nn.Module:
    """Return a module with the same output, whose gradients are means over the processes.

    The same computation is expected of it each time.
    """
    if world_size() == 1:
        return module
    device = next(module.parameters()).device
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        static_graph=True,  # finds once which parameters have no gradient
    )


def synchronized() -> AbstractContextManager[object]:
    """Let BatchNorm in train mode take the statistics of the whole batch in the body.

    torch's SyncBatchNorm does so on GPUs alone, and would be another layer in the network.
    """
    return _Synchronized() if world_size() > 1 else nullcontext()


class _Synchronized(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.batch_norm:
            function = _batch_norm
        return function(*args, **(kwargs or {}))


def _batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `F.batch_norm` does, by the statistics of all processes' inputs."""
    if not training:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, eps=eps)
    values, dims = inputs.float(), [0, *range(2, inputs.dim())]
    shape = (1, -1, *(1 for _ in dims[1:]))
    num = values.new_full((1,), values.numel() / values.shape[1])
    total, num = _summed(torch.cat([values.sum(dims), num])).split([values.shape[1], 1])
    mean = total / num
    centered = values - mean.view(shape)
    variance = _summed(centered.square().sum(dims)) / num
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * num / (num - 1), momentum)
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    outputs: Tensor = centered * scale.view(shape)
    if bias is not None:
        outputs = outputs + bias.view(shape)
    return outputs.to(inputs.dtype)


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient
