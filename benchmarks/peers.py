"""The peers in training throughput, each as its own examples have it, with the work that all share.

Two separate 64 x 64 tanh networks, the best of its vector envs for an environment as cheap as CartPole, no logging, no
evaluation, no checkpoints. Each is imported in its own runner only: every peer has a venv of its own.
"""

import os
import sys
import tempfile
from typing import Any

from benchmarks.competition import HORIZON, LEARNING_RATE, UPDATE_EPOCHS, NoMoreTurns, Turns, UpdateCounter


def run_sb3(num_envs: int, minibatch_size: int, updates_per_turn: int) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class TakeTurns(BaseCallback):
        counter, begun = UpdateCounter(updates_per_turn), False

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            """The update before, if there was one, is over."""
            if self.begun:
                self.counter.updated()
            self.begun = True

    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", num_envs),  # a DummyVecEnv
        n_steps=HORIZON,
        batch_size=minibatch_size,
        n_epochs=UPDATE_EPOCHS,
        learning_rate=LEARNING_RATE,
        gamma=0.99,
        gae_lambda=0.95,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=0.5,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        device="cpu",
        seed=0,
    )
    try:
        model.learn(1 << 40, callback=TakeTurns())
    except NoMoreTurns:
        pass


def rl_zoo3_ppo(seed: int) -> Any:
    """SB3's PPO with the hyper-parameters of rl-zoo3 for CartPole-v1."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    return PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 8, seed=seed),
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda remaining: 0.001 * remaining,
        clip_range=lambda remaining: 0.2 * remaining,
        device="cpu",
        seed=seed,
    )


def run_torchrl(num_envs: int, minibatch_size: int, updates_per_turn: int) -> None:
    """After `sota-implementations/ppo`, but with advantages once for each rollout, as everybody else here has them."""
    import gymnasium
    import torch
    from tensordict.nn import TensorDictModule
    from torch.distributions import Categorical
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
    from torchrl.envs import GymWrapper
    from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value.advantages import GAE

    envs = gymnasium.vector.SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1")] * num_envs,
        autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED,  # TorchRL prefers to reset by itself
    )
    env = GymWrapper(envs, categorical_action_encoding=True)
    actor = ProbabilisticActor(
        TensorDictModule(
            MLP(in_features=4, out_features=2, num_cells=[64, 64], activation_class=torch.nn.Tanh), ["observation"], ["logits"]
        ),
        in_keys=["logits"],
        spec=env.full_action_spec_unbatched,
        distribution_class=Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(
        MLP(in_features=4, out_features=1, num_cells=[64, 64], activation_class=torch.nn.Tanh), in_keys=["observation"]
    )
    frames = num_envs * HORIZON
    collector = Collector(env, actor, frames_per_batch=frames, total_frames=-1, device="cpu", track_traj_ids=False)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(frames), sampler=SamplerWithoutReplacement(), batch_size=minibatch_size
    )
    advantages = GAE(gamma=0.99, lmbda=0.95, value_network=critic, average_gae=False)
    loss_of = ClipPPOLoss(
        actor_network=actor,
        critic_network=critic,
        clip_epsilon=0.2,
        loss_critic_type="l2",
        entropy_coeff=0.01,
        critic_coeff=0.5,
        normalize_advantage=True,
    )
    optimizer = torch.optim.Adam(loss_of.parameters(), lr=LEARNING_RATE, eps=1e-5)
    counter = UpdateCounter(updates_per_turn)
    for rollout in collector:
        with torch.no_grad():
            rollout = advantages(rollout)
        buffer.extend(rollout.reshape(-1))
        for _ in range(UPDATE_EPOCHS):
            for batch in buffer:
                losses = loss_of(batch)
                (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
                torch.nn.utils.clip_grad_norm_(loss_of.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        collector.update_policy_weights_()
        try:
            counter.updated()
        except NoMoreTurns:
            break
    collector.shutdown()


def run_tianshou(num_envs: int, minibatch_size: int, updates_per_turn: int) -> None:
    """After `test/discrete/test_ppo_discrete.py`, but with separate networks; an epoch of its trainer is one turn."""
    import gymnasium
    import torch
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, CollectStats, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

    def body() -> Net:
        return Net(state_shape=(4,), hidden_sizes=[64, 64], activation=torch.nn.Tanh)

    steps = num_envs * HORIZON
    algorithm = PPO(
        policy=DiscreteActorPolicy(
            actor=DiscreteActor(preprocess_net=body(), action_shape=2, softmax_output=False),
            action_space=gymnasium.spaces.Discrete(2),
        ),
        critic=DiscreteCritic(preprocess_net=body()),
        optim=AdamOptimizerFactory(lr=LEARNING_RATE, eps=1e-5),
        gamma=0.99,
        gae_lambda=0.95,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=0.5,
        max_batchsize=steps,  # values of a rollout in one pass
    )
    envs = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(num_envs)])
    collector = Collector[CollectStats](algorithm, envs, VectorReplayBuffer(steps, num_envs))
    trainer = algorithm.create_trainer(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1 << 40,
            epoch_num_steps=updates_per_turn * steps,
            collection_step_num_env_steps=steps,
            update_step_num_repetitions=UPDATE_EPOCHS,
            batch_size=minibatch_size,
            verbose=False,
            show_progress=False,
        )
    )
    trainer.reset()
    trainer.execute_epoch()
    turns = Turns()
    turns.ready()
    while turns.next():
        trainer.execute_epoch()
        turns.done()


def run_sheeprl(num_envs: int, minibatch_size: int, updates_per_turn: int) -> None:
    """Its command line with its own `ppo_benchmarks` experiment, which logs and evaluates nothing."""
    import torch
    from sheeprl import cli
    from sheeprl.algos.ppo import ppo

    counter, train = UpdateCounter(updates_per_turn), ppo.train

    def train_and_take_turns(*args: Any, **kwargs: Any) -> Any:
        steps = train(*args, **kwargs)
        counter.updated()  # between here and the next collection there is nothing to do in this experiment
        return steps

    ppo.train = train_and_take_turns
    settings = {
        "num_threads": torch.get_num_threads(),
        "env.num_envs": num_envs,
        "env.wrapper.render_mode": "null",
        "algo.total_steps": 1 << 40,
        "algo.rollout_steps": HORIZON,
        "algo.update_epochs": UPDATE_EPOCHS,
        "algo.per_rank_batch_size": minibatch_size,
        "algo.optimizer.lr": LEARNING_RATE,
        "algo.ent_coef": 0.01,
        "algo.encoder.mlp_layers": 0,  # nothing shared
        "algo.actor.mlp_layers": 2,
        "algo.critic.mlp_layers": 2,
        "checkpoint.every": 0,
    }
    sys.argv = ["sheeprl", "exp=ppo_benchmarks", *(f"{key}={value}" for key, value in settings.items())]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its short form ends the process
    os.chdir(tempfile.mkdtemp(prefix="sheeprl-"))  # its logs
    try:
        cli.run()
    except NoMoreTurns:
        pass
