"""Contestants, each written as in the documentation of its library.

A file has up to three functions. ``fit(task)`` trains ``task.module`` for ``task.epochs`` and calls ``task.tick`` after
each epoch. ``evaluate(task)`` and ``predict(task)`` return a function that is measured; it returns the accuracy or the
outputs. All contestants log the training accuracy and show their default progress output.
"""
