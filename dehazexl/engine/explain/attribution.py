"""Attribution: the parts of an image that a network used for one window of its output.

The Dehazing Attribution Map of Chen et al. (DehazeXL, CVPR 2025, arXiv 2504.09621) by integrated gradients
(Sundararajan, Taly and Yan, Axiomatic attribution for deep networks, ICML 2017): with the straight path
g(s) = b + s (x - b) from a baseline b to the hazy image x, and a detector D of a window of the dehazed image F(x), the
attribution of a pixel is

    (x - b) * integral over s from 0 to 1 of dD(F(g(s))) / dg.

The path may also be smoothed: `fold` straight pieces between the points

    g(s) = b + s G(sigma (1 - s)) (x - b)    for s = 0, 1 / fold, ..., 1,

where G smooths with a Gaussian of that standard deviation, so that the difference fades in from coarse to fine. It has
the same ends, so its attributions have the same sum.

The factor is the derivative of the path, **hazy minus baseline**. The authors' code multiplies by twice the hazy image
minus the clear one, for which the attributions have no known sum. With the derivative, the chain rule makes them sum
to D(F(x)) - D(F(b)), the fundamental theorem of calculus along the path ("completeness"). How closely they do tells
whether there were enough steps; it is one of the numbers of each `Explanation`. Where the attributions cancel each
other, so that the responses hardly differ, their ratio tells nothing, and is not given.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dehazexl.engine.dehaze import choose_batch, prepare
from dehazexl.engine.estimate import total_memory
from dehazexl.engine.explain import baselines, measures
from dehazexl.engine.explain.curves import Curve, count_steps, curves
from dehazexl.engine.explain.detectors import check_detector
from dehazexl.engine.explain.response import Path, Response
from dehazexl.engine.run import Stage
from dehazexl.engine.tiles import Tiles
from dehazexl.image.grid import SIDE, TOKEN, Window
from dehazexl.io.disk import atomic_write, disk_full_message
from dehazexl.model.weights import load_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.engine.explain.response import Baseline
    from dehazexl.engine.job import Job
    from dehazexl.model import DehazeXL

LARGEST_WINDOW = 4096**2
"""Pixels of the largest window: its output is kept in memory, as are the pixels of its tiles."""

WINDOW_BYTES, PIXEL_BYTES, TOKEN_BYTES = 100, 4, 4
"""Bytes of memory at least for each pixel of the window, for each of the image, and for each number of a token."""

MOST_STEPS = 100_000
"""Points of a path at most."""

STATE = "state.json"

CANCELED = 1e-3
"""Difference of the responses, as a share of the absolute attributions, up to which they cancel each other.

