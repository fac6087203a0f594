"""One run over several processes that torchrun starts, on as many devices.

Every process has all data and draws the same batches and the same augmentation. Of each batch it then takes whole
dialogues of its own: no conversation is ever cut. A loss is its part of the mean over the whole batch, by the number of
utterances in all processes, so that the sum of all gradients is that of one process. Dropout draws other numbers in
each process. Process 0 alone writes and speaks. Without torchrun all of this does nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.data import DataLoader

import files
from dataloader import IGNORE_LABEL, Batch
from files import InputError, TrainingError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # that one process may wait for another, as for the report of process 0
MEETING = timedelta(minutes=5)  # that processes may wait for each other at the start
LEAVING = timedelta(minutes=1)  # that one which ends before they have met stays for the others to hear of it

_device = "cpu"
_stderr: Any = None  # that of a process which is silent otherwise
_store: Any = None  # kept by torchrun, so that it outlives every process
_factor: float | None = None  # within a step: 1, or 0 where this process has no dialogue of the batch
_share: float | None = None  # within a step: this process's part of the utterances, where none lacks a modality


class LostProcessError(TrainingError):
    """Another process of the run is gone."""


def size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def follows() -> bool:
    """Whether another process writes and speaks for this one."""
    return rank() > 0


def launcher() -> str:
    """What a command line begins with to start a run like this."""
    return f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}" if dist.is_initialized() else "python"


def join(device: str) -> str:
    """Meet the other processes, where torchrun has started several. Returns the device of this one.

    Args:
        device: That of the run; of several GPUs each process of a machine takes its own.

    Raises:
        InputError: If they do not meet.
    """
    global _device, _stderr, _store
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        return device
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not os.environ.get(name, "").isdecimal():
            raise InputError(f"torchrun: {name} is no number in the environment; use torchrun, or unset WORLD_SIZE")
    if "MASTER_ADDR" not in os.environ:
        raise InputError("torchrun: MASTER_ADDR is not in the environment; use torchrun, or unset WORLD_SIZE")
    if device == "mps":  # gloo cannot send what lies there, and float64, which figures are summed in, is not to be had
        raise InputError("torchrun: not on Apple's GPU; give --device cpu, or start one process without torchrun")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise InputError(f"torchrun: {torch.cuda.device_count()} GPUs here; give --nproc-per-node as many at most")
        torch.cuda.set_device(device)
    _device = device
    mine, every = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        _store = _open_store(MEETING)
        _store.add("here", 1)
        _wait_for(lambda: _store.add("here", 0) >= every or _store.add("gone", 0), MEETING)
        if _store.add("here", 0) < every:
            raise InputError("torchrun: a process on another host has ended, which says there why; start all again")
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=_store, rank=mine, world_size=every, timeout=TIMEOUT)
    except RuntimeError as error:
        at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(f"torchrun: processes do not meet at {at} ({str(error).splitlines()[0]})") from None
    atexit.register(dist.destroy_process_group)
    if follows():
        _stderr = sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the process ends
    return device


def _open_store(timeout: timedelta) -> Any:
    """Where processes meet: kept by torchrun or, without it, by process 0."""
    keeps = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    at, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(at, port, is_master=keeps, timeout=timeout, wait_for_workers=False)
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def _wait_for(true: Callable[[], Any], longest: timedelta) -> None:
    until = time.monotonic() + longest.total_seconds()
    while not true():
        if time.monotonic() > until:
            raise RuntimeError(f"not all are there after {longest.total_seconds():.0f} s")
        time.sleep(0.05)


def leave_word() -> None:
    """Tell processes on other hosts, which would wait for this one, that it ends before they have met."""
    if _store is not None or os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE"):
        return  # of one host torchrun ends the others
    with suppress(OSError, RuntimeError, LookupError, ValueError), _torch_silent():
        store = _open_store(timedelta(seconds=10))
        store.add("gone", 1)
        # The store may be this host's, and end with this process: first let the others look.
        _wait_for(lambda: store.add("here", 0) + store.add("gone", 0) >= int(os.environ["WORLD_SIZE"]), LEAVING)
        time.sleep(1)


@contextmanager
def _torch_silent() -> Iterator[None]:
    """Without what torch's C++ writes where no store answers: pages, below the one line that says what is wrong."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - for its descriptor
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def complain(text: str) -> None:
    """`files.complain`, by whichever of the processes is first to do so: all end for the same reason."""
    try:
        if _store is not None and _store.add("complaints", 1) > 1:
            return
    except RuntimeError:  # gone, with torchrun or without it with process 0, which will have spoken
        return
    with redirect_stderr(_stderr or sys.stderr):
        files.complain(text)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch raises where a connection is closed, or times out
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise LostProcessError("another of the run's processes is gone") from None


