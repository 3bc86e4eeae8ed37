"""Environments that lit_ppo brings along; only the environment process imports them."""
