"""A user's own optimizer, scheduler, torso, loss and module: what they do, what a checkpoint holds of them, what is refused."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, StepLR

from lit_ppo import exit_codes
from lit_ppo.callables import described, in_words
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.run_config import CONFIG_KEY
from lit_ppo.errors import ConfigError, NonFiniteUpdate
from lit_ppo.module import PPOModule
from lit_ppo.optimization import MONITORED
from tests import toy_parts
from tests.runs import bare_trainer, cartpole_module, fit, parameters, same, small_data, small_module
from tests.test_cli import SMALL, Ended, Run, run  # noqa: F401  a fixture
from tests.test_resume import differences

N = 2  # updates in each half
LAST = "checkpoints/last.ckpt"
RUN_LAST = "runs/CartPole-v1/1/last.ckpt"  # of the command line


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def adamw(**settings: Any) -> Any:
    return partial(torch.optim.AdamW, **{"lr": 0.01, "weight_decay": 0.1} | settings)


def rates_of(updates: int, cls: type[PPOModule] = PPOModule, **settings: Any) -> list[float]:
    """The learning rate of each update, as it is logged."""
    rates = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            rates.append(module.metrics["optimizer/learning_rate"])

    fit(updates, Watch(), module=small_module(cls, **settings))
    return rates


# -- resume

OWN = {
    "cosine": {"optimizer": adamw(), "lr_scheduler": partial(CosineAnnealingLR, T_max=7)},
    "plateau": {"lr_scheduler": partial(ReduceLROnPlateau, monitor="policy/approx_kl", patience=0, mode="max", factor=0.5)},
    "linear": {"optimizer": adamw(), "learning_rate_decay": "linear", "total_env_steps": 500},
    "lbfgs": {"optimizer": partial(torch.optim.LBFGS, lr=0.05, max_iter=3)},
}


@pytest.mark.parametrize("own", OWN)
def test_run_with_own_optimizer_or_scheduler_resumed_half_way_equals_the_run_in_one_go(own: str) -> None:
    def parts(directory: str, *lengths: int) -> tuple[PPOModule, dict[str, Any]]:
        for number, updates in enumerate(lengths):
            module, _ = fit(
                updates,
                RunCheckpoint(f"{directory}/checkpoints", every_n_updates=100),
                module=cartpole_module(update_epochs=2, **OWN[own]),
                data=small_data("CartPole-v1", num_envs=2, horizon=33),
                ckpt_path=f"{directory}/{LAST}" if number else None,
            )
        checkpoint = torch.load(f"{directory}/{LAST}", weights_only=True)
        return module, {key: value for key, value in checkpoint.items() if key != "callbacks"}  # which hold paths

    (straight, in_one_go), (resumed, in_parts) = parts("straight", 2 * N), parts("resumed", N, 2 * N)
    assert same(parameters(straight), parameters(resumed))
    assert differences(in_one_go, in_parts) == []
    assert not same(parameters(straight), parameters(cartpole_module()))
    if own == "plateau":  # else the test would not show that its state is restored
        assert in_one_go["optimizer_states"][0]["param_groups"][0]["lr"] < 3e-4


# -- the owner of the learning rate


class OwnOptimizer(PPOModule):
    """Two parameter groups, whose rates are nobody else's business."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(
            [{"params": self.policy.actor.parameters(), "lr": 0.02}, {"params": self.policy.critic.parameters(), "lr": 0.5}],
            momentum=0.9,
        )


class OwnScheduler(PPOModule):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.08)
        return [optimizer], [StepLR(optimizer, step_size=1, gamma=0.5), ConstantLR(optimizer, factor=1.0)]


@pytest.mark.parametrize(
    ("cls", "settings", "rates"),
    [
        (PPOModule, {}, [3e-4 * (1 - k / 4) for k in range(4)]),
        (PPOModule, {"optimizer": adamw()}, [0.01] * 4),
        (PPOModule, {"optimizer": adamw(), "learning_rate_decay": "linear"}, [0.01, 0.0075, 0.005, 0.0025]),
        (PPOModule, {"lr_scheduler": partial(StepLR, step_size=2, gamma=0.1), "learning_rate": 0.5}, [0.5, 0.5, 0.05, 0.05]),
        (OwnOptimizer, {}, [0.02] * 4),
        (OwnOptimizer, {"learning_rate_decay": "linear"}, [0.02, 0.015, 0.01, 0.005]),
        (OwnScheduler, {}, [0.08, 0.04, 0.02, 0.01]),
    ],
)
def test_learning_rate_is_set_by_its_owner_alone(cls: type[PPOModule], settings: dict[str, Any], rates: list[float]) -> None:
    assert rates_of(4, cls, **settings) == pytest.approx(rates)


