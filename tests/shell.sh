# What the commands of a page do in a test.

# Two updates of 2 environments x 64 steps; $OPTIONS are those of the block's mark `short`, and win.
SHORT="--total_env_steps=256 --data.num_envs=2 --data.horizon=64 --model.minibatch_size=32 --model.update_epochs=1 --evaluation.num_episodes=1 --data.test_episodes=2"

python() {
  case "$*" in
    *--print_config* | *--help* | *"-m lit_ppo.bridge.worker"*) command python "$@" ;;
    "-m lit_ppo fit"* | *.py\ fit*) command python "$@" $SHORT $OPTIONS ;;
    *) command python "$@" $OPTIONS ;;
  esac
}

# Only whether the target exists, and what it would do.
make() { command make -C "$REPOSITORY" --dry-run "$@" >/dev/null; }

# A test of its own asks whether the extras exist.
pip() { :; }
