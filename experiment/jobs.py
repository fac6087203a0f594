"""Independent runs, several at a time: joblib takes them to processes of this machine or to a Dask cluster.

A job is a function of a module, by name, and plain arguments; data are read where the job runs. What a job says goes
into a file beside its run, which the process that asked for it reads along.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from experiment import run
from experiment.console import say
from experiment.run_directory import LOG, PROJECT
from files import InputError, TrainingError, WriteError, complain, printable
from parallel import LostProcessError
from utils import out_of_memory

ANSWERS_WITHIN = 5.0  # seconds a cluster may take to answer
WORKERS_WITHIN = 60.0  # seconds it may take to have a worker
SPOKEN = re.compile(r"stage \d, epoch|To calibrate|trial |warning: ")  # what of a job's lines is shown
INSTALL = "install it with: pip install -r requirements-scale.txt"


@dataclass(frozen=True)
class Job:
    """What is to be done elsewhere.

    Attributes:
        module: Of the function.
        function: Its name.
        arguments: Of the function; plain values.
        directory: Where `LOG` is written.
    """

    module: str
    function: str
    arguments: tuple[Any, ...]
    directory: Path


def cores_for(jobs: int) -> int:
    """Threads of each of so many processes: what OMP_NUM_THREADS says, or an even share of the cores."""
    from joblib import cpu_count

    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if re.fullmatch(r"[1-9]\d{0,3}", said) else max(1, cpu_count() // jobs)


def do_all(jobs: Mapping[str, Job], at_once: int, cluster: str | None, directory: Path) -> dict[str, dict[str, Any]]:
    """Do every job, so many at a time; the failure of one stops no other.

    Ctrl-C lets each stop after its step; a second one stops all at once.

    Args:
        jobs: By name.
        at_once: How many, in processes of this machine.
        cluster: Address of a Dask scheduler instead; it has as many at a time as it has workers.
        directory: For what tells the jobs to stop; the cluster's workers see it too.

    Returns:
        By name what the job returned: ``{"interrupted": where}`` if it was stopped, ``{"failed": why}`` if it failed.

    Raises:
        InputError: If nobody answers at the address, or what it needs is not installed.
        LostProcessError: If the cluster is lost.
    """
    results: dict[str, dict[str, Any]] = {}
    with stop_file(directory, stays=bool(cluster)) as stop, reading_along(jobs), pool(at_once, cluster) as start:
        while left := {name: job for name, job in jobs.items() if name not in results}:
            try:
                for name, result in start(left, stop, at_once):
                    results[name] = result
                    say(f"{name}: {spoken(result)} ({len(results)} of {len(jobs)})")
            except WorkerDiedError:
                if at_once == 1 or stop.exists():
                    name = next(name for name in left if name not in results)
                    results[name] = {"failed": "its process was killed, as the system does when memory runs out"}
                    continue
                at_once -= 1
                complain(
                    "warning: a process was killed, as the system does when memory runs out; what it did goes on from "
                    f"the last checkpoint, {at_once} at a time"
                )
    return results


class WorkerDiedError(Exception):
    """A process that was at a job is no more."""


def spoken(result: Mapping[str, Any]) -> str:
    """What a job came to, in a few words."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    if "interrupted" in result:
        return f"stopped at {result['interrupted']}"
    return f"done, weighted F1 {result['test']['weighted_f1']:.2f}" if "test" in result else "done"