def test_linear_decay_scales_the_rate_of_each_parameter_group() -> None:
    module = small_module(OwnOptimizer, learning_rate_decay="linear")
    fit(2, module=module)
    assert [group["lr"] for group in module.trainer.optimizers[0].param_groups] == pytest.approx([0.01, 0.25])


def test_own_optimizer_trains_with_its_settings() -> None:
    """Plain SGD moves the parameters by the rate times the gradient, and Adam does not."""

    class Watched(PPOModule):
        def on_train_batch_end(self, *args: Any) -> None:
            for name, parameter in self.named_parameters():
                assert parameter.grad is not None
                torch.testing.assert_close(parameter.detach(), before[name] - 0.25 * parameter.grad)

    module = small_module(Watched, optimizer=partial(torch.optim.SGD, lr=0.25), update_epochs=1, minibatch_size=20)
    before = parameters(module)
    fit(1, module=module)
    assert not same(parameters(module), before)


def test_plateau_takes_no_step_in_an_update_without_its_value() -> None:
    """Episodes of the environment take 20 steps or more, so rollouts of 10 steps end none."""
    module = small_module(lr_scheduler=partial(ReduceLROnPlateau, monitor="episodes/return"))
    fit(1, module=module)
    scheduler = module.trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == ("episodes/return" in module.trainer.datamodule.metrics)


def test_diagnostics_that_can_be_monitored_are_those_of_an_update() -> None:
    module, data = fit(2, data=small_data(horizon=50))
    names = {name for name in {**module.metrics, **data.metrics} if not name.startswith("time/")}
    assert names == set(MONITORED)


@pytest.mark.parametrize("hooks", [True, False])
def test_optimizer_with_closure_sees_the_loss_of_one_minibatch_again_and_again(hooks: bool) -> None:
    losses: list[list[float]] = []

    class Descends(torch.optim.SGD):
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            losses.append([])
            for _ in range(5):
                losses[-1].append(float(closure()))
                super().step()

    class Listens(Callback):
        def on_before_optimizer_step(self, *args: Any) -> None: ...

    module = small_module(optimizer=partial(Descends, lr=0.05), update_epochs=1, max_grad_norm=None)
    trainer = bare_trainer(1, *([Listens()] if hooks else []))
    trainer.fit(module, datamodule=small_data())
    assert len(losses) == 2 == trainer.global_step  # 20 transitions in minibatches of 10
    assert all(sorted(values, reverse=True) == values and values[0] > values[-1] for values in losses)


def test_closure_optimizer_that_leaves_no_finite_parameters_is_stopped() -> None:
    with pytest.raises(
        NonFiniteUpdate, match=r"update 0: (the loss is nan|the step of LBFGS made a parameter NaN or infinite)"
    ):
        fit(2, module=small_module(optimizer=partial(torch.optim.LBFGS, lr=1e38)))


# -- what is refused


def plateau(**settings: Any) -> Any:
    return partial(torch.optim.lr_scheduler.ReduceLROnPlateau if not settings else ReduceLROnPlateau, **settings)


def two_optimizers(self: PPOModule) -> Any:
    return [torch.optim.SGD(network.parameters()) for network in (self.policy.actor, self.policy.critic)]


def every_step(self: PPOModule) -> Any:
    optimizer = torch.optim.SGD(self.parameters())
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1), "interval": "step"}}


