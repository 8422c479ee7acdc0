"""The explanation of a window while it is viewed: coarse first, then as the engine has it; it stops when told."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from reference import interleaved, picture, randomised, relative

import dehazexl
from dehazexl.image.grid import Window
from dehazexl.image.value_scale import to_dtype
from dehazexl.model import DehazeXL
from dehazexl.viewing.explaining import AttributionMap, ExplainSession, shrunk

WINDOW = Window(250, 300, 240, 280)


@pytest.fixture(scope="module")
def network() -> DehazeXL:
    return randomised("tiny")


@pytest.fixture(scope="module")
def image() -> dehazexl.Image:
    """An image with an overview that is explained first."""
    pixels = to_dtype(255 * interleaved(picture(320, 600)), np.dtype(np.uint8))
    opened = dehazexl.open_image(pixels)
    return replace(opened, levels=(opened.levels[0], opened.levels[0][::2, ::2]))


@pytest.fixture
def explain(image: dehazexl.Image, network: DehazeXL) -> Iterator[Callable[..., ExplainSession]]:
    made: list[ExplainSession] = []

    def make(**options) -> ExplainSession:
        load = options.pop("load", lambda: network)
        made.append(ExplainSession(image, load, WINDOW, baseline="black", **options))
        return made[-1]

    yield make
    for session in made:
        session.close(60)
        assert not session._worker._thread.is_alive()


def test_coarse_first_then_as_the_engine_has_it(explain, image, network) -> None:
    session = explain(steps=3)
    maps: list[AttributionMap] = []
    stages: set[str] = set()
    session.updated.connect(lambda: maps.append(session.found))
    session.progressed.connect(lambda: stages.add(session.status))
    session.start()
    assert session.wait(120) and session.error is None and not session.running
    assert [each.numbers["level"] for each in maps] == [1, 1, 1, 0, 0, 0]
    assert [each.numbers["steps"] for each in maps] == [1, 2, 3, 1, 2, 3]
    assert maps[0].values.shape == (160, 300) and maps[0].side == (2, 2)
    assert {"explaining the overview, step 1 of 3", "explaining, step 2 of 3"} < stages
    expected = dehazexl.explain(
        image.levels[0], (250, 300, 240, 280), network, baseline="black", steps=3, with_curves=False
    )
    assert relative(maps[-1].values, expected.attribution) < 1e-6
    assert maps[-1].side == (1, 1)
    assert maps[-1].numbers == {**expected.numbers, "image": image.name, "level": 0, "points": 3}
    share = 100 * expected.numbers["global_share"]
    assert session.status.startswith(f"{share:.0f} % outside the tiles of the region, half within ")


def test_it_stops_within_a_batch_and_keeps_the_map(explain) -> None:
    session = explain(steps=50)
    first = threading.Event()
    session.updated.connect(first.set)
    session.start()
    assert first.wait(60)
    session.close(60)
    assert not session.running and not session.complete and session.error is None
    assert session.found.numbers["steps"] < 50
    assert session.status == "stopped after step 0 of 50"  # of the image itself


def test_an_error_ends_it(explain) -> None:
    def load() -> DehazeXL:
        raise OSError("no weights")

    session = explain(load=load)
    told: list[Exception] = []
    session.failed.connect(told.append)
    session.start()
    assert not session.wait(60)
    assert [str(error) for error in told] == ["no weights"] and session.status == "failed"


@pytest.mark.parametrize(
    ("options", "message"), [({"steps": 1}, "at least 2"), ({"detector": "median"}, "unknown detector")]
)
def test_bad_requests_are_refused_at_once(image, network, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ExplainSession(image, lambda: network, WINDOW, **options)
    with pytest.raises(ValueError, match="does not lie in the image"):
        ExplainSession(image, lambda: network, Window(0, 400, 0, 10))


@pytest.mark.parametrize("window", [Window(0, 1, 0, 1), Window(999, 1000, 799, 800), Window(3, 500, 13, 29)])
def test_a_window_of_a_coarser_level_covers_that_of_the_finest(window: Window) -> None:
    small = shrunk(window, 8, 8, 125, 100)
    assert small.height >= 2 and small.width >= 2
    assert 0 <= small.y0 <= window.y0 / 8 and window.y1 / 8 <= small.y1 <= 125
    assert 0 <= small.x0 <= window.x0 / 8 and window.x1 / 8 <= small.x1 <= 100
    assert small.height <= window.height / 8 + 2 and small.width <= window.width / 8 + 2
