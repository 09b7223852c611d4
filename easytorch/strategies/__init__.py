"""Devices, precisions and processes a step runs on."""
