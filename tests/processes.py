"""Our commands in this process; and they, and functions, in processes of their own, to be killed or starved of disk.

Those fork from a server that has imported everything but computed nothing, so each starts at once.
"""

import contextlib
import gc
import importlib
import io
import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

import diffusers_cg_cli


ROOT = Path(__file__).parents[1]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "diffusers_cg.training.train_unet",
        "diffusers_cg.training.train_classifier",
        "datasets",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ]
)


@dataclass(frozen=True)
class Signal:
    """Sent by a process to itself at the `count`th file that it opens, or renames, whose path ends in `path`.

    Or else, as clusters do, to its group: itself and all that it started, each of which counts for itself.
    """

    signum: signal.Signals
    path: str
    event: str = "open"
    count: int = 1
    to_group: bool = False


@dataclass(frozen=True)
class Ended:
    """Exit status (negative: the signal that killed it), and stdout and stderr together."""

    status: int
    output: str


def run_function(
    function: Callable,
    *args,
    log: Path,
    signal: Signal | None = None,
    file_size_limit: int | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = 120,
) -> Ended:
    """Calls a function of a module in a new process, whose output goes to the file `log`."""
    process = _context.Process(target=_child, args=(function, args, log, signal, file_size_limit, environment or {}))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"still running after {timeout} s: {log.read_text()}")
    return Ended(process.exitcode, log.read_text(errors="replace"))


def as_torchrun(function: Callable, *args) -> None:
    """Calls it in a process that knows of its group as torchrun tells it, and no more, where there is no GPU to stay off."""
    if not torch.cuda.is_available():
        del os.environ["ACCELERATE_USE_CPU"]
    function(*args)


def run_together(
    function: Callable, *args, num_processes: int, logs: Path, signals: dict[int, Signal] | None = None
) -> list[Ended]:
    """As `torch.distributed.run` starts processes, which `accelerate launch` does on a CPU through MPI only.

    Their output goes to files of the folder `logs`, and `signals` are sent by those of these ranks.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def run(rank: int) -> Ended:
        environment = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        signal = (signals or {}).get(rank)
        return run_function(function, *args, log=logs / f"log{rank}", signal=signal, environment=environment)

    with ThreadPoolExecutor(num_processes) as pool:
        return list(pool.map(run, range(num_processes)))


def run_command(name: str, *argv: object, log: Path, **options) -> Ended:
    """Runs `training/NAME.py` with flags; options as for [`run_function`]."""
    return run_function(_main, name, [str(arg) for arg in argv], log=log, **options)


def run_script(script: str, *argv: object, log: Path, **options) -> Ended:
    """Runs a file as `python training/NAME.py` does, or a module as `python -m` does; options as for [`run_function`]."""
    return run_function(_run_script, script, [str(arg) for arg in argv], log=log, **options)


def run_cli(*argv: object, log: Path, **options) -> Ended:
    """Runs `diffusers-cg` with arguments; options as for [`run_function`]."""
    return run_function(diffusers_cg_cli.main, [str(arg) for arg in argv], log=log, **options)


def run_here(*argv: object) -> Ended:
    """Runs `diffusers-cg` with arguments in this process."""
    return _here(diffusers_cg_cli.main, [str(arg) for arg in argv])


def run_command_here(name: str, *argv: object) -> Ended:
    """Runs `training/NAME.py` with flags in this process."""
    return _here(_main, name, [str(arg) for arg in argv])


def _here(function: Callable, *args) -> Ended:
    status, output = 0, io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            function(*args)
        except SystemExit as ended:
            status = ended.code or 0
    return Ended(status, output.getvalue())


def _main(name: str, argv: list[str]) -> None:
    command = importlib.import_module(f"diffusers_cg.training.{name}")
    command.main(command.parse_args(argv))


def _run_script(script: str, argv: list[str]) -> None:
    os.chdir(ROOT)
    sys.argv[:] = [script, *argv]
    if script.endswith(".py"):
        runpy.run_path(script, run_name="__main__")
    else:
        sys.modules.pop(script, None)  # as a new interpreter has not imported it
        runpy.run_module(script, run_name="__main__", alter_sys=True)


def _child(
    function: Callable,
    args: tuple,
    log: Path,
    at: Signal | None,
    file_size_limit: int | None,
    environment: dict[str, str],
) -> None:
    gc.freeze()  # as in conftest.py
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell ignore it
    os.environ.pop("HF_TOKEN", None)  # of the test, perhaps, that was the first to start a process
    os.environ |= {"ACCELERATE_USE_CPU": "true", **environment}  # on a CPU runs are the same to the last bit
    multiprocessing.set_start_method("fork", force=True)  # of processes that load images, else slow to start from here
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if file_size_limit is not None:  # writing more fails, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, resource.RLIM_INFINITY))
    if at is not None:
        left = at.count
        if at.to_group:
            os.setsid()

        def hook(event: str, event_args: tuple) -> None:
            nonlocal left
            if event == at.event and str(event_args[0]).endswith(at.path):
                left -= 1
                if left == 0 and at.to_group:
                    os.killpg(0, at.signum)
                elif left == 0:
                    os.kill(os.getpid(), at.signum)

        sys.addaudithook(hook)
    function(*args)
