"""Position of the training: epochs and updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass
class TrainState:
    """Where training is.

    Attributes:
        epoch: Epochs finished, over all fits; also the number, from 0, of the epoch that runs.
        step: Updates made, over all fits.
        epoch_step: Updates made in the epoch that runs.
        first: The epoch at which the last fit began.
        last: The epoch before which it ends.
    """

    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    first: int = 0
    last: int = 0

    def planned(self, epochs: int, initial_epoch: int | None) -> TrainState:
        """Return where a fit of so many epochs begins; see ``Model.fit``."""
        if isinstance(epochs, bool) or not isinstance(epochs, (int, np.integer)) or epochs < 1:
            raise ValueError(f"epochs must be a whole number of at least 1, received {epochs!r}.")
        epochs = int(epochs)  # NumPy's, too
        if initial_epoch is not None and not 0 <= initial_epoch < epochs:
            raise ValueError(
                f"With initial_epoch={initial_epoch}, epochs is the last one's number and must be larger; received {epochs}."
            )
        first = self.epoch if initial_epoch is None else initial_epoch
        return TrainState(first, self.step, 0, first, first + epochs if initial_epoch is None else epochs)

    def advance(self) -> None:
        """Count one update."""
        self.step += 1
        self.epoch_step += 1

    def end_epoch(self) -> None:
        """Count the epoch as finished."""
        self.epoch += 1
        self.epoch_step = 0

    def state_dict(self) -> dict[str, int]:
        """Return all counts."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Stand where ``state`` says."""
        fields = {field.name for field in dataclasses.fields(self)}
        if set(state) != fields or any(type(value) is not int or value < 0 for value in state.values()):
            raise ValueError(f"the state of training must be the counts {sorted(fields)}, received {dict(state)}")
        for name, value in state.items():
            setattr(self, name, value)
