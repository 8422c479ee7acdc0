"""Planes of a viewer's arrays."""

import numpy as np

from dehazexl.viewing.arrays import all_planes, choose_plane


def test_all_planes_in_order_by_name() -> None:
    array = np.arange(2 * 3 * 11 * 4 * 5).reshape(2, 3, 11, 4, 5)
    labels = [*"tczyx"]
    planes = all_planes(array.shape, labels, False)
    names = [plane.name(array.shape, labels) for plane in planes]
    assert len(planes) == 22 and names == sorted(set(names)) and names[0] == "t0 z00" and names[-1] == "t1 z10"
    assert [plane.page(array.shape) for plane in planes] == [*range(1, 23)]
    for plane, place in zip(planes, np.ndindex(2, 11), strict=True):
        assert plane == choose_plane(array.shape, labels, [place[0], 0, place[1], 0, 0], False)
        np.testing.assert_array_equal(plane.of(array), np.moveaxis(array[place[0], :, place[1]], 0, -1))


def test_planes_of_axes_without_names() -> None:
    labels = ["-4", "-3", "-2", "-1"]
    assert [plane.name((12, 5), ["-3", "-2", "-1"]) for plane in all_planes((12, 4, 5), ["-3", "-2", "-1"], True)][
        :2
    ] == ["plane 00", "plane 01"]
    assert all_planes((2, 5, 4, 6), labels, False)[7].name((2, 5, 4, 6), labels) == "plane 1 2"
    (whole,) = all_planes((4, 5), ["y", "x"], True)
    assert whole.page((4, 5)) is None
