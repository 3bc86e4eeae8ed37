"""The pipes to one worker: lines in, lines out, what its environments print, and one deadline for every wait.

Nothing here trusts the other side: what arrives is bounded, a flood is not kept, and no wait outlasts its deadline, which is
one monotonic moment for all of a wait, never a time for each read.
"""

import os
import select
from collections.abc import Callable
from time import monotonic
from typing import Final

from lit_ppo.bridge.protocol import MAX_LINE_BYTES
from lit_ppo.errors import ProtocolError, printable

_PRINTED_TAIL_BYTES: Final = 16_384
_READ_BYTES: Final = 1 << 16
_READS_AT_A_TIME: Final = 64  # an environment that never stops printing must not keep us here
LONGEST_SLEEP_S: Final = 0.5  # a signal that comes just before a sleep does not end it; its handler runs after the sleep


class Channel:
    """Non-blocking pipes to a worker, and the descriptor that tells its end.

    Args:
        requests: Written by us.
        replies: Written by the worker.
        stderr: Written by the worker and by its environments, whose standard output it is as well.
        pidfd: Readable once the process has ended.
    """

    def __init__(self, requests: int, replies: int, stderr: int, pidfd: int) -> None:
        self._requests, self._replies, self._stderr, self._pidfd = requests, replies, stderr, pidfd
        self._unread = b""
        self._printed = b""  # its newest part
        self._unshown = b""  # a line that is not complete yet
        self.show: Callable[[str], None] | None = None  # called with each line that is printed
        for descriptor in (requests, replies, stderr):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        for descriptor in (replies, stderr, pidfd):
            self._poll.register(descriptor, select.POLLIN)

    def write(self, data: bytes, deadline: float) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: Nothing reads any more.
            TimeoutError: The deadline is over.
            EOFError: The process has ended.
        """
        while data:
            try:
                data = data[os.write(self._requests, data) :]
            except BlockingIOError:
                self.wait(deadline, for_room=True)

    def next_line(self) -> bytes | None:
        """The next message that has arrived, without its newline, if any; doorbells between messages are skipped.

        Raises:
            ProtocolError: A line is too long.
        """
        self._unread = self._unread.lstrip(b"\n")
        line, newline, rest = self._unread.partition(b"\n")
        if not newline:
            if len(self._unread) > MAX_LINE_BYTES:
                raise ProtocolError(f"expected a message of at most {MAX_LINE_BYTES} bytes")
            return None
        self._unread = rest
        return line

    def message_bytes(self) -> bytes:
        """What has arrived besides doorbells, whether it is a whole message or not; it stays unread."""
        self._receive()
        self._unread = self._unread.lstrip(b"\n")
        return self._unread

    def wait(self, deadline: float, *, for_room: bool = False, for_message: bool = True) -> None:
        """Sleep until something arrives, but not for long; read what there is.

        Args:
            deadline: When to give up, by the monotonic clock.
            for_room: Also wake when there is room to write.
            for_message: A message that an ended process has left behind counts as an arrival, not as its end.

        Raises:
            TimeoutError: The deadline is over.
            EOFError: The process has ended.
        """
        remaining = deadline - monotonic()
        if remaining <= 0:
            raise TimeoutError
        if for_room:
            self._poll.register(self._requests, select.POLLOUT)
        try:
            ready = dict(self._poll.poll(min(remaining, LONGEST_SLEEP_S) * 1000))
        finally:
            if for_room:
                self._poll.unregister(self._requests)
        no_more = self._receive()
        if (self._pidfd in ready or no_more) and not (for_message and b"\n" in self._unread.lstrip(b"\n")):
            raise EOFError

    def _receive(self) -> bool:
        """Read what has arrived on both pipes, bounded; whether the replies have ended."""
        self.drain_printed()
        while len(self._unread) <= MAX_LINE_BYTES:
            try:
                data = os.read(self._replies, _READ_BYTES)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._unread += data
        return False

    def printed(self) -> str:
        """The end of what the environments have printed so far, without control characters."""
        return printable(self._printed.decode("utf-8", "replace").strip())

    def drain_printed(self) -> None:
        """Read what the environments have printed: show it if that is wanted, and keep the newest part."""
        for _ in range(_READS_AT_A_TIME):
            try:
                data = os.read(self._stderr, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                if self.show is not None and self._unshown:
                    self.show(printable(self._unshown.decode("utf-8", "replace").rstrip()))
                    self._unshown = b""
                try:
                    self._poll.unregister(self._stderr)
                except KeyError:
                    pass
                return
            self._printed = (self._printed + data)[-_PRINTED_TAIL_BYTES:]
            if self.show is not None:
                *lines, self._unshown = (self._unshown + data).split(b"\n")
                if len(self._unshown) > _PRINTED_TAIL_BYTES:  # a line without an end
                    lines, self._unshown = [*lines, self._unshown], b""
                for line in lines:
                    self.show(printable(line.decode("utf-8", "replace").rstrip()))
