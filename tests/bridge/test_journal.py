"""The journal: every bit counts in a digest, and every episode under way comes back, against a model of plain lists."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ppo.bridge import journal as journal_module
from lit_ppo.bridge.journal import Journal, digest_rows

# -- digests


@given(st.data())
def test_any_flipped_bit_changes_the_digest_of_its_row_and_of_no_other(data: st.DataObject) -> None:
    lead, size = data.draw(st.sampled_from([(3,), (2, 3)])), data.draw(st.sampled_from([1, 3, 4, 12, 16, 33]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = rng.integers(0, 256, (*lead, size), np.uint8)
    rewards = np.frombuffer(rng.bytes(8 * int(np.prod(lead))), np.float64).reshape(lead).copy()
    with_rewards = data.draw(st.booleans())

    def digests() -> np.ndarray:
        return digest_rows(rows, rewards) if with_rewards else digest_rows(rows)

    before = digests()
    assert before.shape == lead and before.dtype == np.uint64
    changed = rewards if with_rewards and data.draw(st.booleans()) else rows
    raw = changed.reshape(-1).view(np.uint8)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << (bit % 8)
    bytes_per_row = len(raw) // int(np.prod(lead))
    differs = (digests() != before).reshape(-1)
    assert np.flatnonzero(differs).tolist() == [bit // 8 // bytes_per_row]


def test_any_flipped_bit_of_an_image_changes_its_digest() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 84 * 84 * 3), np.uint8)
    before = digest_rows(images, np.zeros(2))
    for at in [0, 1, 2, 3, 84 * 84 * 3 - 1, *rng.integers(0, 84 * 84 * 3, 60).tolist()]:
        for bit in range(8):
            images[1, at] ^= 1 << bit
            assert (digest_rows(images, np.zeros(2)) != before).tolist() == [False, True]
            images[1, at] ^= 1 << bit


def test_a_digest_tells_the_order_and_the_sign_of_zero() -> None:
    rows = np.array([[1, 2, 0.0], [2, 1, 0.0], [1, 2, -0.0]], np.float32).view(np.uint8)
    assert len(set(digest_rows(rows).tolist())) == 3
    assert digest_rows(rows, np.array([0.0, 0, 0]))[0] != digest_rows(rows, np.array([-0.0, 0, 0]))[0]


def test_many_digests_at_once_are_those_of_one_at_a_time() -> None:
    rng = np.random.default_rng(0)
    rows, rewards = rng.integers(0, 256, (5, 3, 16), np.uint8), rng.normal(size=(5, 3))
    single = [digest_rows(rows[k], rewards[k]).tolist() for k in range(5)]
    assert digest_rows(rows, rewards).tolist() == single
    assert digest_rows(rows[:, ::2], rewards[:, ::2]).tolist() == [row[::2] for row in single]  # not contiguous


# -- episodes, against a model


class Driver:
    """A journal, and beside it what it should hold, in lists."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.journal, self.num_envs, self.rng = Journal(num_envs), num_envs, np.random.default_rng(seed)
        self.episodes: list[list[tuple[int, int]]] = [[] for _ in range(num_envs)]  # (action, digest)
        self.seeds, self.first = [0] * num_envs, [0] * num_envs
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []
        for env in range(num_envs):
            self.begin(env)

    def begin(self, env: int) -> None:
        first_obs = self.rng.integers(0, 256, 8, np.uint8)
        self.seeds[env], self.first[env] = int(self.rng.integers(0, 2**62)), int(digest_rows(first_obs[None])[0])
        self.episodes[env] = []
        self.journal.begin([env], np.array([self.seeds[env]]), first_obs[None])

    def step(self, active: np.ndarray | None, ended: list[int]) -> None:
        actions = self.rng.integers(0, 5, self.num_envs)
        obs, rewards = self.rng.integers(0, 256, (self.num_envs, 8), np.uint8), self.rng.normal(size=self.num_envs)
        self.journal.append(actions, active)
        self.waiting.append((obs, rewards))
        for env, digest in enumerate(digest_rows(obs, rewards)):
            if active is None or active[env]:
                self.episodes[env].append((int(actions[env]), int(digest)))
        for env in ended:
            self.begin(env)

    def digest(self, at_most: int) -> None:
        block, self.waiting = self.waiting[:at_most], self.waiting[at_most:]
        if block:
            self.journal.add_digests(np.array([obs for obs, _ in block]), np.array([rewards for _, rewards in block]))

    def check(self) -> None:
        assert self.journal.steps - self.journal.digested == len(self.waiting)
        self.digest(len(self.waiting))
        assert self.journal.digested == self.journal.steps
        assert_holds(self.journal, self)


