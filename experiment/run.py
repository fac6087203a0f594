"""A run while it trains: its curves, its checkpoints, and how it stops and goes on."""

from __future__ import annotations

import hashlib
import io
import math
import random
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import parallel
import utils
from experiment.console import Progress
from experiment.run_directory import save_tensors, sweep, write_csv
from experiment.tensorboard import Curves
from files import InputError, InterruptedRunError, complain, printable, replacing

# Is shown every epoch's row of a stage, and may end the run by raising.
watch: Callable[[str, Mapping[str, float]], None] | None = None
stop_file: Path | None = None  # tells the runs of this process to stop, once it is there
DIGITS = 8  # of the curves' numbers in CSV files
# A checkpoint is read at once. It has the weights, their average, the best, two moments of the optimizer, and curves.
COPIES, CURVES_AND_REST = 6, 2**28  # of the weights; bytes


def stops() -> list[signal.Signals]:
    """The signals that ask a run to stop; SIGHUP, of a terminal that is closed, unless ``nohup`` has it ignored."""
    hangup = getattr(signal, "SIGHUP", None)
    heeded = hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hangup] if heeded else [])]


def check_state(state: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint's epoch and curves are what `Run.save` wrote.

    Raises:
        ValueError: If they are not.
    """
    if state["stage"] not in Run.CURVES:
        raise ValueError("stage")
    history, epoch = state["history"], state["epoch"]
    rows = [row for stage in Run.CURVES for row in history[stage]]
    figures = [x for row in rows for x in row.values()]
    if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in figures):
        raise ValueError("curves that are no numbers")
    if any(not {"epoch", "seconds"} <= row.keys() or not all(isinstance(name, str) for name in row) for row in rows):
        raise ValueError("curves without epochs")
    if type(epoch) is not int or epoch != len(history[state["stage"]]):
        raise ValueError("epoch")
    if not all(isinstance(x, Tensor) for x in state["best"].values()):
        raise ValueError("weights")


def shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Name of each tensor to its shape."""
    return {name: tensor.shape for name, tensor in weights.items()}


def alike(part: Any, saved: Any) -> bool:
    """Whether a state could be that of an optimizer or a schedule; networks look for themselves when they load it."""
    if isinstance(part, torch.optim.Optimizer):
        groups, parameters = part.param_groups, [p for group in part.param_groups for p in group["params"]]
        return (
            len(saved["param_groups"]) == len(groups)
            and all(same_kinds(ours, theirs) for ours, theirs in zip(groups, saved["param_groups"], strict=True))
            and all(
                isinstance(x, Tensor) and x.dtype == torch.float32 and x.shape in ((), parameters[i].shape)
                for i, state in saved["state"].items()
                for x in state.values()
            )
            and all(state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in saved["state"].values())
        )
    if isinstance(part, torch.optim.lr_scheduler.LRScheduler):
        ours = part.state_dict()
        fixed = ("total_steps", "_schedule_phases", "cycle_momentum")
        return (
            ours.keys() == saved.keys()
            and same_kinds(ours, saved)
            and all(ours.get(name) == saved.get(name) for name in fixed)
        )
    return True


def copy_of(state: Any) -> Any:
    """A state whose tensors are copies, as `copy.deepcopy` in a sixth of its time."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: copy_of(value) for name, value in state.items()}
    return [copy_of(value) for value in state] if isinstance(state, list) else state


def same_kinds(ours: Any, theirs: Any) -> bool:
    """Whether two plain values have the same keys, lengths and types throughout; numbers finite."""
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and all(
            name == "params" or (name in theirs and same_kinds(value, theirs[name])) for name, value in ours.items()
        )
    if isinstance(ours, (list, tuple)):
        return isinstance(theirs, type(ours)) and len(ours) == len(theirs) and all(map(same_kinds, ours, theirs))
    if isinstance(ours, (int, float)) and not isinstance(ours, bool):
        return isinstance(theirs, (int, float)) and math.isfinite(theirs)
    return type(ours) is type(theirs) and (ours == theirs or not isinstance(ours, str))


class Run:
    """The directory of one run: what it writes while it trains, and all it needs to go on after a stop.

    Everything written can be written again from the newest checkpoint and the data, to the same bits. So a run that is
    killed between any two writes, or in one, goes on from the checkpoint and ends as if it had not been.

    Attributes:
        directory: Where everything goes.
        checkpoints: The folder in it for weights and states.
        history: Stage to one row an epoch.
        best: The weights to report on, as of that history.
        stop_requested: Whether Ctrl-C or SIGTERM has asked for a stop after the step.
        saving: Seconds that checkpoints took, in this sitting.
    """

    CURVES: Mapping[str, str] = {"adversarial": "GAN_loss.csv", "classifier": "history.csv"}

    def __init__(
        self, directory: Path, network: nn.Module | None = None, *, tensorboard: bool, checkpoint_every: int = 1
    ):
        self.directory = directory
        weights = network.state_dict().values() if network else ()
        self._most = COPIES * sum(x.nbytes for x in weights) + CURVES_AND_REST
        self.history: dict[str, list[dict[str, float]]] = {stage: [] for stage in self.CURVES}
        self.stop_requested = False
        self.saving = 0.0
        self.checkpoints = directory / "checkpoints"
        if not parallel.follows():
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"--out {directory}: cannot be written ({error.strerror}); choose another") from None
            sweep(directory)
        self.best: dict[str, Tensor] = {}
        self._curves = Curves(directory) if tensorboard and not parallel.follows() else None
        self._checkpoint_every = checkpoint_every
        self._unwritten: dict[str, Any] | None = None
        self._progress: Progress | None = None

    def epochs(self, title: str, done: int, epochs: int) -> Progress:
        """The epochs of a stage still to do, from ``done + 1``, shown as `log` is given them."""
        self._progress = Progress(title, done, epochs)
        return self._progress

    def seconds(self, stage: str) -> float:
        """The time a stage took, over all sittings."""
        return sum(row["seconds"] for row in self.history[stage])

    @property
    def last(self) -> Path:
        """The newest checkpoint: state of the stage under way, of random numbers and of the curves.

        A file that torch reads, with its SHA-256 in 32 bytes after it.
        """
        return self.checkpoints / "last.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before that, should the newest be damaged."""
        return self.checkpoints / "previous.pt"

    def stop_here(self, where: str) -> None:
        """Stop if that was asked for.

        Args:
            where: Stage, epoch and step just done.

        Raises:
            InterruptedRunError: If so; it says where.
        """
        if parallel.anywhere(self.stop_requested or bool(stop_file and stop_file.exists())):
            raise InterruptedRunError(where)

    def keep(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights for the ones to report on; they are written with the checkpoint."""
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def log(self, stage: str, row: dict[str, float]) -> None:
        """Add an epoch's figures to the curves: the stage's CSV file and TensorBoard."""
        # A checkpoint with a number of NumPy's could not be read again: torch takes it for code.
        row = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        self.history[stage].append(row)
        write_csv(self.directory / self.CURVES[stage], self.history[stage], DIGITS)
        if self._curves:
            self._curves.add({stage: [row]}, self.history)
        if self._progress:
            self._progress.show(row)
        if watch:
            watch(stage, row)

    def save(self, stage: str, epoch: int, parts: Mapping[str, Any]) -> None:
        """Checkpoint after an epoch: on the disk every so many epochs, until then in memory for `flush`.

        Args:
            stage: The stage under way.
            epoch: How many of its epochs are done.
            parts: Name to what has a ``state_dict`` or, of generators of random numbers, a ``get_state``.
        """
        started = time.perf_counter()
        kind, keys, *rest = np.random.get_state()
        state = {
            "stage": stage,
            "epoch": epoch,
            "parts": {n: p.state_dict() if hasattr(p, "state_dict") else p.get_state() for n, p in parts.items()},
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                **({"mps": torch.mps.get_rng_state()} if torch.backends.mps.is_available() else {}),
                "python": random.getstate(),
                "numpy": (kind, keys.tolist(), *rest),
            },
            "history": self.history,
            "best": self.best,
            "processes": parallel.size(),
        }
        self._unwritten = state
        if epoch % self._checkpoint_every == 0:
            self.flush()
        else:  # training goes on in the very tensors
            self._unwritten = copy_of({**state, "best": {}}) | {"best": self.best}
        self.saving += time.perf_counter() - started

    def flush(self) -> None:
        """Write the newest checkpoint, if it is in memory only; the one that was newest stays beside it."""
        if self._unwritten is None or parallel.follows():
            return
        utils.give_memory_back()
        if self._unwritten["best"]:
            save_tensors(self.checkpoints / "best.safetensors", self._unwritten["best"])
        buffer = io.BytesIO()
        torch.save(self._unwritten, buffer)
        digest = hashlib.sha256(buffer.getbuffer()).digest()
        buffer.seek(0, io.SEEK_END)
        buffer.write(digest)
        with replacing(self.last) as temporary:
            temporary.write_bytes(buffer.getbuffer())
            if self.last.exists():
                self.last.replace(self.previous)
        self._unwritten = None

    def restore(self, stage: str, parts: Mapping[str, Any]) -> int:
        """Take a stage up where the newest checkpoint left it.

        Args:
            stage: The stage about to begin.
            parts: The same as were saved; they are brought to the state they had.

        Returns:
            How many epochs of the stage are done; 0 where the checkpoint is of another stage, or there is none.

        Raises:
            InputError: If there are checkpoints and none is good, or it is of another network.
        """
        state = self._saved
        if not state or state["stage"] != stage:
            return 0
        try:
            if state["best"] and "network" in parts and shapes(state["best"]) != shapes(parts["network"].state_dict()):
                raise ValueError("weights")
            for name, part in parts.items():
                if not alike(part, state["parts"][name]):
                    raise ValueError(f"part {name}")
                (part.load_state_dict if hasattr(part, "load_state_dict") else part.set_state)(state["parts"][name])
            torch.set_rng_state(state["random"]["cpu"])
            cuda = state["random"]["cuda"]
            if len(cuda) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(cuda)
            if "mps" in state["random"] and torch.backends.mps.is_available():
                torch.mps.set_rng_state(state["random"]["mps"])
            if bool(cuda) != torch.cuda.is_available() or len(cuda) != torch.cuda.device_count():
                complain(
                    f"{self.last}: begun with {len(cuda) or 'no'} GPUs, goes on with "
                    f"{torch.cuda.device_count() or 'none'}; the bits may differ"
                )
            if state.get("processes", 1) != parallel.size():
                complain(
                    f"{self.last}: begun with {state.get('processes', 1)} processes, goes on with {parallel.size()}; "
                    "the bits may differ"
                )
            random.setstate(state["random"]["python"])
            np.random.set_state(state["random"]["numpy"])
            self.history = {stage: list(state["history"][stage]) for stage in self.CURVES}
            if state["best"]:
                self.keep(state["best"])
                save_tensors(self.checkpoints / "best.safetensors", self.best)
            # What is on the disk may be of a later epoch than the checkpoint.
            for each, rows in self.history.items():
                if rows:
                    write_csv(self.directory / self.CURVES[each], rows, DIGITS)
                elif not parallel.follows():
                    (self.directory / self.CURVES[each]).unlink(missing_ok=True)
            return int(state["epoch"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            if isinstance(error, InputError):
                raise
            reason = printable(" ".join(str(error).split()), 60) or type(error).__name__
            raise InputError(
                f"{self.last}: not a checkpoint of this network ({reason}); resume with the "
                "version and flags it was begun with, or begin another run with another --out"
            ) from None

    def reached(self, stage: str) -> bool:
        """Whether the newest checkpoint is of this stage."""
        return bool(self._saved) and self._saved["stage"] == stage

    @cached_property
    def _saved(self) -> dict[str, Any] | None:
        """What the first process reads of the directory."""
        return parallel.from_first(self._read)

    def _read(self) -> dict[str, Any] | None:
        """The newest good checkpoint as it was when the run was taken up; one that is damaged is dropped."""
        damaged = []
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                if not path.is_file() or path.stat().st_size > self._most:
                    raise ValueError("size")
                content = path.read_bytes()
                if hashlib.sha256(content[:-32]).digest() != content[-32:]:
                    raise ValueError("checksum")
                with zipfile.ZipFile(io.BytesIO(content[:-32])) as members:
                    if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                        raise ValueError("compressed")  # torch.save never does; a bomb would be
                state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
                if not {"stage", "epoch", "parts", "random", "history", "best"} <= state.keys():
                    raise ValueError("content")
                check_state(state)
            except Exception:  # torch raises many types on a damaged file
                damaged.append(path)
                continue
            if damaged:
                complain(f"{self.last}: damaged; going on from {path.name}, the one before")
            if path == self.previous:
                path.replace(self.last)  # or the next checkpoint would push this good one out for the damaged one
            return state
        if damaged:
            raise InputError(f"{damaged[0]}: the checkpoint is damaged; begin anew with --overwrite")
        return None

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let Ctrl-C, SIGTERM from a scheduler or SIGHUP ask for a stop after the step; a second one stops at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.stop_requested and parallel.size() == 1:  # torchrun passes on what a terminal has sent already
                raise KeyboardInterrupt
            self.stop_requested = True

        main = threading.current_thread() is threading.main_thread()  # elsewhere `stop_file` alone tells
        before = {s: signal.signal(s, ask) for s in stops()} if main else {}
        try:
            yield
        except Exception:
            self.flush()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Bring the checkpoint and the curves up to the last epoch."""
        self.flush()
        if self._curves:
            self._curves.add({}, self.history)
            self._curves.close()
