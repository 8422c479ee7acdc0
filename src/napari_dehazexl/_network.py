"""The chosen network and the devices of the machine, looked up in threads: importing torch takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker

from napari_dehazexl._prepare import devices, get_ready, look_up
from napari_dehazexl._save_worker import Named

if TYPE_CHECKING:
    from dehazexl.viewing.model_info import ModelInfo
    from napari_dehazexl._chosen import Chosen


class Network:
    """The network that is chosen in a form.

    Parameters
    ----------
    chosen
        The choices of the form.
    changed
        Called when the properties are known.

    Attributes
    ----------
    info : ModelInfo or str or None
        Properties of the network, or why there are none; None while they are looked up.
    gone : bool
        Whether the form is gone.
    """

    def __init__(self, chosen: Chosen, changed: Callable[[], None]) -> None:
        self.chosen, self.changed = chosen, changed
        self.info: ModelInfo | str | None = None
        self.gone = False

    def check(self) -> None:
        """Raise ValueError for weights that could not dehaze a layer, before it is added."""
        if self.info is None and "torch" in sys.modules:
            self.info = look_up(*self.chosen.network())  # the header of a file
        if isinstance(self.info, str):
            raise ValueError(self.info)

    def look_up(self) -> None:
        """Read the properties of the chosen network."""
        wanted = self.chosen.network()
        self.info = None
        self.changed()

        def found(info: ModelInfo | str) -> None:
            if wanted == self.chosen.network():
                self.info = info
                self.changed()

        worker: Any = create_worker(Named("reading the weights", look_up), *wanted)
        worker.returned.connect(self._while_here(found))
        worker.start()

    def find_devices(self, wanted: str | None) -> None:
        """List the devices in the form, choose the one that is wanted, and load the network."""
        worker: Any = create_worker(Named("looking for devices", devices))
        worker.returned.connect(self._while_here(partial(self._list_devices, wanted)))
        worker.start()

    def _list_devices(self, wanted: str | None, found: list[tuple[str, str]]) -> None:
        device = self.chosen.form.device
        device.choices = found
        if wanted in [name for _, name in found]:
            device.value = wanted
        create_worker(Named("loading the network", get_ready), *self.chosen.network()).start()

    def _while_here(self, slot: Callable[..., None]) -> Callable[..., None]:
        """Return a slot that does nothing once the form is gone."""
        return lambda *values: None if self.gone else slot(*values)
