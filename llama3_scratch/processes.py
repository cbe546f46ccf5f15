"""Processes that compute together by `torch.distributed`: how they start, and how they end.

A *rank* is one of p processes, numbered from 0. A notebook starts them with `run_on`, which keeps
them for the next call; for the command line, torchrun starts them and `joined` makes them a group.
"""

import atexit
import contextlib
import importlib
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta

import torch
import torch.distributed as dist

from llama3_scratch.errors import InputError, first_line, require

PATIENCE = timedelta(seconds=120)  # how long a rank waits for the others
RENDEZVOUS = timedelta(seconds=30)  # how long the ranks of a command line look for each other
FOREVER = timedelta(days=365)  # how long the ranks of a chat wait for the next question
LOOPBACK = "lo", "lo0"  # the network within one machine, on Linux and on macOS
LINGER = 3.0  # seconds that rank 0 stays until the others have seen its error
GRACE = 0.5  # seconds: an error is often the echo of another rank's end, which is seen later
_workers = []
_group = {}  # of the command line: the store that its ranks share


# From a notebook


def run_on(p, function, *args):
    """Call `function(*args)` in p processes at once -> [what it returned on each rank].

    Each process is a rank of a gloo group on the CPU (`dist.get_rank()` tells which), computes with
    one thread and begins with `torch.manual_seed(0)`. The processes are kept for the next call. A
    function of a notebook is sent with all that it names. What it prints is discarded. The first
    error on any rank ends all of them, and is raised here: `InputError` if it is one, else
    RuntimeError.
    """
    task = _dumps((function, args))
    if any(worker.poll() is not None for worker in _workers):
        _end()
    _workers.extend(_start() for _ in range(p - len(_workers)))
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(p) as pool,
    ):
        try:
            asked = {
                pool.submit(
                    _ask, _workers[rank], pickle.dumps([rank, p, f"{folder}/store", sys.path, task])
                ): rank
                for rank in range(p)
            }
            for done in as_completed(asked):
                if not done.result()[0]:
                    raise _first_error(asked)
            return [done.result()[1] for done in asked]
        except BaseException:
            _end()  # also the readers, for which the pool waits
            raise


def _start():
    """Start a worker, which waits for tasks on its standard input."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    loopback = [name for _, name in socket.if_nameindex() if name in LOOPBACK]
    settings |= dict(zip(["GLOO_SOCKET_IFNAME"], loopback, strict=False))
    errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
    worker = subprocess.Popen(
        [sys.executable, "-c", "from llama3_scratch.processes import _serve; _serve()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=os.environ | settings,
        start_new_session=True,  # an interrupt of the notebook is the notebook's
    )  # fmt: skip
    worker.errors = errors
    return worker


def _serve():
    """Answer tasks until the standard input ends: (True, result), or (False, error)."""
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0), os.dup2(nowhere, 1)
    while True:
        try:
            answer = True, _answer(*pickle.load(tasks))
        except EOFError:
            return
        except BaseException as error:
            ours = isinstance(error, InputError)
            answer = False, (ours, str(error) if ours else f"{type(error).__name__}: {error}")
        answers.write(pickle.dumps(answer))
        answers.flush()


def _answer(rank, p, path, modules, task):
    sys.path[:] = modules
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = dist.FileStore(path, p)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=p, timeout=PATIENCE)
    function, args = pickle.loads(task)
    result = function(*args)
    dist.barrier()
    dist.destroy_process_group()
    return result


def _ask(worker, task):
    """Give a task to a worker -> its answer, (False, None) if the worker has ended."""
    try:
        worker.stdin.write(task)
        worker.stdin.flush()
        return pickle.load(worker.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):
        return False, None


def _first_error(asked):
    """Return the exception that says what went wrong first."""
    with contextlib.suppress(TimeoutError):
        for _ in as_completed(asked, GRACE):
            pass
    found = {rank: done.result()[1] for done, rank in asked.items()
             if done.done() and not done.result()[0]}  # fmt: skip
    for rank, error in found.items():
        if error is None:
            code = _workers[rank].wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            _workers[rank].errors.seek(0)
            said = _workers[rank].errors.read().decode(errors="replace").strip().splitlines()
            return RuntimeError(f"rank {rank} has ended ({how}). {''.join(said[-1:])}".strip())
    ordered = sorted(found.items(), key=lambda item: ENDED in item[1][1])
    rank, (ours, message) = ordered[0]
    return (InputError if ours else RuntimeError)(f"rank {rank}: {message}")


@atexit.register
def _end():
    """End all workers."""
    for worker in _workers:
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout, worker.errors):
            with contextlib.suppress(OSError):
                pipe.close()
    _workers.clear()


def _dumps(value):
    """Pickle a value; functions of a notebook are sent as code."""
    import cloudpickle  # of the extra "notebooks"

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, value):
            if isinstance(value, types.ModuleType):  # also torch's own kinds, such as its settings
                return importlib.import_module, (value.__name__,)
            return super().reducer_override(value)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


# Between the ranks

ENDED = "another rank has ended"


def collective(function, *args, **kwargs):
    """Call a function of `torch.distributed`. Raises `InputError` if another rank has ended."""
    try:
        return function(*args, **kwargs)
    except RuntimeError as error:
        raise InputError(f"{ENDED}, or cannot be reached ({first_line(error)}).") from None


def share(value):
    """Return the value that rank 0 has, on every rank."""
    values = [value]
    collective(dist.broadcast_object_list, values, src=0, device=torch.device("cpu"))
    return values[0]


def gather(value):
    """Return the values of all ranks, in their order, on every rank."""
    values = [None] * dist.get_world_size()
    collective(dist.all_gather_object, values, value)
    return values


def read(prompt=""):
    """Read a line as `input` does, on rank 0 -> the line, on every rank."""
    line = None
    if dist.get_rank() == 0:
        with contextlib.suppress(EOFError):
            line = input(prompt)
    line = share(line)
    if line is None:
        raise EOFError
    return line


# For the command line


def started():
    """Whether torchrun has started this process, or a program that sets the same variables."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def number(name, least, default=None):
    """Return a variable that torchrun sets, as a number. Raises `InputError`."""
    text = os.environ.get(name, default)
    right = text is not None and text.isascii() and text.isdigit() and int(text) >= least
    require(right, f"the environment variable {name} is {text!r}: expected {least} or more.")
    return int(text)


