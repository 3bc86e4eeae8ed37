#!/bin/sh
# Make the venv of the peers, benchmarks/.venvs/peers; the package itself needs none of it.
set -eu
cd "$(dirname "$0")"
[ -x .venvs/peers/bin/python ] || python3 -m venv .venvs/peers
.venvs/peers/bin/python -m pip install --quiet torch==2.13.0 # first and pinned: otherwise a build for GPUs of several GB is fetched
.venvs/peers/bin/python -m pip install --quiet gymnasium==1.4.0 stable-baselines3==2.9.2
.venvs/peers/bin/python -m pip install --quiet envpool==1.2.5 || echo "envpool does not install here; its rows will be missing" >&2
