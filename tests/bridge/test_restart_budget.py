"""The restart budget, with every number worked out by hand."""

from lit_ppo.bridge.restart_budget import RestartBudget


def test_faults_beyond_the_budget_of_a_window_are_the_end() -> None:
    budget = RestartBudget(2, 100)
    assert [budget.spend(step, None) for step in (0, 50)] == [None, None]
    assert budget.spend(99, None) == "3 faults within 100 steps are more than data.max_restarts=2"


def test_faults_that_have_left_the_window_count_no_more() -> None:
    budget = RestartBudget(1, 100)
    assert [budget.spend(step, None) for step in (0, 100, 200)] == [None, None, None]
    assert budget.spend(299, None) is not None  # 299 - 200 < 100


def test_crash_of_one_worker_twice_in_one_step_is_deterministic() -> None:
    budget = RestartBudget(10, 100)
    assert budget.spend(7, crashed_worker=0) is None
    assert budget.spend(7, crashed_worker=1) is None  # another worker
    assert budget.spend(8, crashed_worker=1) is None  # another step
    assert budget.spend(8, crashed_worker=1) == "the same step killed the worker twice: a deterministic crash"


def test_fault_of_an_environment_is_no_crash_of_its_worker() -> None:
    budget = RestartBudget(10, 100)
    assert [budget.spend(7, worker) for worker in (0, None)] == [None, None]
    assert budget.spend(7, None) is None


def test_success_in_between_makes_the_next_crash_a_new_one() -> None:
    budget = RestartBudget(10, 100)
    assert budget.spend(7, 0) is None
    budget.succeeded()
    assert budget.spend(7, 0) is None


def test_waiting_begins_with_nothing_and_doubles_up_to_two_seconds() -> None:
    budget = RestartBudget(100, 1000)
    waits = []
    for step in range(9):
        budget.spend(step, None)
        waits.append(round(budget.back_off_s, 6))
    # 0.02 * (2^k - 1) for k = 0, 1, 2, ...
    assert waits == [0.0, 0.02, 0.06, 0.14, 0.3, 0.62, 1.26, 2.0, 2.0]
