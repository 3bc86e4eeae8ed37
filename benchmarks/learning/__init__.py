"""Stable-Baselines3 and sb3-contrib beside lit_ppo's rows (`configs/rows/`), and environments with a known optimum."""
