"""Compares two checkouts of lit_ppo: results, speed, cost of a boundary, structure."""
