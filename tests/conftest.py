"""The profile of all tests: the same examples each time, and no limit that is a clock."""

import os
from typing import Any

import pytest
import pytest_timeout
from hypothesis import settings

from tests.patience import patient

# Without a deadline for an example, and derandomized: a test that fails does so because of a change, never by chance or load.
settings.register_profile("lit_ppo", deadline=None, derandomize=True, database=None)
# `pytest --hypothesis-profile=search` looks for new examples, and keeps those that fail in .hypothesis/.
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("lit_ppo")


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Any:
    """Let a test take longer on a busy machine."""
    return pytest_timeout.pytest_timeout_set_timer(item, settings._replace(timeout=patient(settings.timeout)))


@pytest.fixture(autouse=True)
def no_seed_of_an_earlier_test() -> None:
    """Forget Lightning's seed, which `seed_everything` and the command line leave in the environment of this process."""
    os.environ.pop("PL_GLOBAL_SEED", None)