def summed(figures: Mapping[str, float]) -> dict[str, float]:
    """The sum of each figure over all processes."""
    if size() == 1:
        return dict(figures)
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=_device)
    with _together():
        dist.all_reduce(values)
    return dict(zip(figures, values.tolist(), strict=True))


def anywhere(asked: bool) -> bool:
    """Whether it is so in any process."""
    return summed({"": float(asked)})[""] > 0


def gathered(parts: list[T]) -> list[T]:
    """The lists of all processes as one."""
    if size() == 1:
        return parts
    every: list[list[T]] = [[]] * size()
    with _together():
        dist.all_gather_object(every, parts)
    return [part for each in every for part in each]


def from_first(make: Callable[[], T]) -> T:
    """What process 0 makes, in every process."""
    if size() == 1:
        return make()
    made = [None if follows() else make()]
    with _together():
        dist.broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]


def agree(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes are about to do the same.

    Raises:
        InputError: If a fact is another in one of them.
    """
    for number, other in enumerate(gathered([dict(facts)])):
        for name, value in facts.items() if size() > 1 else ():
            if other[name] != value:
                raise InputError(
                    f"torchrun: process {number} has {name} {other[name]} and process {rank()} {value}; give all "
                    "the same command and the same data"
                )


def deal(loader: DataLoader, augmentation: Any) -> Iterator[tuple[Batch, Batch]]:
    """Every batch, clean and augmented; of several processes the dialogues that are this one's, in full length.

    Args:
        loader: Of whole batches, shuffled alike in all processes.
        augmentation: What `Batch.augment` takes.
    """
    global _factor, _share
    if size() > 1:
        alike = torch.get_rng_state()
        drawn = torch.Generator()
        drawn.set_state(loader.generator.get_state())
        torch.manual_seed(int(torch.randint(2**62, (), generator=drawn)) + rank())
        own = torch.get_rng_state()
        torch.set_rng_state(alike)
    for batch in loader:
        seen = batch.augment(**asdict(augmentation))
        if size() == 1:
            yield batch, seen
            continue
        alike = torch.get_rng_state()
        torch.set_rng_state(own)
        order = batch.mask.sum(1).argsort(descending=True, stable=True)
        mine = order[rank() :: size()]
        _factor = float(len(mine) > 0)
        _share = None if seen.modality_mask else float(seen.mask[mine].sum() / seen.mask.sum())
        try:
            yield tuple(_rows(each, mine if len(mine) else order[:1], batch.mask) for each in (batch, seen))
        finally:
            _factor = _share = None
            own = torch.get_rng_state()
            torch.set_rng_state(alike)


def _rows(batch: Batch, rows: Tensor, mask: Tensor) -> Batch:
    """Some dialogues of a batch, without the padding that only others needed."""
    longest = int(mask[rows].sum(1).max())
    part = batch.map(lambda x: x[rows, :longest])
    labels = part.labels if _factor else torch.full_like(part.labels, IGNORE_LABEL)
    return replace(part, ids=tuple(batch.ids[i] for i in rows), labels=labels)


def mean_of(total: Tensor, count: float | Tensor, of_all: bool = False) -> Tensor:
    """This process's part of a mean over the whole batch: the parts of all processes sum up to it.

    Args:
        total: The sum over the utterances of this process.
        count: How many they are, or what they weigh; 0 gives a part of 0.
        of_all: Whether they are all that have some modalities, and count alike: then, where none lacks a modality,
            processes know each other's counts and need not ask.
    """
    if _factor is None:
        return total / count if count else total
    if of_all and _share is not None:
        return _share * total / count if _factor else 0 * total
    every = counted(count)
    return _factor * total / every if every else 0 * total


def counted(count: float | Tensor) -> float:
    """How many the whole batch has, within a step, of what this process has so many of."""
    return summed({"": _factor * float(count)})[""]


def dealt() -> bool:
    """Whether this process holds its part of a batch that others hold too."""
    return _factor is not None


class _Sum(torch.autograd.Function):
    """`together`; the gradient of a sum of which every process has a copy is the sum of the copies' gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        with _together():
            dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def together(part: Tensor) -> Tensor:
    """The sum of what `mean_of` gave to each process; gradients go back to all of them."""
    return _Sum.apply(part)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give the gradients of all processes, summed, to each; call it before an optimizer's step."""
    if size() == 1:
        return
    weights = list(parameters)
    there = torch.tensor([float(p.grad is not None) for p in weights], device=_device)
    flat = torch.cat([there, *((torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in weights)])
    with _together():
        dist.all_reduce(flat)
    there, *gradients = flat.split([len(weights), *(p.numel() for p in weights)])
    for p, known, gradient in zip(weights, there.tolist(), gradients, strict=True):
        p.grad = gradient.view_as(p) if known else None
