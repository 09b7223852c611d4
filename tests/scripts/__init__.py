"""Tests of scripts in plain PyTorch and of explanations."""
