"""Progress over all stages of a save, and settings that can be told and repeated."""

from dehazexl.viewing.choices import Choices
from dehazexl.viewing.meter import NEARLY, Meter


def test_a_meter_only_rises_up_to_the_end() -> None:
    meter = Meter(10, layers=2, encoded_again=True)
    seen = [meter.fraction]
    for stage, steps in (("encoding", 10), ("fusing", 20), ("decoding", 15)):  # some tiles are decoded twice
        for _ in range(steps):
            meter.add(stage, 1)
            seen.append(meter.fraction)
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == NEARLY
    assert seen[10] == seen[-1] / NEARLY * 10 / (10 + 0.15 * 20 + 2 * 10), "each stage counts by its cost"
    assert meter.rate is not None and meter.left is not None
    assert str(meter).startswith("removing the haze, ") and str(meter).endswith(" left")


def test_a_resumed_meter_begins_where_it_was() -> None:
    meter = Meter(10, layers=1)
    assert meter.rate is None and meter.left is None and str(meter) == "starting"
    meter.reach("encoding", 1)
    before = meter.fraction
    meter.reach("fusing", 0.5)
    assert meter.fraction > before > 0.3


def test_settings_are_told_by_what_differs() -> None:
    plain = Choices()
    other = Choices(weights="/w/mine.safetensors", overlap=64, region=(0, 10, 5, 20), strength=0.5)
    assert plain.label([]) == plain.label([plain]) == ""
    assert other.label([plain]) == "weights mine, overlap 64, strength 0.5, region 0:10,5:20"
    assert plain.label([other]) == "weights compact, overlap auto, strength 1, whole"


def test_a_region_is_repeated_with_its_context() -> None:
    choices = Choices(region=(0, 10, 5, 20), context="region", value_range=(0, 3000.5), device="cpu")
    command = choices.as_command("a b.tif", "out.ome.zarr")
    assert command == (
        "dehazexl run 'a b.tif' out.ome.zarr --device cpu --range 0,3000.5 --region 0:10,5:20 --context region"
    )
    script = choices.as_script("a b.tif", "out.ome.zarr")
    compile(script, "script", "exec")
    assert "region=(0, 10, 5, 20), context='region'" in script and "to_zarr" in script
