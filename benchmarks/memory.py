"""Memory of a process and of all it has started, read from /proc.

RSS counts a page for every process that has it; PSS divides a shared page among those, so that PSS can be added up.
"""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

_PAGE_MIB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20
_SAMPLE_EVERY_S: Final = 0.05


def family(root: int) -> set[int]:
    """`root` and its descendants that have not ended."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            pass
    found = {root}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def _kib(pid: int, file: str, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(key))


def rss_mib(pid: int) -> float:
    """Of one process, now; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MIB
    except OSError:
        return 0.0


def pss_mib(root: int) -> float:
    """Of a process and its descendants, now."""
    return sum(_kib(pid, "smaps_rollup", "Pss:") for pid in family(root)) / 1024


def peak_rss_mib(root: int) -> float:
    """Sum of the peaks of a process and of its descendants that have not ended; shared pages count for each."""
    return sum(_kib(pid, "status", "VmHWM") for pid in family(root)) / 1024


class PeakSampler:
    """While it is entered, looks at a process every 50 ms.

    Args:
        pid: The process.

    Attributes:
        rss_mib: Highest RSS of the process itself.
        pss_mib: Highest PSS of it and its descendants together.
    """

    def __init__(self, pid: int) -> None:
        self.rss_mib, self.pss_mib = 0.0, 0.0
        self._pid, self._stop = pid, threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_EVERY_S):
            # the kernel keeps the peak of RSS by itself; that of PSS can only be sampled
            self.rss_mib = max(self.rss_mib, _kib(self._pid, "status", "VmHWM") / 1024)
            self.pss_mib = max(self.pss_mib, pss_mib(self._pid))

    def __enter__(self) -> "PeakSampler":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
