#!/bin/sh
# Make the venvs of the benchmarks, benchmarks/.venvs/*; the package itself needs none of them. Each of the larger peers has
# its own: they disagree on versions, and what one brings along (tensorboard, say) another would import at its start.
set -eu
cd "$(dirname "$0")"

install() { # venv, requirements
    venv=.venvs/$1
    shift
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet torch==2.13.0 # first and pinned: otherwise a build for GPUs of several GB is fetched
    "$venv/bin/python" -m pip install --quiet torch==2.13.0 gymnasium==1.4.0 numpy==2.4.6 "$@"
}

install plain -c ../constraints.txt -e .. # lit_ppo as users have it: what the tests need is not there to be imported
install peers stable-baselines3==2.9.2 sb3-contrib==2.9.2 minigrid==3.2.0 mujoco==4.0.0 ale-py==0.12.1 box2d==2.3.10 \
    opencv-python-headless "gymnasium[mujoco,box2d]==1.4.0"
install peers envpool==1.2.5 || echo "envpool does not install here; its rows will be missing" >&2
for peer in torchrl==0.14.1 tianshou==2.0.1 sheeprl==0.8.4; do
    install "${peer%%=*}" "$peer" || {
        echo "$peer does not install here; its rows will be missing" >&2
        rm -rf ".venvs/${peer%%=*}"
    }
done
