"""The environments, by family."""

from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        family: Which list it is on.
        env_id: As a user types it.
        package: What has to be importable, and the extra that installs it; None if nothing besides Gymnasium.
        data: Option of `data` besides the id, one at most.
    """

    family: str
    env_id: str
    package: tuple[str, str] | None = None
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For files and tables."""
        parts = [self.env_id.rpartition(":")[2].replace("/", "-"), *(str(value) for value in _words(self.data))]
        return "-".join(parts)


def _words(data: dict[str, Any]) -> list[str]:
    values = [*data.get("env_kwargs", {}).values(), *data.get("wrappers", []), *data.get("obs_keys", [])]
    return [str(value).rpartition(".")[2] for value in values]


def _rows(family: str, ids: str, prefix: str = "", package: tuple[str, str] | None = None, **data: Any) -> list[Row]:
    return [Row(family, f"{prefix}{env_id}", package, data) for env_id in ids.split()]


_BOX2D, _MUJOCO = ("Box2D", "box2d"), ("mujoco", "mujoco")
_ALE, _MINIGRID, _HIGHWAY = ("ale_py", "atari"), ("minigrid", "minigrid"), ("highway_env", "highway")

ROWS: Final = [
    *_rows("classic control", "CartPole-v0 CartPole-v1 MountainCar-v0 MountainCarContinuous-v0 Pendulum-v1 Acrobot-v1"),
    *_rows("toy text", "Blackjack-v1 FrozenLake-v1 FrozenLake8x8-v1 CliffWalking-v1 CliffWalkingSlippery-v1 Taxi-v4"),
    *_rows(
        "Box2D",
        "LunarLander-v3 LunarLanderContinuous-v3",
        package=_BOX2D,
    ),
    # its physics engine keeps something from one episode to the next
    *_rows("Box2D", "BipedalWalker-v3 BipedalWalkerHardcore-v3", package=_BOX2D, remake_each_episode=True),
    *_rows("Box2D", "CarRacing-v3", package=_BOX2D),
    *_rows(
        "MuJoCo",
        "Reacher-v5 Pusher-v5 InvertedPendulum-v5 InvertedDoublePendulum-v5 HalfCheetah-v5 Hopper-v5 Swimmer-v5 Walker2d-v5 "
        "Ant-v5 Humanoid-v5 HumanoidStandup-v5",
        package=_MUJOCO,
    ),
    *_rows(
        "ALE, pixels",
        "ALE/Pong-v5 ALE/Breakout-v5 ALE/SpaceInvaders-v5 ALE/MsPacman-v5 ALE/Seaquest-v5 ALE/Qbert-v5 ALE/BeamRider-v5 "
        "ALE/Enduro-v5",
        package=_ALE,
    ),
    *_rows(
        "ALE, RAM",
        "ALE/Pong-v5 ALE/Breakout-v5 ALE/SpaceInvaders-v5 ALE/MsPacman-v5 ALE/Seaquest-v5 ALE/Qbert-v5",
        package=_ALE,
        env_kwargs={"obs_type": "ram"},
    ),
    *_rows(
        "MiniGrid, image",
        "MiniGrid-Empty-5x5-v0 MiniGrid-DoorKey-5x5-v0 MiniGrid-FourRooms-v0 MiniGrid-LavaGapS5-v0 MiniGrid-MultiRoom-N2-S4-v0 "
        "MiniGrid-Unlock-v0 MiniGrid-KeyCorridorS3R1-v0 MiniGrid-Dynamic-Obstacles-5x5-v0 MiniGrid-MemoryS7-v0 "
        "BabyAI-GoToRedBall-v0",
        package=_MINIGRID,
        wrappers=["minigrid.wrappers.ImgObsWrapper"],
    ),
    *_rows(
        "MiniGrid, flat",
        "MiniGrid-Empty-5x5-v0 MiniGrid-DoorKey-5x5-v0",
        package=_MINIGRID,
        wrappers=["minigrid.wrappers.FlatObsWrapper"],
    ),
    *_rows(
        "MiniGrid, parts",
        "MiniGrid-DoorKey-5x5-v0 BabyAI-GoToLocal-v0",
        package=_MINIGRID,
        obs_keys=["image", "direction"],
    ),
    *_rows(
        "highway",
        "highway-v0 highway-fast-v0 merge-v0 roundabout-v0 parking-v0 intersection-v0 racetrack-v0 exit-v0 two-way-v0 "
        "u-turn-v0",
        "highway_env:",  # `highway-` alone is known, the others are not named after their package
        _HIGHWAY,
    ),
]
