"""Normalisation by running moments: observations to mean 0 and variance 1, rewards to returns of variance 1.

The moments are float64 and change once per rollout, after it, so every observation of a rollout is normalised alike. The
functions that compute new moments are pure; only `RunningMoments.replace` and the two `commit` methods store anything.

B is a number of rows, T the horizon, N the number of environments.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from lit_ppo.compat_torch import Float64Buffers
from lit_ppo.errors import ConfigError
from lit_ppo.networks import is_image
from lit_ppo.spaces import ChannelOrder, Leaf

_EPSILON: Final = 1e-8  # added to a variance, so that what never changes is not divided by 0
# Numbers converted to float64 at a time, 32 MiB: a rollout of images would need eight times its own memory.
_NUMBERS_OF_A_CHUNK: Final = 1 << 22


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of many values, component by component; float64."""

    count: Tensor  # type: ignore[assignment]  # scalar, a whole number; hides `tuple.count`
    mean: Tensor  # (*shape); 0 if count is 0
    m2: Tensor  # (*shape); sum of (x - mean)^2, so the variance is m2 / count


# -- moments


@torch.no_grad()
def moments_of(values: Tensor, weights: Tensor | None = None) -> Moments:
    """The moments of the rows with weight 1.

    Two passes: m = mean(x), then mean = m + mean(x - m) and m2 = sum((x - m)^2) - sum(x - m)^2 / count. Without rounding the
    corrections are 0; with it they keep the digits of a variance that is small beside the mean.

    Large inputs are converted to float64 and counted a chunk of rows at a time, and the chunks are merged.

    Args:
        values: Shape (B, *shape), any real dtype; B may be 0.
        weights: Shape (B,), bool or 0 and 1. Rows of weight 0 are ignored, even if they are not finite. None: all are 1.

    Raises:
        ValueError: `weights` is not of shape (B,).

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", the corrected two-pass algorithm.
    """
    if weights is not None and weights.shape != values.shape[:1]:
        raise ValueError(f"weights: expected shape {tuple(values.shape[:1])}, got {tuple(weights.shape)}")
    zeros = torch.zeros(values.shape[1:], dtype=torch.float64, device=values.device)
    total = Moments(zeros.new_zeros(()), zeros, zeros)
    size = max(1, _NUMBERS_OF_A_CHUNK // max(1, math.prod(values.shape[1:])))
    for begin in range(0, len(values), size):
        rows = slice(begin, begin + size)
        total = merged(total, _moments_of_chunk(values[rows], None if weights is None else weights[rows]))
    return total


def _moments_of_chunk(values: Tensor, weights: Tensor | None) -> Moments:
    numbers = values.to(torch.float64)
    if weights is None:
        counts = None
        count = numbers.new_full((), len(numbers))
    else:
        counts = (weights != 0).view(-1, *[1] * (numbers.dim() - 1))  # (B,) -> (B, 1, ...)
        count = counts.sum(dtype=torch.float64)
        numbers = torch.where(counts, numbers, 0.0)  # not a product: NaN * 0 is NaN
    divisor = count.clamp(min=1.0)
    mean = numbers.sum(0) / divisor
    deviations = numbers - mean
    if counts is not None:
        deviations = torch.where(counts, deviations, 0.0)
    rest = deviations.sum(0)
    m2 = (deviations.square_().sum(0) - rest.square() / divisor).clamp(min=0.0)
    return Moments(count, mean + rest / divisor, m2)


@torch.no_grad()
def merged(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of values together.

    delta = mean_b - mean_a,  n = n_a + n_b
    mean = mean_a + delta * n_b / n,  m2 = m2_a + m2_b + delta^2 * n_a * n_b / n

    Args:
        a, b: Of the same shape; either may have count 0. If one has, the result equals the other.

    Returns:
        New tensors.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances",
    http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.
    """
    count = a.count + b.count
    share = b.count / count.clamp(min=1.0)
    delta = b.mean - a.mean
    return Moments(count, a.mean + delta * share, a.m2 + b.m2 + delta.square() * (a.count * share))


def deviation(moments: Moments) -> Tensor:
    """What values are divided by: sqrt(m2 / count + 1e-8), shape (*shape), float64; 1 if count is 0."""
    variance = moments.m2 / moments.count.clamp(min=1.0)
    return torch.where(moments.count > 0, (variance + _EPSILON).sqrt(), 1.0)


class RunningMoments(Float64Buffers):
    """Moments as buffers of a module: moved and saved with it, but never converted from float64.

    Beside them are `center`, the mean, and `scale`, 1 / `deviation`, in the dtype of the module: what is needed to normalise
    quickly. They are not saved, but follow from the moments after `replace`, `load_state_dict` and conversions. They keep
    their memory in the first two, so a compiled program sees the new numbers.

    Args:
        shape: Of one value.
        is_wide: Whether values are more exact than float32. Then `center` is float64, too: it is subtracted before rounding.
    """

    float64_buffers: tuple[str, ...] = ("count", "mean", "m2")
    count: Tensor
    mean: Tensor
    m2: Tensor
    center: Tensor  # (*shape)
    scale: Tensor  # (*shape)

    def __init__(self, shape: Sequence[int], is_wide: bool = False) -> None:
        super().__init__()
        if is_wide:
            self.float64_buffers = (*self.float64_buffers, "center")
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        for name in ("mean", "m2"):
            self.register_buffer(name, torch.zeros(tuple(shape), dtype=torch.float64))
        center_dtype = torch.float64 if is_wide else None
        self.register_buffer("center", torch.zeros(tuple(shape), dtype=center_dtype), persistent=False)
        self.register_buffer("scale", torch.ones(tuple(shape)), persistent=False)
        self.register_load_state_dict_post_hook(_derive_after_loading)  # type: ignore[no-untyped-call]

    @property
    def moments(self) -> Moments:
        """Copies: a later `replace` does not change them."""
        return Moments(self.count.clone(), self.mean.clone(), self.m2.clone())

    @property
    def variance(self) -> Tensor:
        """Population variance, m2 / count, shape (*shape), float64; 0 if count is 0."""
        return self.m2 / self.count.clamp(min=1.0)

    @torch.no_grad()
    def replace(self, moments: Moments) -> None:
        """Store other moments, in place.

        Raises:
            ValueError: They are of another shape.
        """
        if moments.count.dim() or not moments.mean.shape == moments.m2.shape == self.mean.shape:
            shapes = [tuple(part.shape) for part in moments]
            raise ValueError(f"moments: expected shapes (), {tuple(self.mean.shape)} and the same again, got {shapes}")
        for buffer, part in zip((self.count, self.mean, self.m2), moments, strict=True):
            buffer.copy_(part)
        self._derive()

    def after_conversion(self) -> None:
        """`center` and `scale` anew from the moments, since converting them would keep rounding errors."""
        self._derive()

    @torch.no_grad()
    def _derive(self) -> None:
        self.center.copy_(self.mean)
        self.scale.copy_(deviation(Moments(self.count, self.mean, self.m2)).reciprocal())


def _derive_after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    cast(RunningMoments, module).after_conversion()


# -- observations


class ObservationNormalizer(nn.Module):
    """Normalises some leaves of observations: clip((x - mean) / sqrt(variance + 1e-8), -clip, clip).

    Before the first `commit`, mean is 0 and the divisor 1. Training and evaluation mode do the same.

    Args:
        leaves: What is normalised.
        clip: Largest magnitude of a normalised number, in standard deviations; None for no limit.
    """

    def __init__(self, leaves: Sequence[Leaf], clip: float | None) -> None:
        super().__init__()
        # in a list, since a path may be "" or contain dots, which the name of a module may not
        is_wide = [np.promote_types(leaf.dtype, np.float32) == np.float64 for leaf in leaves]
        self.leaves = nn.ModuleList(RunningMoments(leaf.shape, wide) for leaf, wide in zip(leaves, is_wide, strict=True))
        self.paths = tuple(leaf.path for leaf in leaves)
        self._clip = clip

    def forward(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Normalised leaves in the dtype of the module, the others as they are; in the order of `obs`.

        float64 and whole numbers of more than 16 bits are centred in float64, and only then rounded.

        Args:
            obs: By path, shape (B, *leaf.shape), any real dtype.
        """
        normalized, clip = dict(obs), self._clip
        for path, moments in zip(self.paths, cast(list[RunningMoments], self.leaves), strict=True):
            center, scale = moments.center, moments.scale
            numbers = (obs[path].to(center.dtype) - center).to(scale.dtype) * scale
            normalized[path] = numbers if clip is None else numbers.clamp(-clip, clip)
        return normalized

    def moments_of(self, obs: Mapping[str, Tensor], weights: Tensor | None = None) -> tuple[Moments, ...]:
        """The moments of some observations alone, one for each leaf, in the order of the constructor.

        Args:
            obs: Not normalised, by path, shape (B, *leaf.shape), on the device of the module.
            weights: As in `moments_of`.
        """
        return tuple(moments_of(obs[path], weights) for path in self.paths)

    def updated(self, *more: Sequence[Moments]) -> tuple[Moments, ...]:
        """What the moments become after more observations, added in the order of the arguments; nothing is stored.

        Args:
            more: Of `moments_of`.
        """
        now = [leaf.moments for leaf in cast(list[RunningMoments], self.leaves)]
        for of_leaves in more:
            now = [merged(before, new) for before, new in zip(now, of_leaves, strict=True)]
        return tuple(now)

    def packed(self, moments: Sequence[Moments]) -> Tensor:
        """Moments of all leaves, one number after the other, shape (K,), float64: what ranks exchange."""
        return torch.cat([part.flatten() for of_leaf in moments for part in of_leaf])

    def unpacked(self, numbers: Tensor) -> tuple[Moments, ...]:
        """What `packed` was given."""
        shapes = [part.shape for leaf in cast(list[RunningMoments], self.leaves) for part in (leaf.count, leaf.mean, leaf.m2)]
        parts = [
            part.view(shape) for part, shape in zip(torch.split(numbers, [s.numel() for s in shapes]), shapes, strict=True)
        ]
        return tuple(Moments(*parts[k : k + 3]) for k in range(0, len(parts), 3))

    def commit(self, moments: Sequence[Moments]) -> None:
        """Store what `updated` returned."""
        for leaf, new in zip(cast(list[RunningMoments], self.leaves), moments, strict=True):
            leaf.replace(new)


def normalized_leaves(seen: Sequence[Leaf], wanted: bool | Sequence[str], channels: ChannelOrder = "auto") -> tuple[Leaf, ...]:
    """The leaves that the setting `model.normalize_observations` asks to normalise, in the order of `seen`.

    Args:
        seen: The leaves that the networks see.
        wanted: True for every Box of floats that is not an image, False for none; or the paths of any Boxes of numbers.
        channels: Where images have their channels.

    Raises:
        ConfigError: `wanted` is True and there is no such leaf, or it names a path that is unknown or has no numbers.
    """
    numbers = [leaf for leaf in seen if leaf.kind == "box" and leaf.dtype != "bool"]
    if wanted is False:
        return ()
    if wanted is True:
        chosen = tuple(leaf for leaf in numbers if not leaf.is_integer and not is_image(leaf, channels))
        if not chosen:
            use = f"name some of {_listed(numbers)}" if numbers else "use false"
            raise ConfigError(
                "model.normalize_observations: expected a Box of floats that is not an image in the observation, got none; "
                + use
            )
        return chosen
    if isinstance(wanted, str):  # a sequence of letters, and "" of none
        raise ConfigError(f"model.normalize_observations: expected true, false or a list of paths, got {wanted!r}")
    known = {leaf.path: leaf for leaf in seen}
    for path in wanted:
        if path not in known:
            raise ConfigError(f"model.normalize_observations: expected paths among {_listed(seen)}, got {path!r}")
        if known[path] not in numbers:
            kind = "Box of bool" if known[path].kind == "box" else known[path].kind
            raise ConfigError(f"model.normalize_observations: expected leaves of numbers, got {path!r}, a {kind}")
    return tuple(leaf for leaf in seen if leaf.path in wanted)


def _listed(leaves: Sequence[Leaf]) -> str:
    return ", ".join(repr(leaf.path) for leaf in leaves)


# -- rewards


class RewardNormalizer(nn.Module):
    """Scales rewards by the standard deviation of the running discounted return; the mean stays, since it tells good from bad.

    Stable-Baselines3 and Gymnasium start from a variance of 1 and update at every step; here the first update alone decides
    the first moments. At the end of an episode the return is cut after the last reward, as in Stable-Baselines3; Gymnasium
    cuts before it, and only if the episode terminated.

    Args:
        gamma: Discount factor.
        clip: Largest magnitude of a scaled reward; None for no limit.

    Sources: Stable-Baselines3, `VecNormalize`,
    https://github.com/DLR-RM/stable-baselines3/blob/master/stable_baselines3/common/vec_env/vec_normalize.py; Gymnasium,
    `NormalizeReward`, https://gymnasium.farama.org/api/wrappers/reward_wrappers; Engstrom et al. 2020, "Implementation Matters
    in Deep Policy Gradients", https://arxiv.org/abs/2005.12729, reward scaling.
    """

    def __init__(self, gamma: float, clip: float | None) -> None:
        super().__init__()
        self.returns = RunningMoments(())
        self._gamma, self._clip = gamma, clip

    @torch.no_grad()
    def updated(self, rewards: Tensor, boundaries: Tensor, weights: Tensor | None, running: Tensor) -> tuple[Moments, Tensor]:
        """What the moments of the running return become after a rollout, and where the return stands; nothing is stored.

        R_t = gamma * (1 - boundary_{t-1}) * R_{t-1} + r_t

        A row that is not a transition follows an episode that ended or was given up. So its reward is ignored, its return
        does not count, and the return after it is 0, as after a boundary.

        Args:
            rewards: Not scaled, shape (T, N), T at least 1.
            boundaries: Whether an episode ended in the step, terminated or truncated; shape (T, N), bool.
            weights: False where a row is not a transition; shape (T, N), bool. None: all are transitions.
            running: R before the rollout, 0 where an episode begins; shape (N,), float64.

        Returns:
            The moments of all R_t so far, and R after the rollout, shape (N,), float64, 0 where an episode ended.

        Raises:
            ValueError: The shapes do not fit.
        """
        valid = torch.ones_like(boundaries) if weights is None else weights
        if rewards.dim() != 2 or not len(rewards) or not rewards.shape == boundaries.shape == valid.shape:
            shapes = [tuple(rows.shape) for rows in (rewards, boundaries, valid)]
            raise ValueError(f"expected rewards, boundaries and weights of one shape (T, N), got {shapes}")
        if running.shape != rewards.shape[1:] or running.dtype != torch.float64:
            raise ValueError(
                f"running: expected shape {tuple(rewards.shape[1:])}, float64, got {tuple(running.shape)}, {running.dtype}"
            )
        going_on = valid & ~boundaries
        counted = torch.where(valid, rewards.to(torch.float64), 0.0)
        returns = torch.empty_like(counted)
        # the first step continues `running`, each other one the step before it
        decays = self._gamma * torch.cat([torch.ones_like(going_on[:1]), going_on[:-1]]).to(torch.float64)
        before = running
        for reward, decay, now in zip(counted.unbind(), decays.unbind(), returns.unbind(), strict=True):
            before = torch.addcmul(reward, decay, before, out=now)
        moments = merged(self.returns.moments, moments_of(returns.flatten(), weights if weights is None else weights.flatten()))
        return moments, torch.where(going_on[-1], returns[-1], 0.0)

    def scaled(self, rewards: Tensor, moments: Moments) -> Tensor:
        """clip(r / sqrt(variance + 1e-8), -clip, clip); not divided if `moments` has count 0.

        Args:
            rewards: Any shape, float32 or float64.
            moments: Of the running return, from `updated` or `returns.moments`.

        Returns:
            The shape and dtype of `rewards`.
        """
        scaled = rewards / deviation(moments).to(rewards.dtype)
        return scaled if self._clip is None else scaled.clamp(-self._clip, self._clip)

    def commit(self, moments: Moments) -> None:
        """Store the moments that `updated` returned."""
        self.returns.replace(moments)
