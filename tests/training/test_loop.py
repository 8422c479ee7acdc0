"""Training: it learns, resumes bit for bit, and survives failures."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from reference import interleaved, picture, randomised
from safetensors.torch import load_file

from dehazexl import load_model
from dehazexl.image.grid import TILE
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model.heads import Affine
from dehazexl.model.spec import spec_from_text
from dehazexl.model.weights import describe
from dehazexl.synthesis.haze import add_haze, invert_scatter
from dehazexl.training.augment import center_crop, join_crops, random_crop, smoothed
from dehazexl.training.batches import Batch, iterate_batches, make_step, validation_set
from dehazexl.training.checkpoint import State
from dehazexl.training.config import Recipe, learning_rate
from dehazexl.training.datasets import Dataset, choose_held_out, find_clear, open_datasets
from dehazexl.training.log import plot, read_log
from dehazexl.training.loop import PATIENCE, train, train_step, update_average, validate
from dehazexl.training.losses import losses, seam, slope
from dehazexl.training.rgb_files import read_rgb

TINY = replace(SPECS["tiny"], depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1))
CPU = torch.device("cpu")
SHORT = Recipe(steps=6, tiles=1, warmup=2, lr=1e-3)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.rint(interleaved(picture(height, width, seed)) * 255).astype(np.uint8)


def dataset(*images: np.ndarray) -> Dataset:
    return Dataset(images, None, [str(i) for i in range(len(images))])


IMAGES = dataset(photo(300, 400), photo(500, 280, 1))
NONE = dataset()


def one_crop() -> Batch:
    clear = torch.from_numpy(picture(256))[None]
    generator = torch.Generator().manual_seed(0)
    hazy = add_haze(clear, generator, ["veil"], thickness=(0.8, 0.8), clear_share=0, camera=False)
    return Batch(clear, hazy.pixels, -hazy.transmission.log(), hazy.airlight, torch.zeros(1, 1, 1, 1))


def weights(model: DehazeXL) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


class Untouched(torch.nn.Module):
    """A network that returns its input."""

    device = CPU

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# ---- Learning ---------------------------------------------------------------------------------------


def test_a_small_network_overfits_a_crop() -> None:
    recipe = Recipe(steps=60, lr=5e-3, warmup=5, ema=0.9)
    state, crop = State.start(SPECS["tiny"], recipe, CPU), one_crop()
    assert validate(Untouched(), [crop])["psnr"] < 15  # type: ignore[arg-type]
    for i in range(recipe.steps):
        train_step(state, [crop], learning_rate(i, recipe), recipe)
        state.step += 1
    scores = validate(state.average, [crop])
    assert scores["psnr"] > 35
    assert scores["ssim"] > 0.9


@pytest.mark.parametrize("thickness", [0.02, 0.8])
def test_the_loss_of_the_target_is_zero(thickness: float) -> None:
    clear = torch.from_numpy(picture(256))[None]
    hazy = add_haze(
        clear, torch.Generator().manual_seed(0), ["veil"], (thickness, thickness), clear_share=0, camera=False
    )
    crop, gain = (
        Batch(clear, hazy.pixels, -hazy.transmission.log(), hazy.airlight, torch.zeros(1, 1, 1, 1)),
        1 / hazy.transmission,
    )
    shift = invert_scatter(torch.zeros_like(clear), hazy.transmission, hazy.airlight)
    assert losses(crop, Affine(gain, shift), Recipe()) < 1e-4
    unchanged = losses(crop, Affine(torch.ones_like(gain), torch.zeros_like(gain)), Recipe())
    assert unchanged > 0.05 * thickness
    if thickness < 0.1:
        return
    tinted = shift * torch.tensor([1.1, 1.0, 1.0]).view(3, 1, 1)
    color = losses(crop, Affine(gain, tinted), Recipe(airlight=1)) - losses(
        crop, Affine(gain, tinted), Recipe(airlight=0)
    )
    red = (1 - hazy.transmission[:, 0]) * 0.1 * hazy.airlight[:, 0]
    assert color == pytest.approx(float(red.mean()) / 3, rel=1e-3)
    unknown = replace(crop, optical=None, airlight=None, tone=None)
    assert losses(unknown, Affine(gain, shift), Recipe()) < 1e-4


def test_heads_without_transmission_have_no_scattering_loss() -> None:
    crop = one_crop()
    gain, shift = torch.ones_like(crop.hazy), crop.clear - crop.hazy  # the optimal output of the residual head
    assert losses(crop, Affine(gain, shift), Recipe(), scattering=False) < 1e-4
    assert losses(crop, Affine(gain, shift), Recipe()) > 0.1


def test_thin_haze_has_the_weight_of_the_mean_psnr() -> None:
    clear = torch.full((2, 3, 256, 256), 0.5)
    wrong = torch.tensor([0.05, 0.2]).view(2, 1, 1, 1).requires_grad_()
    recipe = Recipe(psnr=1, fft=0, seam=0)
    loss = losses(Batch(clear, clear), Affine(torch.ones_like(clear), wrong.expand_as(clear)), recipe)
    loss.backward()
    thin, dense = wrong.grad.flatten() - 0.5  # less the gradient of L1
    assert thin == pytest.approx(0.05 / (0.05**2 + 1e-3), rel=1e-4)
    assert dense == pytest.approx(0.2 / (0.2**2 + 1e-3), rel=1e-4)
    assert thin > 2 * dense


def test_steps_of_the_transmission_between_cells_have_a_loss() -> None:
    crop = one_crop()
    t = torch.exp(-crop.optical) * torch.where(
        torch.arange(256) // 4 % 2 == 0, 0.97, 1.03
    )  # every other column of cells
    even = torch.exp(-crop.optical) * 0.97

    def jumps(t: torch.Tensor) -> float:
        change = Affine(1 / t, crop.airlight * (1 - 1 / t))
        return float(losses(crop, change, Recipe(smooth=1)) - losses(crop, change, Recipe(smooth=0)))

    assert jumps(t) == pytest.approx(math.log(1.03 / 0.97), rel=0.02)
    assert jumps(even) < 1e-4


@pytest.mark.parametrize("axis", [2, 3])
def test_slopes_of_the_error_count_at_three_scales(axis: int) -> None:
    along = torch.arange(512.0).view(512, 1) if axis == 2 else torch.arange(512.0)
    even = torch.zeros(1, 3, 512, 512)
    assert slope(even + 0.3) == 0
    assert slope(even + 0.01 * along) == pytest.approx(3 * 4 * 0.01, rel=1e-4)
    tiles = even + 0.2 * (along // 256)
    assert slope(tiles) == pytest.approx(0.2 * (1 / 127 + 1 / 4 / 31 + 1 / 16 / 7), rel=1e-4)
    cut = (even + 0.01 * along)[:, :, :190, :51]
    assert slope(cut) > 0.02


def test_the_seam_loss_is_the_jump_at_tile_borders() -> None:
    error = torch.zeros(1, 3, 512, 512)
    assert seam(error[..., :256, :256]) == 0
    assert seam(error + 0.3) == 0
    error[:, :, 256:] = 0.2  # one of two borders
    assert seam(error) == pytest.approx(0.2 / 2 / 3)  # one of three steps
    frame = torch.zeros(1, 3, 512, 512)
    frame[:, :, 252:260] = 0.2  # a hazy frame at the border does not lower the loss
    assert seam(frame) > seam(error) / 2
    inner = torch.zeros(1, 3, 512, 512)
    inner[:, :, 100:] = 0.2
    assert seam(inner) == 0


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(steps=1000, warmup=100, lr=1e-3)
    rates = [learning_rate(i, recipe) for i in range(1000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    assert 95 <= int(np.argmax(rates)) <= 105
    assert rates[-1] < 1e-8
    assert np.all(np.diff(rates[100:]) < 0)


def test_the_average_follows_the_weights() -> None:
    average, model = randomised(TINY, 0), randomised(TINY, 1)
    x = torch.from_numpy(picture(100))[None]
    before, target = weights(average), weights(model)
    average(x)
    update_average(average, model, step=10**6, decay=0.9)
    for own, old, new in zip(weights(average), before, target, strict=True):
        assert torch.allclose(own, 0.9 * old + 0.1 * new, atol=1e-6)
    fresh = DehazeXL(TINY).eval()
    fresh.load_state_dict(average.state_dict())
    assert torch.equal(average(x), fresh(x))  # the cached biases were cleared
    update_average(average, model, step=0, decay=0.9)  # faster in the first steps
    assert torch.allclose(weights(average)[0] - target[0], 0.09 * (before[0] - target[0]), atol=1e-5)


def test_biases_and_norms_do_not_decay() -> None:
    state = State.start(TINY, replace(SHORT, decay=0.3), CPU)
    matrices, vectors = state.optimizer.param_groups
    assert matrices["weight_decay"] == 0.3
    assert vectors["weight_decay"] == 0
    assert len(matrices["params"]) + len(vectors["params"]) == len(weights(state.model))


# ---- Files ------------------------------------------------------------------------------------------


def test_a_run_writes_weights_a_log_and_checkpoints(tmp_path: Path) -> None:
    recipe = replace(SHORT, steps=3)
    reports = list(
        train(IMAGES, dataset(photo(300, 400)), tmp_path / "run", TINY, recipe, every=2, about={"data": "mine"})
    )
    assert [r["step"] for r in reports] == [1, 2, 3]
    assert [("psnr" in r) for r in reports] == [False, True, True]
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == ["best.pt", "best.safetensors", "checkpoint.pt", "last.safetensors", "log.csv"]
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert float(rows[1]["loss"]) == pytest.approx(reports[1]["loss"])
    about = describe(tmp_path / "run" / "last.safetensors")
    assert about["data"] == "mine"
    assert about["processes"] == 1
    assert "licence" not in about  # the license of user weights is unknown
    assert about["recipe"]["steps"] == 3
    assert about["trained"]["step"] == 3
    model = load_model(tmp_path / "run" / "last.safetensors", "cpu", "float32")
    assert model.spec == TINY


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    for _ in train(IMAGES, NONE, tmp_path / "whole", TINY, SHORT, every=3):
        pass
    run = train(IMAGES, NONE, tmp_path / "parts", TINY, SHORT, every=3)
    list(islice(run, 4))  # one step more than in the checkpoint
    run.close()  # type: ignore[attr-defined]
    again = list(train(IMAGES, NONE, tmp_path / "parts", TINY, SHORT, every=3, resume=True))
    assert [report["step"] for report in again] == [4, 5, 6]
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 6
    for part in ("model", "average"):
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
    for index, state in whole["optimizer"]["state"].items():
        assert all(torch.equal(value, parts["optimizer"]["state"][index][name]) for name, value in state.items())


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    model = randomised(TINY)
    list(train(IMAGES, NONE, tmp_path, TINY, replace(SHORT, steps=1, lr=0.0), init=model))
    last = load_model(tmp_path / "last.safetensors", device="cpu", dtype="float32")
    for ours, given in zip(weights(last), weights(model), strict=True):
        torch.testing.assert_close(ours, given.half().float())


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    recipe = replace(SHORT, steps=1)
    assert len(list(train(IMAGES, NONE, tmp_path, TINY, recipe))) == 1
    assert list(train(IMAGES, NONE, tmp_path, TINY, recipe, resume=True)) == []


def test_a_time_limit_leaves_a_resumable_run(tmp_path: Path) -> None:
    assert [r["step"] for r in train(IMAGES, NONE, tmp_path, TINY, SHORT, minutes=0)] == [1]
    assert next(train(IMAGES, NONE, tmp_path, TINY, SHORT, resume=True))["step"] == 2


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    State.start(TINY, SHORT, CPU).save(tmp_path / "checkpoint.pt")
    other = replace(TINY, head="gain")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: the checkpoint has another spec"):
        next(train(IMAGES, NONE, tmp_path, other, SHORT, resume=True))


KILLED = """
import resource, signal, sys, torch
from pathlib import Path
from dehazexl.model import Spec
from dehazexl.training.checkpoint import State
from dehazexl.training.config import Recipe

