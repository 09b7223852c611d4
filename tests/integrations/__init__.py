"""Tests of easytorch.integrations."""
