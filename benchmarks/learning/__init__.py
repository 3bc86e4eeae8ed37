"""Evidence that lit_ppo learns: each row beside Stable-Baselines3 or sb3-contrib with the same settings in the same run."""
