"""Environments as people have them: does each of them just train, survive and resume?"""