@pytest.mark.parametrize(
    ("settings", "configure", "message"),
    [
        (
            {"optimizer": adamw(), "learning_rate": 0.1},
            None,
            "model.learning_rate=0.1: not used with model.optimizer; use model.optimizer.lr",
        ),
        (
            {"optimizer": adamw(), "adam_epsilon": 0.1},
            None,
            "model.adam_epsilon=0.1: not used with model.optimizer; use model.optimizer.eps",
        ),
        (
            {"lr_scheduler": partial(StepLR, step_size=1), "learning_rate_decay": "linear"},
            None,
            "model.learning_rate_decay=linear: not used with model.lr_scheduler; leave one of them out",
        ),
        ({"optimizer": 3}, None, "model.optimizer=3: expected a callable, or null"),
        ({"optimizer": adamw(lr=-1.0)}, None, "model.optimizer: Invalid learning rate: -1.0"),
        ({"optimizer": lambda parameters: 3}, None, "model.optimizer: expected an object of class Optimizer, got int"),
        ({"lr_scheduler": lambda optimizer: 3}, None, "model.lr_scheduler: expected an object of class LRScheduler, got int"),
        ({"lr_scheduler": plateau()}, None, "model.lr_scheduler: ReduceLROnPlateau has no monitor; use lightning.pytorch.cli."),
        (
            {"lr_scheduler": plateau(monitor="loss")},
            None,
            "model.lr_scheduler.monitor=loss: expected one of loss/total, loss/policy, ",
        ),
        (
            {"lr_scheduler": plateau(monitor="eval/return")},
            None,
            "model.lr_scheduler.monitor=eval/return (evaluations are not restored exactly): expected one of loss/total, ",
        ),
        ({"optimizer": adamw()}, OwnOptimizer.configure_optimizers, "model.optimizer: not used by Own.configure_optimizers"),
        ({}, two_optimizers, "Own.configure_optimizers: expected one optimizer, got 2"),
        ({}, every_step, "Own.configure_optimizers: schedulers make one step after each update; leave out interval"),
        (
            {"learning_rate_decay": "linear"},
            OwnScheduler.configure_optimizers,
            "model.learning_rate_decay=linear: not used with the scheduler of configure_optimizers",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_trained(
    settings: dict[str, Any], configure: Any, message: str
) -> None:
    cls = PPOModule if configure is None else type("Own", (PPOModule,), {"configure_optimizers": configure})
    with pytest.raises(ConfigError) as refused:
        bare_trainer(1).fit(small_module(cls, **settings), datamodule=small_data())
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


# -- what a checkpoint holds


@pytest.mark.parametrize(
    ("value", "arguments", "words"),
    [
        (toy_parts.Torso, {}, "tests.toy_parts.Torso"),
        (toy_parts.torso, {}, "tests.toy_parts.torso"),
        (partial(toy_parts.Torso, width=128), {"width": 128}, "tests.toy_parts.Torso(width=128)"),
        (
            partial(toy_parts.Torso, width=toy_parts.torso),
            {"width": {"class_path": "tests.toy_parts.torso", "init_args": {}}},
            "tests.toy_parts.Torso(width=tests.toy_parts.torso)",
        ),
        (partial(toy_parts.Torso, width=Path("a")), None, "tests.toy_parts.Torso"),
        (partial(toy_parts.Torso, 4), None, "tests.toy_parts.Torso"),
        (toy_parts.Loss(2.0), None, "tests.toy_parts.Loss"),
        (lambda inputs: None, None, "tests.test_own_parts.<lambda>"),
    ],
)
def test_callable_is_described_by_import_path_and_arguments(value: Any, arguments: Any, words: str) -> None:
    assert described(value)["init_args"] == arguments
    assert in_words(described(value)) == words


class Width(PPOModule):
    """Saves all of its arguments, among them the spec and callables."""

    def __init__(self, *, width: int = 3, **settings: Any) -> None:
        super().__init__(**settings)
        self.save_hyperparameters()


def test_checkpoint_is_plain_data_and_asks_for_the_code_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    torso = partial(toy_parts.Torso, width=128)
    own: dict[str, Any] = {"optimizer": adamw(), "loss": lambda *args: toy_parts.loss(*args), "width": 5}
    sizes = {"actor_hidden_sizes": (64, 64), "critic_hidden_sizes": (64, 64)}  # the default: a torso stands in their place
    fit(1, RunCheckpoint("checkpoints"), module=small_module(Width, **own, **sizes, torso=torso))
    hparams = torch.load(LAST, weights_only=True)["hyper_parameters"]
    assert hparams["torso"] == {"class_path": "tests.toy_parts.Torso", "init_args": {"width": 128}}
    assert (hparams["width"], hparams["loss"]["init_args"]) == (5, None)
    monkeypatch.delitem(sys.modules, "tests.toy_parts")

    message = (
        r"^model.torso: the checkpoint was made with tests.toy_parts.Torso\(width=128\); pass it: load_from_checkpoint\(path, "
    )
    with pytest.raises(ConfigError, match=message):
        Width.load_from_checkpoint(LAST)
    module = Width.load_from_checkpoint(LAST, torso=torso)
    assert "tests.toy_parts" not in sys.modules
    assert module({"": torch.eye(3)})[0].shape == (3,)  # the policy needs neither optimizer nor loss
    message = r"^model.optimizer: the checkpoint was made with torch.optim.adamw.AdamW\(lr=0.01, weight_decay=0.1\); pass it: "
    with pytest.raises(ConfigError, match=message):
        fit(1, module=module)
    module = Width.load_from_checkpoint(LAST, torso=torso, optimizer=adamw())
    with pytest.raises(
        ConfigError, match=r"^model.loss: the checkpoint was made with tests.test_own_parts.*<lambda>; pass it: "
    ):
        fit(1, module=module)
    fit(1, module=Width.load_from_checkpoint(LAST, torso=torso, optimizer=adamw(), loss=toy_parts.loss))


def test_hyperparameter_that_a_checkpoint_cannot_hold_is_refused_by_name() -> None:
    message = r"^model.width: expected plain data, which a checkpoint can hold, got PosixPath$"
    with pytest.raises(ConfigError, match=message):
        small_module(Width, width=Path("a"))


# -- the command line

PARTS = """--model.torso=tests.toy_parts.Torso --model.torso.width=128 --model.optimizer=torch.optim.AdamW
    --model.optimizer.weight_decay=0.01 --model.lr_scheduler=CosineAnnealingLR --model.lr_scheduler.T_max=10
    --model.loss=tests.toy_parts.loss"""


def test_parts_are_options_that_a_resumed_run_keeps(run: Run) -> None:  # noqa: F811
    assert run(f"fit {SMALL} {PARTS}").code == exit_codes.DONE
    checkpoint = torch.load(RUN_LAST, weights_only=True)
    assert checkpoint["hyper_parameters"]["torso"] == {"class_path": "tests.toy_parts.Torso", "init_args": {"width": 128}}
    assert checkpoint["hyper_parameters"]["optimizer"]["init_args"]["weight_decay"] == 0.01
    model = checkpoint[CONFIG_KEY]["model"]
    assert model["torso"]["init_args"] == {"width": 128} and model["loss"] == "tests.toy_parts.loss"
    assert run("fit --ckpt_path=last --trainer.max_epochs=3").code == exit_codes.DONE
    same_again = "--model.torso=tests.toy_parts.Torso --model.torso.width=128 --model.loss=tests.toy_parts.loss"
    assert run(f"fit --ckpt_path=last --trainer.max_epochs=4 {same_again}").code == exit_codes.DONE
    assert torch.load(RUN_LAST, weights_only=True)["lr_schedulers"][0]["last_epoch"] == 4
    assert run("test --ckpt_path=last --data.test_episodes=1").code == exit_codes.DONE
    for typed, now, before in (
        ("model.torso=null", "None", "tests.toy_parts.Torso(width=128)"),
        ("model.torso=tests.toy_parts.torso", "tests.toy_parts.torso", "tests.toy_parts.Torso(width=128)"),
        ("model.lr_scheduler=null", "None", "torch.optim.lr_scheduler.CosineAnnealingLR(T_max=10, eta_min=0.0, last_epoch=-1)"),
        ("model.learning_rate_decay=constant", "constant", "None"),
    ):
        message = f"{typed.partition('=')[0]}={now}: the checkpoint's run has {before}, which cannot change on resume"
        assert run(f"fit --ckpt_path={RUN_LAST} --{typed}") == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {message}\n")
    changed = run("fit --ckpt_path=last --model.optimizer=AdamW --model.optimizer.lr=0.5")
    assert changed.err.startswith("lit_ppo: error: model.optimizer=torch.optim.AdamW(lr=0.5): the checkpoint's run has ")


def test_parts_are_keys_of_a_configuration_file(run: Run) -> None:  # noqa: F811
    printed = run(f"fit {PARTS} --print_config").out
    Path("run.yaml").write_text(printed)
    assert yaml.safe_load(printed)["model"]["torso"] == {"class_path": "tests.toy_parts.Torso", "init_args": {"width": 128}}
    assert yaml.safe_load(run("fit --config run.yaml --print_config").out) == yaml.safe_load(printed)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--model.torso=absent.Torso", "model.torso=absent.Torso: No module named 'absent'"),
        ("--model.torso=broken.Torso", "model.torso=broken.Torso: invalid syntax (broken.py, line 1)"),
        (
            "--model.torso=tests.toy_parts.unannotated",
            "model.torso=tests.toy_parts.unannotated: expected a class of Module, or a function annotated as returning one",
        ),
        (
            "--model.optimizer=torch.nn.Linear",
            "model.optimizer=torch.nn.Linear: expected a class of Optimizer, or a function annotated as returning one",
        ),
        (
            "--model.optimizer=AdamW --model.learning_rate=1",
            "model.learning_rate=1.0: not used with model.optimizer; use model.optimizer.lr",
        ),
    ],
)
def test_part_that_cannot_be_used_ends_in_one_line_and_exit_code_2(
    typed: str,
    message: str,
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("broken.py").write_text("x = = 3\n")
    monkeypatch.syspath_prepend(Path.cwd())
    assert run(f"fit {typed}") == Ended(exit_codes.USAGE, "", f"lit_ppo: error: {message}\n")


# -- a program of one's own

PROGRAM = """
from torch.optim import SGD
from lit_ppo import LitPPOCLI, PPOModule
from lit_ppo.update import ppo_loss

class MyModule(PPOModule):
    def __init__(self, width: int = 3, **settings):
        super().__init__(**settings)
        self.save_hyperparameters("width")

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.125)

def my_loss(*args):
    return ppo_loss(*args)

if __name__ == "__main__":
    LitPPOCLI(MyModule)
"""


def in_a_shell(line: str) -> Ended:
    ended = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def program() -> str:
    Path("my_run.py").write_text(PROGRAM)
    return f"{sys.executable} my_run.py"


def test_module_of_a_user_is_a_program_that_trains_resumes_and_tests(program: str) -> None:
    ended = in_a_shell(f"{program} fit {' '.join(SMALL.split())} --model.width=5 --model.loss=__main__.my_loss")
    assert (ended.code, ended.err) == (exit_codes.DONE, "")
    checkpoint = torch.load(RUN_LAST, weights_only=True)
    assert checkpoint["hyper_parameters"]["width"] == 5
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.125
    ended = in_a_shell(f"{program} fit --ckpt_path=last --trainer.max_epochs=3 --trainer.logger=false")
    assert (ended.code, ended.err) == (exit_codes.DONE, f"changed since {RUN_LAST}: length: 64 -> 96 env steps\n")
    assert in_a_shell(f"{program} test --ckpt_path=last --data.test_episodes=1").code == exit_codes.DONE


def test_program_of_a_user_has_our_errors_exit_codes_and_help(program: str) -> None:
    message = "lit_ppo: error: model.gamma=2.0: expected a number in [0, 1]\n"
    assert in_a_shell(f"{program} fit --model.gamma=2") == Ended(exit_codes.USAGE, "", message)
    helped = in_a_shell(f"{program} fit --help")
    assert helped.out.startswith("usage: python my_run.py fit [options]\n") and "  --model.width WIDTH" in helped.out
    message = "lit_ppo: error: standard output: cannot be written: No space left on device (errno 28)\n"
    assert in_a_shell(f"{program} fit --print_config > /dev/full") == Ended(exit_codes.CHECKPOINT, "", message)


def test_module_of_the_current_directory_can_be_named_from_the_installed_script() -> None:
    Path("mine.py").write_text("def my_loss(*args): ...\n")
    script = Path(sys.executable).with_name("lit_ppo")
    ended = in_a_shell(f"{script} fit --model.loss=mine.my_loss --print_config")
    assert (ended.code, ended.err) == (exit_codes.DONE, "") and "loss: mine.my_loss" in ended.out


def test_help_names_no_option_of_a_link(run: Run) -> None:  # noqa: F811
    assert "--model.spec.help" not in run("fit --help").out
    assert run("fit --model.spec.help").code == exit_codes.USAGE