@contextmanager
def stop_file(directory: Path, *, stays: bool) -> Iterator[Path]:
    """A name for a file that tells jobs to stop once it is there, as it is after Ctrl-C; a second one is at once.

    One that is left is cleaned up with what killed processes leave.

    Args:
        directory: Where it is.
        stays: Whether it is left where this process ends before its jobs do, as those on other machines then go on.
    """
    path = directory / f".stop.{os.getpid()}.tmp"
    path.unlink(missing_ok=True)  # of an earlier process of this number

    def ask(number: int, frame: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt
        try:
            path.touch()
        except OSError:  # of a full disk, or a folder that can no longer be written
            raise KeyboardInterrupt from None

    before = {s: signal.signal(s, ask) for s in run.stops()}
    left = False
    try:
        yield path
    except (KeyboardInterrupt, LostProcessError):
        left = stays
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(OSError):
            path.touch() if left else path.unlink(missing_ok=True)


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let a thread work while the block does, until the event it is given is set."""
    ended = threading.Event()
    worker = threading.Thread(target=work, args=(ended,), daemon=True)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


def reading_along(jobs: Mapping[str, Job]) -> AbstractContextManager[None]:
    """Say the lines of every job that tell how far it is, each behind the name of its job."""
    at = {name: size(job.directory / LOG) for name, job in jobs.items()}

    def read(ended: threading.Event) -> None:
        last = False
        while not last:
            last = ended.wait(0.5)
            for name, job in jobs.items():
                with suppress(OSError):
                    with (job.directory / LOG).open("rb") as stream:
                        stream.seek(at[name])
                        new = stream.read()
                    whole = new[: new.rfind(b"\n") + 1]
                    at[name] += len(whole)
                    for line in whole.decode(errors="replace").splitlines():
                        if SPOKEN.match(line):
                            say(f"{name}: {line}")

    return beside(read)


def size(path: Path) -> int:
    """Bytes of a file, 0 of none."""
    return path.stat().st_size if path.exists() else 0


# What a worker does. It need not have the project on its path, nor need Dask's scheduler: here is nothing but builtins.
DO = """(
    project in __import__("sys").path or __import__("sys").path.insert(0, project),
    (name, __import__("importlib").import_module("experiment.jobs").do(*job)),
)[1]"""

Start = Callable[[Mapping[str, Job], Path, int], Iterator[tuple[str, dict[str, Any]]]]


@contextmanager
def pool(jobs: int, cluster: str | None) -> Iterator[Start]:
    """What starts jobs and yields their results as they come: processes of this machine, or a cluster."""
    import joblib

    def start(left: Mapping[str, Job], stop: Path, at_once: int) -> Iterator[tuple[str, dict[str, Any]]]:
        parent = None if cluster else os.getpid()
        try:
            at = str(Path.cwd())
        except OSError:
            raise InputError("the folder that this was started in is gone; start it in another") from None
        calls = (
            joblib.delayed(eval)(
                DO,
                {
                    "project": str(PROJECT),
                    "name": name,
                    "job": (
                        *(job.module, job.function, job.arguments, str(job.directory / LOG)),
                        *(str(stop), parent, at),
                    ),
                },
            )
            for name, job in left.items()
        )
        several = {"n_jobs": max(2, jobs), "pre_dispatch": "all" if cluster else at_once}
        yield from joblib.Parallel(return_as="generator_unordered", batch_size=1, **several)(calls)

    if cluster:
        with dask_client(cluster) as client, joblib.parallel_config(dask_backend(client)):
            yield lambda *arguments: checked(start(*arguments), cluster)
        return
    from joblib.externals.loky.backend import resource_tracker
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if hasattr(signal, "SIGHUP"):  # the tracker is deaf to the others already; without it joblib ends in tracebacks
        heeded = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, heeded)

    def here(*arguments: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            yield from start(*arguments)
        except TerminatedWorkerError:
            raise WorkerDiedError from None

    with joblib.parallel_config("loky", inner_max_num_threads=cores_for(jobs)):
        yield here


@contextmanager
def dask_client(address: str) -> Iterator[Any]:
    """A client of the scheduler at an address.

    Raises:
        InputError: If dask is not installed, nobody answers there, or a worker would have several runs in one process.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError(f"--cluster needs dask.distributed; {INSTALL}") from None
    import logging

    for name in ("distributed", *(name for name in logging.root.manager.loggerDict if name.startswith("distributed."))):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what is to be said of a lost cluster we say
    try:
        client = Client(address, timeout=ANSWERS_WITHIN, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = printable(" ".join(str(error).split()), 200) or type(error).__name__
        raise InputError(
            f"--cluster {address}: nobody answers there ({reason}); start one with: dask scheduler"
        ) from None
    try:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=WORKERS_WITHIN)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if not workers:
            raise InputError(f"--cluster {address}: has no worker; start some with: dask worker {address} --nthreads 1")
        if any(worker["nthreads"] > 1 for worker in workers):
            raise InputError(
                f"--cluster {address}: has workers of several threads, and a run takes a process for itself; start "
                "them with --nthreads 1"
            )
        with watching(client, address):
            yield client
    finally:
        with suppress(Exception):  # of a cluster that is gone
            client.close(timeout=1)


def watching(client: Any, address: str) -> AbstractContextManager[None]:
    """Say it once where a cluster has no worker any more: jobs wait then, as for a queue that starts workers again."""

    def watch(ended: threading.Event) -> None:
        lonely = 0.0
        while not ended.wait(1) and lonely < WORKERS_WITHIN:
            with suppress(Exception):  # a lost connection is found elsewhere
                lonely = 0.0 if client.ncores() else lonely + 1
        if not ended.is_set():
            complain(
                f"warning: --cluster {address}: has had no worker for {WORKERS_WITHIN:.0f} seconds; runs wait for one "
                f"(dask worker {address} --nthreads 1), and go on from their checkpoints; Ctrl-C, twice, ends this"
            )

    return beside(watch)


def dask_backend(client: Any) -> Any:
    """Joblib's Dask backend, which waits for ever for a job that Dask has given up, and does a single worker's here."""
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(2, super().effective_n_jobs(n_jobs))

        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)
            future.add_done_callback(lambda done: callback(done.exception()) if done.exception() else None)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, BaseException):
                raise out
            return super().retrieve_result_callback(out)

    return Backend(client=client, pure=False)