def assert_holds(journal: Journal, model: Driver) -> None:
    assert journal.seeds.tolist() == model.seeds and journal.first_digests.tolist() == model.first
    for env, episode in enumerate(model.episodes):
        actions, digests = journal.episode(env)
        assert list(zip(actions.tolist(), digests.tolist(), strict=True)) == episode


@settings(max_examples=150)
@given(st.integers(1, 4), st.integers(0, 2**32), st.data())
def test_episodes_come_back_whatever_the_order_of_endings(num_envs: int, seed: int, data: st.DataObject) -> None:
    driver = Driver(num_envs, seed)
    envs = st.lists(st.integers(0, num_envs - 1), unique=True, max_size=num_envs)
    step = st.tuples(st.just("step"), st.none() | envs, envs | st.just([]))
    operations = st.lists(step | st.tuples(st.just("digest"), st.integers(0, 5)) | st.just(("check",)) | st.just(("save",)))
    for name, *arguments in data.draw(operations):
        if name == "step":
            idle, ended = arguments
            active = None if idle is None else np.array([env not in idle for env in range(num_envs)], np.uint8)
            driver.step(active, [env for env in ended if idle is None or env not in idle])
        elif name == "digest":
            driver.digest(arguments[0])
        else:
            driver.check()
        if name == "save":  # and go on with what was loaded
            state = driver.journal.state_dict(driver.journal.mark())
            driver.journal = Journal(num_envs)
            driver.journal.load_state_dict(state)
            driver.check()
    driver.check()


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.floats(0.0005, 0.02), st.sampled_from([1, 100, 128]))
def test_episodes_come_back_when_the_log_has_grown_and_moved(seed: int, chance: float, batch: int) -> None:
    driver = Driver(3, seed)
    for step in range(3000):  # the log begins with 1024 rows
        driver.step(None, np.flatnonzero(driver.rng.random(3) < chance).tolist())
        if len(driver.waiting) >= batch:
            driver.digest(batch)
        if step % 1000 == 999:
            driver.check()


def test_rows_that_nobody_needs_any_more_are_dropped() -> None:
    driver = Driver(2, 0)
    for step in range(10_000):
        driver.step(None, [0, 1] if step % 400 == 0 else [])
        driver.digest(1)
    assert driver.journal.room == 1024
    driver.check()


def test_rows_where_an_environment_was_idle_are_skipped() -> None:
    journal = Journal(2)
    journal.begin([0, 1], np.array([5, 6]), np.zeros((2, 4), np.uint8))
    for k, active in enumerate(([1, 0], [0, 1], [0, 0], [1, 1])):
        journal.append(np.array([k, 10 + k]), np.array(active, np.uint8))
    journal.add_digests(np.zeros((4, 2, 4), np.uint8), np.arange(8.0).reshape(4, 2))
    wanted = digest_rows(np.zeros((4, 2, 4), np.uint8), np.arange(8.0).reshape(4, 2))
    assert journal.episode(0)[0].tolist() == [0, 3] and journal.episode(1)[0].tolist() == [11, 13]
    assert journal.episode(0)[1].tolist() == wanted[[0, 3], 0].tolist()


def test_an_endless_episode_is_given_up_and_the_next_one_is_kept_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_EPISODE_STEPS", 1500)
    driver = Driver(2, 0)
    for step in range(5000):
        driver.step(None, [1] if step % 50 == 0 else [])
        driver.digest(1)
    journal = driver.journal
    assert journal.lost.tolist() == [True, False]
    assert journal.room <= 4096  # memory stays bounded
    lost = Journal(2)
    lost.load_state_dict(journal.state_dict(journal.mark()))
    assert lost.lost.tolist() == [True, False]
    driver.begin(0)
    driver.step(None, [])
    assert not journal.lost.any()
    driver.check()


def test_an_episode_up_to_the_bound_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_EPISODE_STEPS", 5000)
    driver = Driver(1, 0)
    for _ in range(5000):
        driver.step(None, [])
        driver.digest(1)
    assert not driver.journal.lost[0]
    driver.check()


