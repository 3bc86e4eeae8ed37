"""Input that no run can use: one line, and exit code 2."""

import re
from pathlib import Path

import pytest

from lit_ppo import exit_codes
from tests.test_cli import SMALL, Run, in_an_empty_directory, run  # noqa: F401

BOMB = "\n".join(
    f"    {name}: &{name} [{', '.join([value] * 10)}]"
    for name, value in zip("abcdefgh", ["1", *map("*{}".format, "abcdefg")], strict=True)
)
FILES = {
    "twice.yaml": b"model:\n  gamma: 0.9\n  gamma: 0.8\n",
    "bomb.yaml": f"data:\n  env_kwargs:\n{BOMB}\n".encode(),
    "itself.yaml": b"data: {env_kwargs: &a {x: *a}}\n",
    "deep.yaml": b"data: {env_kwargs: " + b"[" * 5000 + b"]" * 5000 + b"}\n",
    "few.yaml": b"data: {rlimits: {nofile: 3}}\n",
    "many.yaml": b"data: {rlimits: {nofile: 1" + b"0" * 30 + b"}}\n",
    "latin.yaml": b"model: {activation: t\xe4nh}\n",
}
REFUSED = {
    "--data.num_env=4": r"unrecognized arguments: --data\.num_env=4 \(did you mean --data\.num_envs\?\)",
    "--data.num_envs=99999999999999999999": r"data\.num_envs=9+: expected at most 1,000,000",
    "--data.horizon=10000000000": r"data\.horizon=10+: expected at most 1,000,000",
    "--data.frame_stack=99999999999": r"data\.frame_stack=9+: expected less than 2\^31",
    "--total_env_steps=999999999999999999999": r"total_env_steps=9+: expected less than 2\^63",
    "--seed_everything=99999999999": r"seed_everything=9+: expected 0 to 2\^32 - 1",
    f"--seed_everything={'9' * 5000}": "seed_everything: Exceeds the limit",
    "--model.update_epochs=10000000": r"model\.update_epochs=10+: expected 1 to 10,000",
    "--model.memory_size=10000000": r"model\.memory_size=10+: expected 1 to 65,536",
    "--evaluation.num_episodes=10000000": r"evaluation\.num_episodes=10+: expected at most 1,000,000",
    "--solved.confirmation_episodes=10000000": r"solved\.confirmation_episodes=10+: expected at most 1,000,000",
    "--data.test_episodes=10000000": r"data\.test_episodes=10+: expected at most 1,000,000",
    "--data.num_workers=10000": r"data\.num_workers=10+: expected at most 1024",
    "--torch_threads=100000": "torch_threads=100000: expected at most 1024",
    "--model.actor_hidden_sizes=[10000000000]": "model, data: expected sizes that this machine has the memory for: .*",
    "--model.actor_hidden_sizes=[99999999999999999999]": "model, data: expected sizes that this machine has the memory for: .*",
    "--config=twice.yaml": "Problems parsing config: expected every key once, got gamma twice",
    "--config=bomb.yaml": "Problems parsing config: expected at most 100000 values, and no alias within what it stands for",
    "--config=itself.yaml": "Problems parsing config: expected at most 100000 values, and no alias within what it stands for",
    "--config=deep.yaml": "Problems parsing config: expected YAML that is not nested as deeply",
    "--config=latin.yaml": "expected a configuration file in UTF-8, got byte 0xe4 at 21",
    f"--data.env_kwargs={'[' * 5000}": r"data\.env_kwargs: expected a mapping or null, got \[+\.\.\.",
    "--trainer.accelerator=quantum": ".*invalid accelerator name.*",
    "--solved.threshold=nan": r"solved\.threshold: expected a number or null, got nan",
    "--solved.threshold=.nan": r"solved\.threshold=nan: expected a number, \.inf for never, or null",
    "--solved.margin=.nan": r"solved\.margin=nan: expected at least 0",
    "--data.step_timeout_s=nan": r"data\.step_timeout_s: expected a number, got nan",
    "--config=few.yaml": r"data\.rlimits=\{'nofile': 3\}: expected limits with which Python and Gymnasium start",
    "--config=many.yaml": r"data\.rlimits: nofile=10+ cannot be set: .*",
    "--runs_dir=\udcff": r"expected options in UTF-8, got --runs_dir=\\udcff",
    "--data.python=/etc/passwd": r"data\.python=/etc/passwd: expected a Python interpreter: Permission denied",
}