Below it, an error of 1e-5 of the absolute attributions, near that of float32, is more than a percent of the difference.
"""

NOTE = (
    "the responses to image and baseline hardly differ: completeness and curves, shares of the difference, tell nothing"
)
"""The note of an explanation whose attributions cancel each other."""


@dataclass(frozen=True)
class Explanation:
    """Attribution of a window of the dehazed image to the pixels of the hazy one.

    Attributes
    ----------
    attribution
        ``(y, x)``, float32: what each pixel contributes, summed over colors. Positive where it raises the response of
        the detector above that to the baseline. 0 where there is no data.
    tiles, tokens
        The same, summed over tiles ``(rows, cols)`` and over the squares of pixels that a token represents.
    numbers
        Plain values by name, see `Attribution.numbers`.
    curves
        Deletion and insertion curves by name, or empty.
    """

    attribution: NDArray[np.float32]
    tiles: NDArray[np.float64]
    tokens: NDArray[np.float64]
    numbers: dict[str, Any]
    curves: dict[str, Curve]

    def to_dict(self) -> dict[str, Any]:
        """Return numbers and curves as plain values for JSON, which has no NaN: None is in its place."""
        numbers = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in self.numbers.items()}
        return numbers | {name: curve.to_dict() for name, curve in self.curves.items()}


def explain(
    source: Any,
    window: tuple[int, int, int, int],
    model: DehazeXL | str | FilePath | None = None,
    *,
    detector: str = "sum",
    baseline: str | FilePath = "dehazed",
    steps: int = 100,
    with_curves: bool = True,
    sigma: float = baselines.SIGMA,
    fold: int = 1,
    overlap: int | None = None,
    value_range: tuple[float, float] | None = None,
    bands: Sequence[int | str] | None = None,
    batch: int | Literal["auto"] = "auto",
) -> Explanation:
    """Compute which parts of a hazy image a network used for a window of its output, see `engine.explain.attribution`.

    Parameters
    ----------
    source, overlap, value_range, bands
        See `dehaze`.
    window
        Rows and columns ``(y0, y1, x0, x1)``.
    model
        A network of `load_model`, or the name or path of weights, which are then loaded in float32; None loads the
        bundled weights.
    detector
        ``"sum"`` over the window, the paper's; ``"mean-variance"``, its code's; ``"gradient"``, the edge strength.
    baseline
        ``"dehazed"``: the network's own output; ``"black"``; ``"blur"``: the image, blurred; or the path of an image of
        the same size and data type, such as one without haze.
    steps
        Points of the path, in the middle of as many equal parts.
    with_curves
        Compute deletion and insertion curves as well.
    sigma
        Standard deviation in pixels of the baseline ``"blur"``, and of the smoothing at the start of a path that is
        smoothed.
    fold
        Straight pieces of a smoothed path; 1 for the straight path. `steps` is a multiple of it.
    batch
        Number of tiles computed at once, with gradients.

    Returns
    -------
    Explanation
        Maps and numbers.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        See `dehaze`; ValueError also for a window outside the image, larger than 4096 x 4096 pixels or without data,
        what does not fit in the memory, a baseline of another size, fewer than two steps, and steps that are no
        multiple of `fold`.
    """
    job = prepare_float32(source, model, overlap, value_range, bands, batch)
    work = Attribution(job, Window(*window), detector, baseline, steps, sigma=sigma, fold=fold, with_curves=with_curves)
    for stage in work.stages():
        for _ in stage.steps:
            pass
    return work.result()


def prepare_float32(
    source: Any,
    model: DehazeXL | str | FilePath | None = None,
    overlap: int | None = None,
    value_range: tuple[float, float] | None = None,
    bands: Sequence[int | str] | None = None,
    batch: int | Literal["auto"] = "auto",
) -> Job:
    """Check the arguments of `explain` and open the image, as `dehaze.prepare` does, with weights in float32."""
    if model is None or isinstance(model, (str, FilePath)):
        model = load_model(dtype="float32") if model is None else load_model(model, dtype="float32")
    # A tile with gradients takes several times the memory of one without.
    at_once = max(1, choose_batch(batch, model) // 4) if batch == "auto" else batch
    return prepare(source, model, overlap, 1.0, value_range, bands, at_once, border="ignore")


class Attribution:
    """The computation of an `Explanation` in stages that can be left after any step.

    Parameters
    ----------
    job, window, detector, baseline, steps, sigma, fold, with_curves
        See `explain`.
    folder
        Existing folder for intermediate results, from which an interrupted computation goes on. The caller ensures that
        it holds those of the same computation, or nothing. None keeps them in memory: 8 bytes per pixel, and the
        baselines ``dehazed`` and ``blur``.

    Attributes
    ----------
    done
        Points of the path that are computed.

    Raises
    ------
    ValueError
        See `explain`.
    """

    def __init__(
        self,
        job: Job,
        window: Window,
        detector: str = "sum",
        baseline: str | FilePath = "dehazed",
        steps: int = 100,
        *,
        sigma: float = baselines.SIGMA,
        fold: int = 1,
        with_curves: bool = True,
        folder: FilePath | None = None,
    ) -> None:
        check_window(job, window)
        check_memory(job, window)
        check_steps(steps, fold)
        if not 0 < sigma <= baselines.LARGEST_SIGMA:
            raise ValueError(f"sigma must be above 0 and at most {baselines.LARGEST_SIGMA:g} pixels, not {sigma}")
        self.job, self.window, self.steps, self.detector = job, window, steps, detector
        self.baseline, self.sigma, self.fold, self.with_curves = str(baseline), sigma, fold, with_curves
        self._detect, self._folder = check_detector(detector, window), folder
        known: dict[str, Baseline] = {"black": baselines.black}
        if self.baseline not in baselines.NAMES:
            known[self.baseline] = baselines.open_baseline(job, baseline)
        self._baseline = known.get(self.baseline)
        self._sums: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self._state: dict[str, Any] = {"steps": 0, "baseline": False, "ends": None} | self._read_state()
        self._curves: dict[str, Curve] = {}

    @property
    def done(self) -> int:
        """Points of the path that are computed."""
        return int(self._state["steps"])

    def stages(self) -> Iterator[Stage]:
        """Yield the stages; iterate over the steps of each before the next.

        Their steps are tiles, each counted twice for each point of the path, but blocks of the baseline. The work may
        be left after any step: what a folder contains then is a whole number of points.
        """
        tiles = self.job.grid.count
        yield from self._baseline_stages()
        if self._state["ends"] is None:
            yield Stage("ends", 2 * tiles, self._find_ends())
        yield Stage("path", 2 * tiles * self.steps, self._follow())
        if self.with_curves and tiles > 1 and not self._cancels(measures.absolute_sum(self.attribution())):
            yield Stage("curves", 2 * tiles + count_steps(tiles), self._find_curves())

    @property
    def difference(self) -> float:
        """Response to the image minus response to the baseline."""
        start, end = self._state["ends"]
        return float(end - start)

    def _cancels(self, absolute: float) -> bool:
        """Return whether the responses hardly differ, given the sum of the absolute attributions."""
        return abs(self.difference) <= CANCELED * absolute or not self.difference

    def attribution(self) -> NDArray[np.float32]:
        """Return the map ``(y, x)`` by the points computed so far."""
        return self._sum(self.done) / np.float32(max(self.done, 1))

    def result(self) -> Explanation:
        """Return maps and numbers by the points computed so far."""
        values, grid = self.attribution(), self.job.grid
        tiles = measures.squares(
            values, [row * grid.stride for row in range(grid.rows)], [col * grid.stride for col in range(grid.cols)]
        )
        token = self._token_side
        tokens = measures.squares(values, range(0, grid.height, token), range(0, grid.width, token))
        return Explanation(values, tiles, tokens, self.numbers(values, tokens), self._curves)

    def numbers(self, values: NDArray[np.float32], tokens: NDArray[np.float64]) -> dict[str, Any]:
        """Return the numbers of a map ``(y, x)`` and of its sums over tokens.

        Returns
        -------
        dict
            The request; ``response_to_image``, ``response_to_baseline`` and their ``difference``; ``sum`` of the
            attributions, ``absolute_sum`` of their absolute values, and ``error``, by which the sum misses the
            difference as a share of the latter; ``completeness``, the sum over the difference, NaN with a ``note``
            where the responses hardly differ (by a thousandth of the absolute sum); ``global_share``, the share of the
            absolute attributions outside the tiles of the window; ``radius_50`` and ``radius_90``, the distance in
            pixels from the window within which these percentages of them lie; ``gini`` of the tokens and
            ``diffusion_index``, see `measures.gini`; and ``tile_side`` and ``token_side``, the pixels that a tile
            (without the overlap) and a token stand for.
        """
        own = self.job.grid.tile_window(self.job.grid.tiles_touching(self.window))
        total, absolute = float(values.sum(dtype=np.float64)), measures.absolute_sum(values)
        cancels, spread = self._cancels(absolute), measures.gini(tokens)
        start, end = self._state["ends"]
        return {
            "image": self.job.image.name,
            "window": [self.window.y0, self.window.y1, self.window.x0, self.window.x1],
            "detector": self.detector,
            "baseline": self.baseline,
            "steps": self.done,
            "fold": self.fold,
            "response_to_image": end,
            "response_to_baseline": start,
            "difference": self.difference,
            "sum": total,
            "absolute_sum": absolute,
            "error": abs(total - self.difference) / absolute if absolute else math.nan,
            "completeness": math.nan if cancels else total / self.difference,
            "note": NOTE if cancels else "",
            "global_share": measures.share_outside(values, own),
            "radius_50": measures.radius(values, self.window, 0.5),
            "radius_90": measures.radius(values, self.window, 0.9),
            "gini": spread,
            "diffusion_index": 100 * (1 - spread),
            "tile_side": self.job.grid.stride,
            "token_side": self._token_side,
        }

    @property
    def _token_side(self) -> int:
        return TOKEN * self.job.model.spec.scale

    def _response(self, path: Path | None = None) -> Response:
        """Return the response on a path, by default the straight one."""
        assert self._baseline is not None
        return Response(path or Path(self.job, self._baseline), self.window, self._detect)

    def _piece(self, number: int) -> Path:
        """Return a straight piece of the path."""
        start = self._point(number)
        assert start is not None
        return Path(self.job, start, self._point(number + 1), self.fold)

    def _point(self, number: int) -> Baseline | None:
        """Return the start of a straight piece of the path; None for the image, where the last ends."""
        assert self._baseline is not None
        if number in (0, self.fold):
            return None if number else self._baseline
        share = number / self.fold
        return baselines.smoothed(self.job, self._baseline, share, self.sigma * (1 - share))

    def _baseline_stages(self) -> Iterator[Stage]:
        """Yield the stages that compute the baseline, if it has to be."""
        if self._baseline is not None:
            return
        image = self.job.image.levels[0]
        array = self._array("baseline", (*image.shape[:2], 3), image.dtype)
        if not self._state["baseline"]:
            if self.baseline == "blur":
                yield from baselines.blurred_stages(self.job, array, self.sigma)
            else:
                yield from baselines.dehazed_stages(self.job, array)
            self._write_state(array, baseline=True)
        self._baseline = baselines.of_array(self.job, array)

    def _find_ends(self) -> Generator[int, None, None]:
        """Compute the responses to the baseline and to the image."""
        response, ends = self._response(), []
        for share in (0, 1):
            shares = np.full(self.job.grid.count, share, np.float32)
            tokens = yield from response.tokens(shares)
            ends.append((yield from response.value(tokens, shares)))
        self._write_state(ends=ends)

    def _follow(self) -> Iterator[int]:
        """Add up the gradients at all points of the path."""
        tiles = self.job.grid.count
        if self.done:
            yield 2 * tiles * self.done
        for point in order(self.steps)[self.done :]:
            total = self._sum(self.done + 1)
            total[:] = self._sum(self.done)
            piece, share = divmod((point + 0.5) * self.fold / self.steps, 1)
            response = self._response(self._piece(int(piece)))
            yield from response.gradient(np.full(tiles, share, np.float32), total)
            # The other array keeps the sum without this point until the state says that it is complete.
            self._write_state(total, steps=self.done + 1)

    def _find_curves(self) -> Iterator[int]:
        self._curves = yield from curves(self._response(), self.result().tiles, tuple(self._state["ends"]))

    def _sum(self, points: int) -> NDArray[np.float32]:
        """Return the array with the sum over that many points; there are two, for even and odd numbers."""
        if self._sums is None:
            shape = self.job.image.levels[0].shape[:2]
            self._sums = self._array("sum0", shape, np.float32), self._array("sum1", shape, np.float32)
        return self._sums[points % 2]

    def _array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array of zeros, or that of the folder."""
        if self._folder is None:
            return np.zeros(shape, dtype)
        path = self._folder / f"{name}.npy"
        if path.exists() and any(self._state.values()):
            return np.lib.format.open_memmap(path, mode="r+")
        with disk_full_message(f"making {path}", "what is done is kept, so make room and run it again"):
            try:
                array = np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)
                if hasattr(os, "posix_fallocate"):  # a full disk would kill the process when a page is written
                    with path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        return array

    def _read_state(self) -> dict[str, Any]:
        if self._folder is None or not (self._folder / STATE).exists():
            return {}
        return dict(json.loads((self._folder / STATE).read_text()))

    def _write_state(self, array: NDArray[Any] | None = None, **changes: Any) -> None:
        """Note that something is complete, after its array has been written."""
        self._state |= changes
        if self._folder is None:
            return
        if isinstance(array, np.memmap):
            array.flush()
        with atomic_write(self._folder / STATE) as part:
            part.write_text(json.dumps(self._state))


