"""Sees that all ranks live: each has a connection to the first one, and says on it, several times a second, that it is there.

A rank that ends closes its connection, which its peers see at once. One that hangs, or whose machine cannot be reached, falls
silent. In both cases every other rank ends with exit code 7 and one line, since a collective operation would wait for the
missing one. What is lost is what was computed since the newest checkpoint.

A rank can also hang while this thread of it goes on. So each rank says whether it is at work: neither in a collective
operation, nor with its environments, which have time limits of their own. If a rank is at work while another waits for it in a
collective operation, it has not come there yet; there is a limit for that too, longer than any work between two of them.

Nothing on these connections is interpreted but single bytes. The first message of a peer is a random token, which the first
rank has told the others.
"""

import json
import os
import secrets
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from lit_ppo import exit_codes, interrupts
from lit_ppo.errors import RankLost
from lit_ppo.ranks import Ranks

_ALIVE: Final = b"."
_AT_WORK: Final = b"w"
_FAREWELL: Final = b"x"
_TOKEN_BYTES: Final = 16
_BEATS: Final = 10  # within the time limit
_SILENCE: Final = 0.7  # of the time limit; the rest is for the end itself


class RankWatch(threading.Thread):
    """Watches the other ranks until `close`.

    Args:
        ranks: Of the run; every rank must make its watch at the same moment.
        address: Of the first rank's machine, as the others know it.
        limit_s: Within this time all ranks end if one is lost, seconds.
        patience_s: Longest wait for a rank that is at work, seconds.
        is_with_environments: Whether this rank waits for its environments.

    Raises:
        RankLost: The first rank, or a peer, cannot be reached.
    """

    def __init__(
        self, ranks: Ranks, address: str, limit_s: float, patience_s: float, is_with_environments: Callable[[], bool]
    ) -> None:
        super().__init__(name="rank-watch", daemon=True)
        self._limit_s, self._closing = limit_s, threading.Event()
        self._ranks, self._patience_s, self._is_with_environments = ranks, patience_s, is_with_environments
        server = _server(address, ranks.count) if ranks.rank == 0 else None
        token = secrets.token_hex(_TOKEN_BYTES)
        machine = boot_id() + os.readlink("/proc/self/ns/pid")  # the same if each can signal the other by its number
        mine = {"machine": machine, "pid": os.getpid(), "port": server and server.getsockname()[1], "token": token}
        everyone = [json.loads(data) for data in ranks.gather_bytes(json.dumps(mine).encode())]
        first = everyone[0]
        try:
            if server is None:
                peer = socket.create_connection((address, first["port"]), timeout=limit_s)
                peer.sendall(bytes.fromhex(first["token"]) + ranks.rank.to_bytes(4, "big"))
                self._peers = {peer: 0}
            else:
                self._peers = _accepted(server, ranks.count - 1, bytes.fromhex(first["token"]), limit_s)
        except OSError as error:
            raise RankLost(f"ranks cannot reach each other at {address}: {error}") from error
        # a descriptor, since the number of a process may have become another's by the time it is killed
        neighbours = {rank: other for rank, other in enumerate(everyone) if other["machine"] == machine}
        self._processes = {rank: os.pidfd_open(other["pid"]) for rank, other in neighbours.items() if rank != ranks.rank}
        self.start()

    def run(self) -> None:
        interval = self._limit_s / _BEATS
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                peer.setblocking(False)
                selector.register(peer, selectors.EVENT_READ)
            now = next_beat = monotonic()
            heard = dict.fromkeys(self._peers, now)
            while heard and not self._closing.is_set():
                before, ready = now, selector.select(max(0.0, next_beat - now))
                now = monotonic()
                if now - before > 5 * interval:  # this process was stopped itself
                    heard = dict.fromkeys(heard, now)
                for key, _ in ready:
                    self._hear(key.fileobj, heard, now, selector)
                if now >= next_beat:
                    next_beat = now + interval
                    self._speak(heard, now)

    def _hear(self, peer: Any, heard: dict[socket.socket, float], now: float, selector: selectors.DefaultSelector) -> None:
        """Read what a peer has said, and note when; of one that has said farewell nothing more is expected."""
        data = _received(peer)
        if _FAREWELL in data:
            selector.unregister(peer)
            del heard[peer]
        elif data:
            heard[peer] = now
            waiting_since = self._ranks.waiting_since
            if data.endswith(_AT_WORK) and waiting_since is not None and now - waiting_since > self._patience_s:
                self._end(self._peers[peer], f"lives, but has kept the others waiting for {now - waiting_since:.1f} s")
        else:
            self._end(self._peers[peer], "has ended")

    def _speak(self, heard: dict[socket.socket, float], now: float) -> None:
        """Tell every peer that this rank lives and what it does, and see who has been silent for too long."""
        is_at_work = self._ranks.waiting_since is None and not self._is_with_environments()
        for peer, last in heard.items():
            with suppress(OSError):  # its end, or its silence, is seen when reading
                peer.send(_AT_WORK if is_at_work else _ALIVE)
            if now - last > _SILENCE * self._limit_s:
                self._end(self._peers[peer], f"has not answered for {now - last:.1f} s")

    def _end(self, rank: int, how: str) -> None:
        """End this process, and the lost rank if it is still there and on this machine."""
        if self._closing.is_set():
            return
        if rank in self._processes:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._processes[rank], signal.SIGKILL)
        interrupts.end_with(f"rank {rank} {how}", exit_codes.RANK)

    def wait_for_end(self) -> None:
        """Wait as long as a lost rank may take to be seen; returns only if none is."""
        self.join(self._limit_s)

    def close(self) -> None:
        """Say farewell: this rank ends as the others expect."""
        self._closing.set()
        for peer in self._peers:
            with suppress(OSError):
                peer.send(_FAREWELL)
        self.join(self._limit_s)
        for peer in self._peers:
            peer.close()
        for descriptor in self._processes.values():
            os.close(descriptor)
        self._peers, self._processes = {}, {}


def _server(address: str, backlog: int) -> socket.socket:
    """Listens at the address, or at every address of this machine if that one is not its own, as a gateway's is not.

    Raises:
        RankLost: It cannot listen.
    """
    try:
        family = socket.getaddrinfo(address, None)[0][0]
        try:
            return socket.create_server((address, 0), family=family, backlog=backlog)
        except OSError:
            return socket.create_server(("", 0), family=family, backlog=backlog)
    except OSError as error:
        raise RankLost(f"{address}, the address of the first rank: {error}") from error


def _received(peer: socket.socket) -> bytes:
    """What a peer has said; nothing if its connection is closed."""
    try:
        return peer.recv(4096)
    except BlockingIOError:
        return _ALIVE
    except OSError:
        return b""


def _accepted(server: socket.socket, count: int, token: bytes, limit_s: float) -> dict[socket.socket, int]:
    """The connections of the other ranks.

    Raises:
        OSError: They did not come in time.
    """
    peers: dict[socket.socket, int] = {}
    deadline = monotonic() + limit_s
    with server:
        while len(peers) < count:
            server.settimeout(max(0.01, deadline - monotonic()))
            peer, _ = server.accept()
            peer.settimeout(max(0.01, deadline - monotonic()))
            said = peer.recv(len(token) + 4, socket.MSG_WAITALL)
            if secrets.compare_digest(said[: len(token)], token) and len(said) == len(token) + 4:
                peers[peer] = int.from_bytes(said[len(token) :], "big")
            else:
                peer.close()  # a stranger
    return peers


def boot_id() -> str:
    """The same for two processes if they run on the same machine, also in containers."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