path = Path(sys.argv[1])
state = State.load(path, Spec.from_json(sys.argv[2]), Recipe(), torch.device("cpu"))
state.step = 99
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
state.save(path)
"""


def test_a_kill_during_saving_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    # The system kills the process when the file reaches 100 kB.
    path = tmp_path / "checkpoint.pt"
    state = State.start(TINY, SHORT, CPU)
    state.step = 7
    state.save(path)
    assert path.stat().st_size > 200_000
    killed = subprocess.run([sys.executable, "-c", KILLED, path, TINY.to_json()], check=False)
    assert killed.returncode == -signal.SIGXFSZ
    assert 0 < (tmp_path / ".checkpoint.pt.part").stat().st_size <= 100_000
    found = State.load(path, TINY, SHORT, CPU)
    assert found.step == 7
    assert all(torch.equal(a, b) for a, b in zip(weights(found.model), weights(state.model), strict=True))
    state.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


# ---- Steps that fail --------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    state, crop = State.start(TINY, SHORT, CPU), one_crop()
    before, average = weights(state.model), weights(state.average)
    crop.hazy[0, 0, 5, 5] = math.nan
    assert math.isnan(train_step(state, [crop], 1e-3, SHORT))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(state.model), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(average, weights(state.average), strict=True))
    assert state.optimizer.state_dict()["state"] == {}


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    state, crop = State.start(TINY, SHORT, CPU), one_crop()
    before = weights(state.model)
    handle = state.model.context.input_proj.bias.register_hook(lambda gradient: gradient * math.inf)
    assert math.isnan(train_step(state, [crop], 1e-3, SHORT))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(state.model), strict=True))
    handle.remove()
    assert math.isfinite(train_step(state, [crop], 1e-3, SHORT))
    assert not torch.equal(before[0], weights(state.model)[0])


def test_training_stops_when_no_loss_is_finite(tmp_path: Path) -> None:
    recipe = replace(SHORT, steps=100, lr=1e20, warmup=0)
    reports = []
    with pytest.raises(FloatingPointError, match=rf"not finite {PATIENCE + 1} times in a row; lower --lr"):
        for report in train(IMAGES, NONE, tmp_path, TINY, recipe, every=1000):
            reports.append(report["loss"])
    assert math.isfinite(reports[0])
    assert sum(not math.isfinite(loss) for loss in reports) == PATIENCE
    assert not (tmp_path / "checkpoint.pt").exists()


def test_valid_files_are_kept_when_no_loss_is_finite(tmp_path: Path) -> None:
    recipe = replace(SHORT, steps=60)
    training = train(IMAGES, IMAGES, tmp_path, TINY, recipe, every=4)
    list(islice(training, 4))
    good = torch.load(tmp_path / "checkpoint.pt")["model"]
    diverging = replace(recipe, lr=1e20, warmup=0)
    with pytest.raises(FloatingPointError):
        list(train(IMAGES, IMAGES, tmp_path, TINY, diverging, every=4, resume=True))
    found = State.load(tmp_path / "checkpoint.pt", TINY, recipe, CPU)
    assert found.step < 4 + PATIENCE
    assert all(torch.isfinite(value).all() for value in found.average.state_dict().values())
    assert found.step > 4 or all(torch.equal(good[name], value) for name, value in found.model.state_dict().items())
    assert math.isfinite(next(train(IMAGES, IMAGES, tmp_path, TINY, recipe, every=4, resume=True))["loss"])


def test_a_skipped_last_step_keeps_the_checkpoint(tmp_path: Path) -> None:
    """With --precision float16 single steps are left out regularly."""
    recipe = replace(SHORT, steps=3)
    training = train(IMAGES, NONE, tmp_path, TINY, recipe, every=100)
    first = [next(training) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dehazexl.training.loop.train_step", lambda *_: math.nan)
        first += list(training)
    assert math.isfinite(first[1]["loss"]) and math.isnan(first[2]["loss"])
    assert State.load(tmp_path / "checkpoint.pt", TINY, recipe, CPU).step == 3


def test_valid_files_are_kept_when_time_is_up_and_no_loss_is_finite(tmp_path: Path) -> None:
    recipe = replace(SHORT, steps=5)
    training = train(IMAGES, NONE, tmp_path, TINY, recipe, every=2)
    for _ in range(2):
        next(training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dehazexl.training.loop.train_step", lambda *_: math.nan)
        assert [math.isfinite(report["loss"]) for report in training] == [False] * 3
    assert State.load(tmp_path / "checkpoint.pt", TINY, recipe, CPU).step == 2


def test_a_damaged_image_loses_no_step(tmp_path: Path) -> None:
    class Damaged:
        shape = (300, 400, 3)

        def __getitem__(self, index: object) -> np.ndarray:
            raise ValueError("x.png is a damaged PNG")

    damaged = dataset(photo(300, 400), Damaged())  # type: ignore[arg-type]
    run = train(damaged, NONE, tmp_path, TINY, replace(SHORT, steps=40), every=1000)
    done = 0.0
    with pytest.raises(ValueError, match=r"x\.png is a damaged PNG; repair or remove it, then continue with --resume"):
        for report in run:
            done = report["step"]
    if done:
        assert State.load(tmp_path / "checkpoint.pt", TINY, SHORT, CPU).step == done
    again = train(IMAGES, NONE, tmp_path, TINY, replace(SHORT, steps=40), resume=True)
    assert next(again)["step"] == done + 1


def test_a_network_with_nan_is_never_the_best() -> None:
    model = DehazeXL(TINY).eval()
    with torch.no_grad():
        model.context.input_proj.bias.fill_(math.nan)
    assert math.isnan(validate(model, [one_crop()])["psnr"])


# ---- Memory, precision, processes -------------------------------------------------------------------


def gradients(recipe: Recipe, batches: list[Batch]) -> list[torch.Tensor]:
    state = State.start(SPECS["tiny"], recipe, CPU)
    assert math.isfinite(train_step(state, batches, 0.0, replace(recipe, clip=1e9)))
    return [p.grad.clone() for p in state.model.parameters()]


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor], limit: float) -> bool:
    size = torch.cat([g.flatten() for g in theirs]).norm()
    return bool(torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)]).norm() <= limit * size)


def test_recomputed_activations_change_nothing() -> None:
    batches = make_step(IMAGES, 3, replace(SHORT, tiles=4))
    assert close(gradients(replace(SHORT, part=1), batches), gradients(SHORT, batches), 1e-4)


def test_accumulated_gradients_are_those_of_the_whole() -> None:
    recipe = replace(SHORT, tiles=2, crop=1)
    parts, (whole,) = (make_step(IMAGES, 0, r) for r in (replace(recipe, accumulate=2), replace(recipe, tiles=4)))
    assert close(gradients(recipe, parts), gradients(recipe, [whole]), 1e-4)


def test_half_precision_learns_the_same() -> None:
    batches = make_step(IMAGES, 0, replace(SHORT, crop=1))
    assert close(gradients(replace(SHORT, precision="bfloat16"), batches), gradients(SHORT, batches), 0.3)


def test_half_precision_learns_with_a_head_of_every_pixel() -> None:
    spec = replace(SPECS["tiny"], head="residual", head_stride=1, airlight="pixels")
    state = State.start(spec, recipe := replace(SHORT, precision="bfloat16"), CPU)
    assert math.isfinite(train_step(state, make_step(IMAGES, 0, recipe), 1e-3, recipe))


def test_the_content_of_a_crop_does_not_depend_on_its_size() -> None:
    images = dataset(*(np.full((900, 900, 3), value, np.uint8) for value in (20, 120, 220)))
    recipe = replace(SHORT, tiles=1, crop=3)
    seen = set()
    for number in range(60):
        clear = make_step(images, number, recipe)[0].clear[0]
        seen.add((round(float(clear.median()) * 255), -(-clear.shape[2] // TILE)))
    assert {(value, width) for value in (20, 120, 220) for width in (1, 2, 3)} <= seen


PROCESS = """
import sys, torch
import torch.distributed as dist
from pathlib import Path
from test_loop import NONE, IMAGES, PAIR, TINY
from dehazexl.training.loop import train

