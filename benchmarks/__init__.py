"""How fast lit_ppo is beside what else people use, on one machine in one run; nothing here is needed to use the package."""