def checked(results: Iterator[Any], address: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Results of a cluster.

    Raises:
        LostProcessError: If it is lost, or gives a job up.
    """
    try:
        for result in results:
            if not isinstance(result, tuple):
                raise ConnectionError("no result")
            yield result
    except InputError:
        raise
    except Exception as error:  # whatever distributed raises of a lost connection, or of a job that kills its workers
        reason = printable(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
        raise LostProcessError(f"--cluster {address}: lost ({reason})") from None


# Where the job is done ------------------------------------------------------------------------------------------------


def command(script: str, argv: Sequence[str]) -> dict[str, Any]:
    """A job that is a whole command: ``main`` of one of the project's scripts.

    Args:
        script: Its path from the project's folder.
        argv: Its flags.
    """
    path, said = PROJECT / script, StringIO()
    sys.path.insert(0, str(path.parent))
    try:
        with redirect_stderr(said):
            status = import_module(path.stem).main(argv)
    except SystemExit as wrong_flags:
        status = wrong_flags.code
    sys.stderr.write(said.getvalue())
    if status == 130:
        return {"interrupted": "a step"}
    last = (said.getvalue().splitlines() or [f"exit status {status}"])[-1]
    return {"failed": last.removeprefix("error: "), "input": status == 2} if status else {}


_alone = threading.Lock()


def do(
    module: str, function: str, arguments: Sequence[Any], log: str, stop: str, parent: int | None, at: str
) -> dict[str, Any]:
    """Do a job; what goes wrong is its result.

    Args:
        module: Of the function.
        function: Its name.
        arguments: Of the function.
        log: Where its output goes.
        stop: The file that tells it to stop.
        parent: The process without which there is no sense in going on.
        at: The folder that names of files start from, on this machine too.
    """
    try:
        os.chdir(at)
    except OSError as error:
        where = f"{at} on {platform.node()}"
        return {"failed": f"{where}: {error.strerror}; the machines of a cluster share the folder", "input": True}
    if Path(stop).exists():
        return {"interrupted": "the beginning"}
    if threading.current_thread() is threading.main_thread():
        for each in run.stops():  # the file tells; to die of what a scheduler sends to all would take other runs along
            signal.signal(each, signal.SIG_IGN)
    if parent:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    run.stop_file = Path(stop)
    try:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with _alone, Path(log).open("a", encoding="utf-8") as stream, redirect_stdout(stream), redirect_stderr(stream):
            try:
                return getattr(import_module(module), function)(*arguments)
            except (InputError, TrainingError) as error:
                complain(f"error: {error}")
                unwritten = isinstance(error, WriteError)
                return {"failed": str(error), "unwritten": unwritten, "input": isinstance(error, InputError)}
            except KeyboardInterrupt:
                return {"interrupted": "an instant"}
            except Exception as error:
                if out_of_memory(error):
                    return {"failed": "out of memory; fewer --jobs, or a lower --batch-size"}
                traceback.print_exc()
                return {"failed": f"{type(error).__name__}: {error}; see {log}"}
    except OSError as error:
        return {"failed": f"{log}: cannot be written ({error.strerror})", "input": True}


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