def place():
    """Return (this rank, the number of ranks), (0, 1) without a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def size():
    """Return the number of ranks, 1 without a group."""
    return place()[1]


def on_this_machine():
    """Return how many ranks share this machine's memory."""
    return number("LOCAL_WORLD_SIZE", 1, str(size())) if size() > 1 else 1


@contextlib.contextmanager
def quiet():
    """Discard what ranks other than 0 print, while the block runs; yields the standard error."""
    stderr = sys.stderr
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if _listens():
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield stderr


def _listens():
    """Whether the variables name this process a rank other than 0, as far as they make sense."""
    rank, p = os.environ["RANK"], os.environ["WORLD_SIZE"]
    return rank.isdigit() and p.isdigit() and 0 < int(rank) < int(p)


@contextlib.contextmanager
def joined(device):
    """Make the processes that torchrun has started a group, while the block runs.

    Yields this rank's device: of cuda, the one that LOCAL_RANK numbers. Raises `InputError`.
    """
    rank, p = number("RANK", 0), number("WORLD_SIZE", 1)
    require(rank < p, f"the environment variable RANK is {rank}: expected less than {p} ranks.")
    cuda = device == "cuda" and torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=RENDEZVOUS))
        dist.init_process_group(backend, store=store, rank=rank, world_size=p, timeout=FOREVER)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the {p} ranks do not find each other ({first_line(error)}).") from None
    _group["store"] = store
    if cuda:
        local, n_devices = number("LOCAL_RANK", 0, "0"), torch.cuda.device_count()
        require(
            local < n_devices,
            f"this machine has {n_devices} CUDA devices: expected one for each rank on it.",
        )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    yield device
    collective(dist.barrier)  # nobody ends while another still needs it
    dist.destroy_process_group()


def first_to_fail():
    """Whether this rank is the first that fails, and has to say so."""
    try:
        return _group["store"].add("failed", 1) == 1 if _group else not _listens()
    except RuntimeError:  # the store has ended with its rank
        return dist.get_rank() == 1


def leave(code):
    """End this process because of an error, and so the others, which are waiting for it."""
    if sys.stdout:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    with contextlib.suppress(RuntimeError, ValueError, AssertionError):
        first_to_fail()  # no other rank needs to say that this one has ended
        rank, p = place()
        dist.destroy_process_group()  # what others are waiting for fails
        left, deadline = _group["store"].add("left", 1), time.monotonic() + LINGER
        while rank == 0 and left < p and time.monotonic() < deadline:  # it may have the store
            time.sleep(0.05)
            left = _group["store"].add("left", 0)
    os._exit(code)
