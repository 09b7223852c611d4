"""Position of the training: epochs and updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from easytorch._utils.integers import positive_int


@dataclasses.dataclass
class TrainState:
    """Where training is.

    Attributes:
        epoch: Epochs finished over all fits, which is also the number of the current epoch, counted from 0.
        step: Updates over all fits.
        epoch_step: Updates in the current epoch.
        first: Epoch at which the last fit started.
        last: Epoch before which it ends.
    """

    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    first: int = 0
    last: int = 0

    def plan(self, epochs: Any, initial_epoch: int | None) -> TrainState:
        """Return the state in which a fit starts; see ``Model.fit`` for the arguments.

        Raises:
            ValueError: If ``epochs`` is not a positive integer, or not larger than ``initial_epoch``.
        """
        epochs = positive_int("epochs", epochs)
        if initial_epoch is None:
            return TrainState(self.epoch, self.step, 0, self.epoch, self.epoch + epochs)
        if not 0 <= initial_epoch < epochs:
            raise ValueError(
                f"epochs must be larger than initial_epoch, received epochs={epochs} and initial_epoch={initial_epoch}. With "
                "initial_epoch, epochs is the number of the last epoch."
            )
        return TrainState(initial_epoch, self.step, 0, initial_epoch, epochs)

    def progress(self, steps: int | None) -> float:
        """Return the share of the planned updates that is finished, from 0 to 1.

        Args:
            steps: Updates per epoch; None if unknown, which counts finished epochs only.
        """
        epochs = self.epoch - self.first + (self.epoch_step / steps if steps else 0)
        return min(epochs / max(self.last - self.first, 1), 1.0)

    def advance(self) -> None:
        """Count one update."""
        self.step += 1
        self.epoch_step += 1

    def end_epoch(self) -> None:
        """Count the current epoch as finished."""
        self.epoch += 1
        self.epoch_step = 0

    def state_dict(self) -> dict[str, int]:
        """Return all counts."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore all counts.

        Raises:
            ValueError: If ``state`` has other entries than these counts.
        """
        names = {field.name for field in dataclasses.fields(self)}
        if set(state) != names or any(type(value) is not int or value < 0 for value in state.values()):
            raise ValueError(f"expected the counts {sorted(names)}, received {dict(state)}")
        for name, value in state.items():
            setattr(self, name, value)
