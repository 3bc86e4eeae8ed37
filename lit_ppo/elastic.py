"""What starts the ranks: torchrun, also again after a rank was lost (`--max-restarts`), or the first rank, by Lightning."""

import os
import select
import signal
import socket
from pathlib import Path
from threading import Thread
from typing import Any, Final

from lit_ppo import exit_codes, interrupts

_NO_ID: Final = "none"  # torchrun's own default
_FIRST_RANK: Final = "LIT_PPO_FIRST_RANK"  # its process number, for the ranks that Lightning starts from it
_have_met = False


def launch() -> str | None:
    """A name of this launch for its ranks and restarts: `--rdzv-id`, or that of the one agent; None if it has none."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None or run_id != _NO_ID:
        return run_id
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        return None  # each node has an agent of its own
    return f"{socket.gethostname()}:{os.getppid()}:{_start_of(os.getppid()):.2f}"


def is_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def num_ranks() -> int:
    """Number of ranks that torchrun has started on all machines."""
    return int(os.environ["WORLD_SIZE"])


def trainer_options() -> dict[str, Any]:
    """What torchrun's options say of the Trainer's: devices, machines and strategy; empty for one rank and without torchrun."""
    if not is_torchrun() or num_ranks() == 1:
        return {}
    of_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    return {"devices": of_machine, "num_nodes": num_ranks() // of_machine, "strategy": "ddp"}


def end_with_launcher() -> None:
    """When what has started this rank ends, end the rank as well: the ranks could wait for each other for half an hour.

    With torchrun's agent a rank ends as after SIGTERM. With the first rank, which starts the others by Lightning, it ends until
    the ranks have met; from then on they watch each other.

    Before training the main thread may wait in torch, where no handler of Python runs; so another thread ends the process.
    """
    if is_torchrun():
        Thread(target=_end_with_agent, args=(os.getppid(),), daemon=True).start()
    elif _FIRST_RANK in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        Thread(target=_end_with_first_rank, args=(int(os.environ[_FIRST_RANK]),), daemon=True).start()
    else:
        os.environ[_FIRST_RANK] = str(os.getpid())


def ranks_have_met() -> None:
    """From now on the ranks watch each other."""
    global _have_met
    _have_met = True


def _end_with_agent(agent: int) -> None:
    if not _awaited(agent):
        return
    if signal.getsignal(signal.SIGTERM) is interrupts.end_at_once:
        interrupts.end_with("torchrun has ended", exit_codes.RANK)
    os.kill(os.getpid(), signal.SIGTERM)


def _end_with_first_rank(first: int) -> None:
    # it may have ended before this rank came here, and its number be another's by now
    if (os.getppid() != first or _awaited(first)) and not _have_met:
        os._exit(exit_codes.RANK)  # the first rank has said why, unless it was killed


def _awaited(process: int) -> bool:
    """Wait for the end of a process; False where the kernel cannot do that."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    select.select([descriptor], [], [])
    return True


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
