"""Ranks: the processes that train together, and what they tell each other: tensors and bytes, never pickled objects."""

from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Final
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from lit_ppo.errors import RankLost

# its name from torch 2.13 on; the older one warns there
_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_MEETING_S: Final = 0.01  # between two looks into the store


def attempt_name(store: Store, rank: int, count: int) -> str:
    """A name that the ranks of this attempt agree on, in a store where ranks of earlier attempts have left theirs.

    Every rank names itself anew. The first one answers each name that it finds, until all ranks have said that they heard it.

    Args:
        store: In which all can read and write.
        rank: This process's own, from 0.
        count: Number of ranks.
    """
    mine = uuid4().hex
    if rank > 0:
        store.set(f"rank/{rank}", mine)
        while not store.check([f"attempt/{mine}"]):
            sleep(_MEETING_S)
        attempt = store.get(f"attempt/{mine}").decode()
        store.set(f"heard/{attempt}/{rank}", "")
        return attempt
    waiting = set(range(1, count))
    while waiting:
        for other in list(waiting):
            if store.check([f"rank/{other}"]):
                store.set(f"attempt/{store.get(f'rank/{other}').decode()}", mine)
            if store.check([f"heard/{mine}/{other}"]):
                waiting.remove(other)
        sleep(_MEETING_S)
    return mine


class Ranks:
    """All ranks of a run, as one of them sees them.

    Every rank must call the same methods in the same order. With one rank nothing is sent.

    Args:
        count: R.
        rank: This process's own, from 0.
    """

    def __init__(self, count: int = 1, rank: int = 0) -> None:
        self.count, self.rank = count, rank
        needs_own_group = count > 1 and dist.get_backend() != "gloo"  # others cannot send what is not on an accelerator
        self.waiting_since: float | None = None  # for the others, by `time.monotonic`; None while it does something else
        self.await_end: Callable[[], None] = lambda: None  # called when a rank was lost; may end the process
        self._on_host = dist.new_group(backend="gloo") if needs_own_group else None

    def gather(self, own: Tensor) -> Tensor:
        """The tensors of all ranks, joined along the first axis in the order of the ranks.

        Args:
            own: Of the same shape, (K, ...), and dtype on every rank.

        Returns:
            Shape (R * K, ...); `own` itself with one rank.

        Raises:
            RankLost: A rank has ended.
        """
        if self.count == 1:
            return own
        if own.dtype == torch.bool:
            return self.gather(own.view(torch.uint8)).view(torch.bool)
        joined = own.new_empty((self.count * len(own), *own.shape[1:]))
        self.waiting_since = monotonic()
        try:
            _gather_single(joined, own.contiguous(), group=self._on_host if own.device.type == "cpu" else None)
        except RuntimeError as error:
            self.await_end()
            raise RankLost(f"a rank was lost: {str(error).strip().partition(chr(10))[0][:200]}") from error
        finally:
            self.waiting_since = None
        return joined

    def gather_bytes(self, own: bytes) -> list[bytes]:
        """The bytes of all ranks, of any length, in the order of the ranks.

        Raises:
            RankLost: A rank has ended.
        """
        if self.count == 1:
            return [own]
        lengths: Sequence[int] = self.gather(torch.tensor([len(own)])).tolist()
        padded = torch.zeros((1, max(1, *lengths)), dtype=torch.uint8)
        padded[0, : len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else padded[0, :0]
        rows = self.gather(padded).numpy()
        return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
