"""A rank that ends or falls silent ends the others; one that says farewell, and a stranger, do not."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from lit_ppo import exit_codes, interrupts
from lit_ppo.rank_watch import RankWatch, _server
from lit_ppo.ranks import Ranks
from tests.patience import patient

# the thread of a watch ends as its process would
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
LIMIT_S = patient(0.5)
PATIENCE_S = patient(0.2)
Ends = list[tuple[str, int]]
Watch = Callable[["SecondRank"], RankWatch]


class SecondRank:
    """Stands for the other rank of two: connects as it does when the first one gathers, and then says nothing by itself."""

    count, rank = 2, 0
    waiting_since: float | None = None  # of the first rank

    def __init__(self, *first_words: bytes) -> None:
        self.sockets: list[socket.socket] = []
        self._first_words = first_words

    def gather_bytes(self, own: bytes) -> list[bytes]:
        first: dict[str, Any] = json.loads(own)
        for words in (*self._first_words, bytes.fromhex(first["token"]) + (1).to_bytes(4, "big")):
            self.sockets.append(socket.create_connection(("127.0.0.1", first["port"])))
            self.sockets[-1].sendall(words)
        return [own, json.dumps(first | {"machine": "another"}).encode()]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    """What this process would have ended with; the thread ends instead."""
    seen: list[tuple[str, int]] = []

    def end_with(reason: str, code: int) -> None:
        seen.append((reason, code))
        raise SystemExit

    monkeypatch.setattr(interrupts, "end_with", end_with)
    return seen


@pytest.fixture
def watch() -> Iterator[Callable[[SecondRank], RankWatch]]:
    """Makes the watch of the first of two ranks."""
    made: list[tuple[RankWatch, SecondRank]] = []

    def watch(second: SecondRank) -> RankWatch:
        made.append((RankWatch(second, "127.0.0.1", LIMIT_S, PATIENCE_S, lambda: False), second))  # type: ignore[arg-type]
        return made[-1][0]

    yield watch
    for watching, second in made:
        watching.close()
        for each in second.sockets:
            each.close()


def test_rank_that_ends_is_seen(ends: Ends, watch: Watch) -> None:
    second = SecondRank()
    watching = watch(second)
    second.sockets[-1].close()
    watching.join(patient(10.0))
    assert ends == [("rank 1 has ended", exit_codes.RANK)]


def test_rank_that_is_silent_is_lost_before_the_limit(ends: Ends, watch: Watch) -> None:
    begin = monotonic()
    watching = watch(SecondRank())
    watching.join(patient(10.0))
    [(reason, code)] = ends
    assert reason.startswith("rank 1 has not answered for ") and code == exit_codes.RANK
    assert monotonic() - begin > 0.3


def test_rank_that_is_at_work_for_too_long_while_another_waits_for_it_is_lost(ends: Ends, watch: Watch) -> None:
    second = SecondRank()
    second.waiting_since = monotonic() - 100.0
    watching = watch(second)
    second.sockets[-1].sendall(b"..w")
    watching.join(patient(10.0))
    [(reason, code)] = ends
    assert reason.startswith("rank 1 lives, but has kept the others waiting for 100.") and code == exit_codes.RANK


@pytest.mark.parametrize(("waits_s", "says"), [(100.0, b"w."), (0.0, b"w"), (None, b"w")])
def test_rank_that_waits_or_is_at_work_for_a_short_time_is_not_lost(
    waits_s: float | None, says: bytes, ends: Ends, watch: Watch
) -> None:
    second = SecondRank()
    second.waiting_since = None if waits_s is None else monotonic() - waits_s
    watching = watch(second)
    second.sockets[-1].sendall(says)
    second.sockets[-1].sendall(b"x")
    watching.join(patient(10.0))
    assert ends == []


def test_rank_says_whether_it_is_at_work(ends: Ends, watch: Watch) -> None:
    second = SecondRank()
    watch(second)
    peer = second.sockets[-1]

    def next_word() -> bytes:
        peer.sendall(b".")  # else it would be lost
        return peer.recv(1)

    assert next_word() == b"w"
    second.waiting_since = monotonic()
    assert b"." in (next_word() for _ in range(100))  # asks until it is said
    assert ends == []


def test_rank_that_says_farewell_may_end_and_a_stranger_is_not_taken_for_one(ends: Ends, watch: Watch) -> None:
    second = SecondRank(bytes(20))
    watching = watch(second)
    assert second.sockets[0].recv(1) == b""  # the stranger's connection is closed
    second.sockets[-1].sendall(b".x")
    second.sockets[-1].close()
    watching.join(patient(10.0))
    assert not watching.is_alive() and ends == []


def test_two_ranks_that_live_do_not_end_each_other(ends: Ends) -> None:
    said: dict[int, bytes] = {}
    both = threading.Barrier(2)

    def ranks(rank: int) -> Any:
        ranks = Ranks()
        ranks.count, ranks.rank = 2, rank

        def gather_bytes(own: bytes) -> list[bytes]:
            said[rank] = own
            both.wait(patient(10.0))
            return [said[0], said[1]]

        ranks.gather_bytes: Callable[[bytes], list[bytes]] = gather_bytes  # type: ignore[method-assign, misc]
        return ranks

    watches: list[RankWatch] = []

    def make(rank: int) -> None:
        watches.append(RankWatch(ranks(rank), "127.0.0.1", LIMIT_S, PATIENCE_S, lambda: False))

    made = [threading.Thread(target=make, args=(rank,)) for rank in (0, 1)]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join(patient(10.0))
    watches[0].join(2 * LIMIT_S)  # long enough for either to be missed
    assert all(watching.is_alive() for watching in watches)
    for watching in watches:
        watching.close()
    assert ends == []


def test_first_rank_listens_everywhere_if_its_address_is_another_machines() -> None:
    for address, at in (("127.0.0.1", "127.0.0.1"), ("192.0.2.1", "0.0.0.0")):  # the second one belongs to nobody
        with _server(address, 1) as server:
            assert server.getsockname()[0] == at
