"""What the ranks of a run tell each other of a rollout, of greedy episodes, and of a failure."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_ppo import exit_codes
from lit_ppo.errors import RankFailed
from lit_ppo.ranks import Ranks
from lit_ppo.rollout import Outcomes


def raise_together(ranks: Ranks, failure: BaseException | None, code: int | None) -> None:
    """Raise on every rank if a part of the work that each does alone has failed on one.

    Args:
        ranks: Of the run.
        failure: What this rank would raise; None if it has not failed.
        code: Exit code of that failure; None for that of an unexpected error.

    Raises:
        BaseException: `failure` itself.
        RankFailed: That of the first rank that failed.
    """
    said = b"" if failure is None else json.dumps([code or exit_codes.RANK, str(failure)]).encode()
    messages = ranks.gather_bytes(said)
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message:
            code, text = json.loads(message)
            raise RankFailed(f"rank {rank}: {text}", code)


def everywhere(ranks: Ranks, own: Outcomes, notes: Sequence[int]) -> tuple[Outcomes, list[list[int]]]:
    """The outcomes of a rollout on all ranks.

    Args:
        ranks: Of the run.
        own: Of this rank's environments, on the CPU.
        notes: Whole numbers that go along, as many on every rank.

    Returns:
        Outcomes of all environments, and the notes of each rank.
    """
    parts = [torch.tensor(notes, dtype=torch.int64), *own]
    packed = torch.cat([part.contiguous().view(-1).view(torch.uint8) for part in parts])
    rows = ranks.gather(packed.unsqueeze(0))
    noted, *columns = torch.split(rows, [part.numel() * part.element_size() for part in parts], dim=1)

    def joined(column: Tensor, like: Tensor) -> Tensor:
        of_ranks = column.contiguous().view(-1).view(like.dtype).view(ranks.count, *like.shape)
        return torch.cat(list(of_ranks), dim=-1)  # environments are the last axis

    outcomes = Outcomes(*(joined(column, like) for column, like in zip(columns, own, strict=True)))
    return outcomes, noted.contiguous().view(-1).view(torch.int64).view(ranks.count, -1).tolist()