def test_begin_all_counts_from_here() -> None:
    driver = Driver(2, 1)
    for _ in range(10):
        driver.step(None, [])
    driver.check()
    driver.journal.begin_all()
    driver.episodes = [[], []]
    for _ in range(3):
        driver.step(None, [])
    driver.check()


def test_a_state_is_plain_data() -> None:
    driver = Driver(2, 2)
    driver.step(None, [1])
    driver.digest(1)
    state: dict[str, Any] = driver.journal.state_dict(driver.journal.mark())
    kinds = {name: {type(value) for value in values} for name, values in state.items()}
    assert kinds == {"seeds": {int}, "first_digests": {int}, "lost": {bool}, "actions": {str}, "digests": {str}}


def test_rows_that_owe_digests_are_kept_even_if_all_episodes_began_after_them() -> None:
    driver = Driver(2, 3)
    for _ in range(1023):
        driver.step(None, [])
    driver.digest(1013)
    driver.step(None, [0, 1])  # row 1024 is the last one; no episode under way needs any of them
    driver.step(None, [])  # so that room is made
    assert driver.journal.steps - driver.journal.digested == 12
    driver.check()


# -- marks


def test_mark_gives_what_stood_in_the_journal_however_it_goes_on() -> None:
    driver = Driver(3, 4)
    marks = []
    for step in range(6000):
        driver.step(None, np.flatnonzero(driver.rng.random(3) < 0.002).tolist())
        if step % 50 == 0:
            driver.check()
        if step in (40, 1500, 4700):
            driver.check()
            mark = driver.journal.mark()
            marks.append((mark, driver.journal.state_dict(mark)))
        if step == 3000:
            driver.check()
            driver.journal.begin_all()  # a snapshot was taken; marks refer to the one before it
            driver.episodes = [[], [], []]
    driver.check()
    for mark, state in marks:
        assert driver.journal.state_dict(mark) == state


def test_mark_keeps_rows_for_as_long_as_it_is_kept() -> None:
    driver = Driver(2, 5)
    mark = driver.journal.mark()
    for step in range(5000):
        driver.step(None, [0, 1] if step % 100 == 0 else [])
        driver.digest(1)
    assert driver.journal.room > 4096
    del mark
    for step in range(9000):
        driver.step(None, [0, 1] if step % 100 == 0 else [])
        driver.digest(1)
    assert driver.journal.room <= 8192
    driver.check()


def test_mark_of_another_journal_or_from_before_loading_is_refused() -> None:
    driver = Driver(2, 6)
    driver.step(None, [])
    driver.check()
    mark = driver.journal.mark()
    with pytest.raises(ValueError, match="mark: expected one of this journal"):
        Driver(2, 6).journal.state_dict(mark)
    driver.journal.load_state_dict(driver.journal.state_dict(mark))
    with pytest.raises(ValueError, match="mark: expected one of this journal"):
        driver.journal.state_dict(mark)


def test_mark_does_not_depend_on_the_length_of_the_episodes() -> None:
    sizes = []
    for steps in (1, 3000):
        driver = Driver(2, 7)
        for _ in range(steps):
            driver.step(None, [])
        mark = driver.journal.mark()
        sizes.append(sum(array.nbytes for array in (mark.seeds, mark.first_digests, mark.begins, mark.lost)))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("shape", "dtype"), [((), "int64"), ((2,), "float32"), ((3, 2), "int8")])
def test_actions_of_any_kind_come_back(shape: tuple[int, ...], dtype: str) -> None:
    rng, journal = np.random.default_rng(0), Journal(2)
    journal.hold_actions(shape, np.dtype(dtype))
    journal.begin([0, 1], np.array([0, 1]), np.zeros((2, 4), np.uint8))
    actions = rng.integers(-100, 100, (1500, 2, *shape)).astype(dtype)
    for row in actions:
        journal.append(row, None)
    journal.add_digests(np.zeros((1500, 2, 4), np.uint8), np.zeros((1500, 2)))
    loaded = Journal(2)
    loaded.hold_actions(shape, np.dtype(dtype))
    loaded.load_state_dict(journal.state_dict(journal.mark()))
    for either in (journal, loaded):
        for env in (0, 1):
            assert either.episode(env)[0].tobytes() == np.ascontiguousarray(actions[:, env]).tobytes()
            assert either.actions(env) == actions[:, env].tolist()