def test_input_that_no_run_can_use_ends_in_one_line_and_exit_code_2(run: Run) -> None:  # noqa: F811
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    for typed, message in REFUSED.items():  # in one test: what follows each costs more than the input itself
        ended = run(f"fit --trainer.logger=false {typed}")
        assert (ended.code, ended.out) == (exit_codes.USAGE, ""), typed
        assert re.fullmatch(f"lit_ppo: error: {message}[^\n]*\n", ended.err), ended.err


OF_OTHER_COMMANDS = {
    "check-env CartPole-v1 --env_kwargs={'a':1,'a':2}": r"data\.env_kwargs: expected a mapping or null, got {'a':1,'a':2}",
    "check-env CartPole-v1 --steps=10000000": "steps=10+: expected at most 1,000,000",
    "rollout export --env_id=CartPole-v1 --out=x.json --num_envs=10000000": "num_envs=10+: expected at most 1,000,000",
    "rollout export --env_id=CartPole-v1 --out=x.json --steps=10000000": "steps=10+: expected at most 1,000,000",
}


def test_input_of_the_other_commands_ends_likewise(run: Run) -> None:  # noqa: F811
    for typed, message in OF_OTHER_COMMANDS.items():
        ended = run(typed)
        assert (ended.code, ended.out) == (exit_codes.USAGE, ""), typed
        assert re.fullmatch(f"lit_ppo: error: {message}[^\n]*\n", ended.err), ended.err


LONG = "x" * 5000
LONG_PATHS = [
    *(f"fit --{name}={LONG}" for name in ("config", "preset", "ckpt_path", "run", "runs_dir", "checkpoint.dirpath")),
    *(f"fit --{name}={LONG}" for name in ("data.env_id", "data.env_path", "data.python", "data.worker_cwd")),
    *(f"fit --{name}=[{LONG}]" for name in ("data.sandbox_read", "data.sandbox_write", "data.wrappers")),
    *(f"fit --trainer.max_epochs=1 --{name}={LONG}" for name in ("curve.path", "curve.link", "trainer.default_root_dir")),
    *(f"{command} --ckpt_path={LONG}" for command in ("test", "play --record=videos", "export --out=x.pt2")),
    *(f"{command} {LONG}" for command in ("plot", "runs", "replay", "rollout check", "reproduce", "presets --preset", LONG)),
    *(f"check-env CartPole-v1 --steps=1 --{name}={LONG}" for name in ("json", "env_path", "sandbox_read")),
    f"rollout export --env_id=CartPole-v1 --steps=1 --out={LONG}",
]


def test_path_of_thousands_of_characters_is_refused_in_one_line(run: Run) -> None:  # noqa: F811
    for typed in LONG_PATHS:
        ended = run(typed)
        assert ended.code in (exit_codes.USAGE, exit_codes.CHECKPOINT), (typed[:80], ended)
        assert re.fullmatch(r"(?:lit_ppo: .*\n)?lit_ppo: error: .*\n", ended.err), (typed[:80], ended.err)


@pytest.mark.slow
def test_null_for_a_number_is_a_value_or_refused_in_one_line(run: Run) -> None:  # noqa: F811
    entries = re.findall(r"^ +(--[\w.]+) .*?(?=^ +--|^\w)", run("fit --help").out, re.MULTILINE | re.DOTALL)
    texts = re.split(r"^ +(?=--)", run("fit --help").out, flags=re.MULTILINE)
    numbers = [text.split()[0] for text in texts if re.search(r"\(type: [^)]*\b(?:int|float)\b", text)]
    assert len(numbers) > 60 and set(numbers) <= set(entries)
    for name in numbers:
        length = "--total_env_steps=64" if name == "--trainer.max_epochs" else "--trainer.max_epochs=0"
        ended = run(f"fit {SMALL.split('--trainer')[0]} --progress.interval_s=60 {length} {name}=null")
        assert ended.code in (exit_codes.DONE, exit_codes.USAGE), (name, ended)
        assert ended.code == exit_codes.DONE or re.fullmatch(r"lit_ppo: error: .*\n", ended.err), (name, ended.err)
