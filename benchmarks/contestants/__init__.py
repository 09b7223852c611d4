"""The contestants: one file for each, written as its own documentation tells a user to.

A file has up to three functions. ``fit(task)`` trains ``task.module`` for ``task.epochs`` and calls ``task.tick`` after each.
``evaluate(task)`` and ``predict(task)`` return a function that is then timed: one returns the accuracy, the other the outputs.
All log the accuracy of the training data as they go, and show the progress that they show by default.
"""
