"""What the widget remembers from one session to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DELAY = 500
"""Milliseconds after the last change until it is written: a slider changes many times a second."""


class Settings:
    """Values by name, kept in a file that is there whole or not at all."""

    def __init__(self) -> None:
        from qtpy.QtCore import QTimer

        self.values = read_settings()
        self._written = dict(self.values)
        self._told = False
        self._timer = QTimer()
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self.write)

    def remember(self, **values: Any) -> None:
        """Change values, and write them in a moment."""
        if values.items() <= self.values.items():
            return
        self.values |= values
        self._timer.start(DELAY)

    def speed(self, network: tuple[str, ...]) -> float | None:
        """Return the seconds that a tile took with weights, device and dtype, or None."""
        return self._speeds().get(" ".join(network))

    def measured(self, network: tuple[str, ...], seconds: float, *, anew: bool) -> None:
        """Remember how long a tile took; unless `anew` only where nothing is known."""
        speeds, name = self._speeds(), " ".join(network)
        if anew or name not in speeds:
            self.remember(seconds_per_tile=speeds | {name: float(f"{seconds:.3g}")})

    def _speeds(self) -> dict[str, float]:
        speeds = self.values.get("seconds_per_tile")
        return speeds if isinstance(speeds, dict) else {}

    def write(self) -> None:
        """Write what has changed now; say once if it cannot be."""
        from napari.utils.notifications import show_warning

        from dehazexl.io.disk import atomic_write

        if self.values == self._written:
            return
        # Another window may have written others meanwhile.
        changed = {name: value for name, value in self.values.items() if self._written.get(name) != value}
        # They are not taken over: at the next change here what this window shows would be written over them.
        values = self.values | read_settings() | changed
        self._written, path = dict(self.values), settings_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as part:
                part.write_text(json.dumps(values))
        except OSError as error:
            if not self._told:
                self._told = True
                show_warning(f"settings are not remembered: {error}")


def settings_file() -> Path:
    """Where the settings are kept: in the user's folder for such."""
    from platformdirs import user_config_path

    return user_config_path("napari-dehazexl") / "dehaze.json"


def read_settings() -> dict[str, Any]:
    """Return what was remembered, or nothing."""
    try:
        settings = json.loads(settings_file().read_text())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}
