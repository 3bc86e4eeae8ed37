"""Launches by torchrun, which starts the same command again after a rank was lost (`--max-restarts`)."""

import os
import select
import signal
import socket
from pathlib import Path
from threading import Thread
from typing import Final

from lit_ppo import exit_codes, interrupts

_NO_ID: Final = "none"  # torchrun's own default


def launch() -> str | None:
    """A name of this launch for its ranks and restarts: `--rdzv-id`, or that of the one agent; None if it has none."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None or run_id != _NO_ID:
        return run_id
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        return None  # each node has an agent of its own
    return f"{socket.gethostname()}:{os.getppid()}:{_start_of(os.getppid()):.2f}"


def end_with_agent() -> None:
    """When torchrun's agent ends, end this rank as SIGTERM would: the ranks could wait for each other for half an hour.

    Before training the main thread may wait in torch, where no handler of Python runs; so another thread ends the process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        Thread(target=_await_end, args=(os.getppid(),), daemon=True).start()


def _await_end(agent: int) -> None:
    try:
        descriptor = os.pidfd_open(agent)
    except ProcessLookupError:
        pass  # it has ended already
    except OSError:
        return  # a kernel without it
    else:
        select.select([descriptor], [], [])
    if signal.getsignal(signal.SIGTERM) is interrupts.end_at_once:
        interrupts.end_with("torchrun has ended", exit_codes.RANK)
    os.kill(os.getpid(), signal.SIGTERM)


def may_restart() -> bool:
    """Whether torchrun starts this command again after a failure, or has done so."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def is_restart() -> bool:
    """Whether torchrun has started this command before."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def was_written_meanwhile(path: Path) -> bool:
    """Whether a file was written since this process's parent, torchrun's agent, started: by the run that is restarted."""
    return path.is_file() and path.stat().st_mtime >= _start_of(os.getppid())


def _start_of(pid: int) -> float:
    """When a process started, seconds since 1970, rounded down to what the kernel says of its own start."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
