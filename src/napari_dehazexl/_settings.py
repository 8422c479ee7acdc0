"""The widget's choices, kept from one session to the next."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtpy.QtCore import QObject, QSettings

DELAY = 500
"""Milliseconds after the last change until it is written: a slider changes many times a second."""


class Settings:
    """Values by name, kept in the user's settings.

    Parameters
    ----------
    parent
        Owner of the timer.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        from superqt.utils import qdebounced

        self._file = open_settings()
        self.values: dict[str, Any] = {}
        for name in self._file.allKeys():
            with suppress(ValueError):  # damaged
                self.values[name] = json.loads(str(self._file.value(name)))
        self._stored = dict(self.values)
        self._warned = False
        self._write_soon = qdebounced(self.write, timeout=DELAY, parent=parent)

    def remember(self, **values: Any) -> None:
        """Change values, and write them in a moment."""
        if values.items() <= self.values.items():
            return
        self.values |= values
        self._write_soon()

    def speed(self, network: tuple[str, ...]) -> float | None:
        """Return the seconds that a tile took with weights, device and dtype, or None."""
        return self._speeds().get(" ".join(network))

    def measured(self, network: tuple[str, ...], seconds: float, *, replace: bool) -> None:
        """Remember the seconds that a tile took; unless `replace` only where nothing is known."""
        speeds, name = self._speeds(), " ".join(network)
        if replace or name not in speeds:
            self.remember(seconds_per_tile=speeds | {name: float(f"{seconds:.3g}")})

    def _speeds(self) -> dict[str, float]:
        speeds = self.values.get("seconds_per_tile")
        return speeds if isinstance(speeds, dict) else {}

    def write(self) -> None:
        """Write the changes now; warn once if that fails."""
        from napari.utils.notifications import show_warning

        # Only those: another window may have written others meanwhile.
        changed = {name: value for name, value in self.values.items() if self._stored.get(name) != value}
        if not changed:
            return
        self._stored = dict(self.values)
        for name, value in changed.items():
            self._file.setValue(name, json.dumps(value))
        self._file.sync()
        if self._file.status() != self._file.Status.NoError and not self._warned:
            self._warned = True
            show_warning(f"settings are not remembered: {self._file.fileName()} cannot be written")


def open_settings() -> QSettings:
    """Open the user's settings of this plugin: an INI file on every system, its values in JSON."""
    from qtpy.QtCore import QSettings

    return QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-dehazexl", "dehaze")
