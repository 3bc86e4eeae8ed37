"""What a run has come to, as `run.json` in its directory: small, rewritten at every evaluation, read without torch."""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args

from lit_ppo.atomic_file import read_json, write_json

STATUS_NAME: Final = "run.json"
State = Literal["running", "finished", "solved", "interrupted", "failed"]
_END_OF_COUNTS, _END_OF_PROCESSES, _END_OF_TIME = 1 << 63, 1 << 31, 1 << 37  # the last in seconds since 1970


@dataclass(frozen=True)
class Status:
    """What a run has come to.

    Attributes:
        env_id: Its environment.
        seed: `seed_everything`.
        started: When this process started or continued it, in seconds since 1970.
        updated: When this was written, in seconds since 1970.
        env_steps: Collected so far.
        updates: Made so far.
        total_env_steps: Its length; None if it is unlimited.
        best_return: Best mean return of an evaluation after the first update; None before that.
        last_return: Mean return of the newest evaluation.
        threshold: Mean return that counts as solved; None if there is none.
        solved_at: Env steps at which it was solved; None if it was not.
        state: `running`, also if its process was killed; `interrupted` by a signal, `failed` with an error.
        pid: Its process.
        launch: The launch by torchrun that it belongs to, as `elastic.launch` names it; None without torchrun.
    """

    env_id: str
    seed: int
    started: float
    updated: float
    env_steps: int
    updates: int
    total_env_steps: int | None
    best_return: float | None
    last_return: float | None
    threshold: float | None
    solved_at: int | None
    state: State
    pid: int
    launch: str | None

    def write(self, directory: Path) -> None:
        """Replace the file in a run's directory.

        Raises:
            OSError: It cannot be written.
        """
        write_json(directory / STATUS_NAME, asdict(self))


_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "env_id": (str,),
    "state": (str,),
    "launch": (str, NoneType),
    **dict.fromkeys(("seed", "env_steps", "updates", "pid"), (int,)),
    **dict.fromkeys(("total_env_steps", "solved_at"), (int, NoneType)),
    **dict.fromkeys(("started", "updated"), (int, float)),
    **dict.fromkeys(("best_return", "last_return", "threshold"), (int, float, NoneType)),
}

_RANGES: Final = {
    ("seed", "env_steps", "updates", "total_env_steps", "solved_at"): _END_OF_COUNTS,
    ("pid",): _END_OF_PROCESSES,
    ("started", "updated"): _END_OF_TIME,
}


def read_status(directory: Path) -> Status | None:
    """What the run in a directory has come to; None if it has not said so, as one that is just being started.

    Raises:
        ValueError: The file is damaged; the message names it and says what is wrong.
        OSError: It cannot be read.
    """
    path = directory / STATUS_NAME
    try:
        data = read_json(path)
    except FileNotFoundError:
        return None
    try:
        return _status(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _status(data: Any) -> Status:
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    if missing := [field.name for field in fields(Status) if field.name not in data]:
        raise ValueError(f"expected the keys of a run's status, {missing[0]} is missing")
    values = {name: data[name] for name in _KINDS}
    for name, value in values.items():
        if type(value) not in _KINDS[name]:
            raise ValueError(f"{name}: expected {_KINDS[name][0].__name__}, got {str(value)[:80]}")
    for names, end in _RANGES.items():
        for name in names:
            if values[name] is not None and not 0 <= values[name] < end:
                raise ValueError(f"{name}: expected 0 to {end - 1}, got {str(values[name])[:80]}")
    for name in ("best_return", "last_return", "threshold"):
        if values[name] is not None and not abs(values[name]) <= sys.float_info.max:
            raise ValueError(f"{name}: expected a finite number, got {str(values[name])[:80]}")
    if values["state"] not in get_args(State):
        raise ValueError(f"state: expected one of {', '.join(get_args(State))}, got {values['state'][:80]}")
    return Status(**values)
