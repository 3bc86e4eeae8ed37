"""The environment in another process: stdlib, numpy and, in the worker alone, gymnasium."""