dist.init_process_group("gloo")
reports = list(train(IMAGES, NONE, Path(sys.argv[1]), TINY, PAIR))
dist.barrier()  # a process that communicates with a finished one may abort
dist.destroy_process_group()
"""

PAIR = replace(SHORT, steps=3, tiles=2, crop=1)


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    (tmp_path / "process.py").write_text(PROCESS)
    places = os.pathsep.join([*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")])
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
         "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "process.py", "two"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    ours = [float(row["loss"]) for row in read_log(tmp_path / "two" / "log.csv")]
    alone = [report["loss"] for report in train(IMAGES, NONE, tmp_path / "one", TINY, replace(PAIR, tiles=4))]
    assert ours == pytest.approx(alone, rel=1e-4)
    assert len(ours) == 3


def test_the_log_is_plotted(tmp_path: Path) -> None:
    list(train(IMAGES, IMAGES, tmp_path, TINY, replace(SHORT, steps=3), every=1))
    assert imagecodecs.imread(plot(tmp_path)).shape[:2] == (400, 1000)


def test_the_log_drops_repeated_steps(tmp_path: Path) -> None:
    run = train(IMAGES, NONE, tmp_path, TINY, SHORT, every=3)
    list(islice(run, 5))
    run.close()  # type: ignore[attr-defined]
    list(train(IMAGES, NONE, tmp_path, TINY, SHORT, every=3, resume=True))
    assert [int(row["step"]) for row in read_log(tmp_path / "log.csv")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("tail", ["7,1.0,0.1,0.1e-", "7,1.", "\0\0\0\0\n", "7,a,b,c,d,e,,\n"])
def test_a_truncated_log_can_be_read(tmp_path: Path, tail: str) -> None:
    list(train(IMAGES, NONE, tmp_path, TINY, replace(SHORT, steps=4), every=2))
    with (tmp_path / "log.csv").open("a") as file:
        file.write(tail)
    list(train(IMAGES, NONE, tmp_path, TINY, SHORT, every=2, resume=True))
    assert [int(row["step"]) for row in read_log(tmp_path / "log.csv")] == [1, 2, 3, 4, 5, 6]
    assert plot(tmp_path).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "precision must be one of float32, bfloat16, float16, not 'int8'"),
        ({"crop": 9}, "crop must be 1 to 8 tiles, not 9"),
        ({"procedural": 2.0}, "procedural must be between 0 and 1, not 2.0"),
        ({"part": 0}, "part and accumulate must be at least 1, not 0 and 1"),
    ],
)
def test_invalid_recipes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


# ---- Batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_steps_are_reproducible(workers: int) -> None:
    recipe = replace(SHORT, steps=4, accumulate=2)
    made = list(iterate_batches(IMAGES, 1, recipe, workers=workers))
    assert len(made) == 3
    for index, batches in enumerate(made, start=1):
        for batch, same in zip(batches, make_step(IMAGES, index, recipe), strict=True):
            assert torch.equal(batch.clear, same.clear)
            assert torch.equal(batch.hazy, same.hazy)
            assert batch.offset == same.offset
    assert made[0][0].clear.mean() != made[1][0].clear.mean()
    assert not torch.equal(made[0][0].clear, made[0][1].clear)


@pytest.mark.parametrize("largest", [1, 3, 4])
def test_batches_vary_in_grid_and_offset(largest: int) -> None:
    recipe = replace(SHORT, tiles=6, crop=largest)
    made = [make_step(IMAGES, i, recipe)[0] for i in range(20)]
    sizes = {tuple(batch.clear.shape[2:]) for batch in made}
    whole = {(h, w) for h, w in sizes if h % 256 == w % 256 == 0}
    assert len(whole) > 2 or largest == 1
    assert whole < sizes  # some end within a tile
    assert all(max(h, w) <= largest * 256 and h % 256 not in range(1, 33) for h, w in sizes)
    assert all(batch.clear.shape == batch.hazy.shape for batch in made)
    offsets = {batch.offset for batch in made}
    assert (0, 0) in offsets
    assert len(offsets) > 3


@pytest.mark.parametrize("seed", range(10))
def test_smoothed_crops_keep_brightness_and_lose_detail(seed: int) -> None:
    crop = torch.rand((1, 3, 96, 200), generator=torch.Generator().manual_seed(seed)) * 0.5
    calm = smoothed(crop, np.random.default_rng(seed))
    assert calm.shape == crop.shape and calm.dtype == crop.dtype
    assert abs(calm.mean() - crop.mean()) < 0.01
    assert calm.diff(dim=3).abs().mean() < 0.2 * crop.diff(dim=3).abs().mean()


@pytest.mark.parametrize("seed", range(10))
def test_joined_crops_show_one_image_on_each_side(seed: int) -> None:
    joined = join_crops(torch.zeros(1, 3, 60, 200), torch.ones(1, 3, 60, 200), np.random.default_rng(seed))[0, 0]
    assert joined.shape == (60, 200) and 0.2 <= joined.mean() <= 0.8
    assert (joined.diff(dim=0) >= 0).all() and (joined.diff(dim=1) >= 0).all()
    assert joined.diff(dim=0).any() != joined.diff(dim=1).any()


def test_two_processes_make_the_crops_of_one_step_together() -> None:
    recipe = replace(SHORT, tiles=2, crop=1)
    (whole,) = make_step(IMAGES, 5, replace(recipe, tiles=4))
    parts = [make_step(IMAGES, 5, recipe, rank, 2)[0] for rank in (0, 1)]
    assert torch.equal(whole.hazy, torch.cat([part.hazy for part in parts]))


def test_a_share_of_the_crops_is_procedural() -> None:
    flat = dataset(np.full((300, 300, 3), 77, np.uint8))
    crops = [make_step(flat, i, replace(SHORT, crop=1, procedural=0.5))[0] for i in range(12)]
    drawn = sum(bool(crop.clear.std() > 0.05) for crop in crops)
    assert 1 <= drawn <= 11


def test_pairs_are_not_recolored(tmp_path: Path) -> None:
    clear, hazy = photo(300, 300), photo(300, 300, 1)
    pairs = Dataset([clear], [hazy], ["one"])
    (batch,) = make_step(pairs, 0, replace(SHORT, crop=1))
    assert batch.optical is None
    assert not torch.equal(batch.clear, batch.hazy)
    (case,) = validation_set(pairs, 100)
    assert torch.equal(case.hazy, center_crop(hazy, 100, 100))
    assert len(list(train(pairs, pairs, tmp_path, TINY, replace(SHORT, steps=1)))) == 1


@pytest.mark.parametrize("size", [(40, 50), (256, 256), (2000, 300), (300, 1400)])
def test_crops_of_images_of_any_size(size: tuple[int, int]) -> None:
    big = photo(*size)
    for seed in range(5):
        crop = random_crop([big], 256, 512, np.random.default_rng(seed))
        assert crop.shape == (1, 3, 256, 512)
        assert 0 <= crop.min() < crop.max() <= 1


def test_the_middle_of_an_image() -> None:
    pixels = photo(100, 60)
    middle = center_crop(pixels, 20, 400)
    assert middle.shape == (1, 3, 20, 60)
    assert np.allclose(middle[0].permute(1, 2, 0) * 255, pixels[40:60], atol=1e-4)


def test_validation_shows_each_kind_of_haze_and_never_changes() -> None:
    images = dataset(*[photo(80, 80, i) for i in range(6)])
    cases, again = validation_set(images, 64), validation_set(images, 64)
    assert len(cases) == 6
    assert all(torch.equal(a.hazy, b.hazy) for a, b in zip(cases, again, strict=True))
    assert all((case.optical > 0).any() for case in cases)


def test_of_many_images_not_all_get_one_kind_of_haze() -> None:
    cases = validation_set(dataset(*[photo(48, 48)] * 379), 48)  # every sixth image, and there are six kinds
    even = [case.optical.min() > 0.7 * case.optical.max() for case in cases]
    assert len(cases) == 64 and 0 < sum(even) < 32


# ---- Images in folders ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/one.tif", "a/two.tif", "b/deep/three.tif", "b/four.npy"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, photo(20, 30))
        else:
            tifffile.imwrite(path, photo(20, 30), photometric="rgb")
    (tmp_path / "images" / "readme.txt").write_text("no image")
    return tmp_path / "images"


def test_images_are_found_in_folders_below(folder: Path) -> None:
    found = [source.clear.name for source in find_clear([folder])]
    assert found == ["one.tif", "two.tif", "three.tif", "four.npy"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["a/*"], ["one.tif", "two.tif"]),
        (["t*.tif"], ["two.tif", "three.tif"]),
        (["*.npy", "one*"], ["one.tif", "four.npy"]),
    ],
)
def test_images_are_held_out_by_pattern(folder: Path, patterns: list[str], names: list[str]) -> None:
    held = choose_held_out("clear images", find_clear([folder]), patterns)
    assert {path.name for path in held} == set(names)


@pytest.mark.parametrize(("patterns", "place"), [(["*"], "."), ([], "empty"), ([], "missing")])
def test_nothing_to_train_on(folder: Path, patterns: list[str], place: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no such folder" if place == "missing" else "no images"):
        open_datasets([folder / place], patterns)


def test_images_are_read_as_eight_bit_rgb(folder: Path) -> None:
    for name in ("a/one.tif", "b/four.npy"):
        pixels = read_rgb(folder / name)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, photo(20, 30))


def test_deep_images_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", photo(20, 30).astype(np.uint16), photometric="rgb")
    with pytest.raises(ValueError, match=r"deep\.tif: 8-bit RGB images are needed, this is uint16"):
        read_rgb(tmp_path / "deep.tif")


# ---- Specs by text ----------------------------------------------------------------------------------


def test_specs_come_by_name_or_as_json() -> None:
    assert spec_from_text("compact") == SPECS["compact"]
    assert spec_from_text(TINY.to_json()) == TINY


@pytest.mark.parametrize("text", ["huge", "{", '{"head": "magic"}'])
def test_specs_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        DehazeXL(spec_from_text(text))
