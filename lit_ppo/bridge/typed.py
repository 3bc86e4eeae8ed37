"""Actions as a person types them, and observations as a person reads them, when a worker is driven by hand."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.faults import message_of
from lit_ppo.contract import Contract
from lit_ppo.errors import ProtocolError, shown
from lit_ppo.spaces import EnvSpec, Row


def typed_actions(actions: list[Any], spec: EnvSpec, num_envs: int) -> NDArray[Any]:
    """Typed actions, one for each environment, as an array that the contract admits.

    Raises:
        ProtocolError: They are something else.
    """
    leaf = spec.action
    try:
        array = np.array(actions)
        if len(array) != num_envs or array.dtype.kind not in ("iu" if leaf.is_integer else "iuf"):
            raise ValueError(f"expected {num_envs} actions of {leaf.kind}, got {shown(actions)}")
        return Contract(spec).check_actions(array.astype(leaf.dtype))
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"action: {message_of(error)}") from None


def shown_rows(row: Row, rows: NDArray[np.uint8]) -> Any:
    """Observations, shape (N, size), as plain data: a list, or by path if they have parts."""
    leaves = {path: leaf.tolist() for path, leaf in row.views(np.ascontiguousarray(rows)).items()}
    return leaves[""] if list(leaves) == [""] else leaves