def order(steps: int) -> list[int]:
    """Return the points of a path in an order of which any first part covers it evenly.

    Steps of about the golden ratio, so that a map is a good estimate before it is complete.
    """
    stride = max(1, round(steps * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, steps) > 1:
        stride += 1
    return [(steps // 2 + point * stride) % steps for point in range(steps)]


def check_steps(steps: int, fold: int = 1) -> int:
    """Return a number of points of a path; raise ValueError if it is below 2, or no multiple of its pieces."""
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"steps must be at least 2, and at most {MOST_STEPS}, not {steps}")
    if fold < 1 or steps % fold:
        raise ValueError(f"fold must be at least 1 and divide the {steps} steps, not {fold}")
    return steps


def check_memory(job: Job, window: Window) -> None:
    """Refuse what certainly does not fit in the memory of the machine.

    Raises
    ------
    ValueError
        Naming what is needed and what there is.
    """
    height, width = job.image.levels[0].shape[:2]
    tokens = job.grid.count * SIDE**2 * job.channels * (2 + len(job.model.context.layers))  # and those of each layer
    needed = WINDOW_BYTES * window.height * window.width + PIXEL_BYTES * height * width + TOKEN_BYTES * tokens
    there = total_memory()
    if there is not None and needed > there:
        raise ValueError(
            f"explaining a window of {window.height} x {window.width} pixels in an image of {width} x {height} takes "
            f"{needed / 1e9:.0f} GB of memory at least, and there are {there / 1e9:.0f} GB: explain a smaller window, "
            "or cut out a part of the image, as by gdal_translate -srcwin"
        )


def check_window(job: Job, window: Window) -> None:
    """Check a window of pixels.

    Raises
    ------
    ValueError
        If it does not lie in the image, is too large or holds no data.
    """
    try:
        job.image.cropped(window)
    except ValueError as error:
        raise ValueError(str(error).replace("region", "window", 1)) from None
    text = f"window {window.y0}:{window.y1},{window.x0}:{window.x1}"
    if window.height * window.width > LARGEST_WINDOW:
        side = math.isqrt(LARGEST_WINDOW)
        raise ValueError(f"{text} has {window.height} x {window.width} pixels: at most {side} x {side}")
    read = Tiles.read(job, job.grid.tiles_touching(window))
    if not read.valid[window.to_slices(read.window)].any():
        raise ValueError(f"{text} holds no data: choose another one")
