"""Attacks on runs and files, as a program: ``python -m tests.security.battery --runs 60 --seed 0``."""
