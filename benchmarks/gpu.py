"""Training on a GPU in one call, and a table of speed and memory.

    python benchmarks/gpu.py train --data .crops/images.zip --out OUT --state .run/state.pt --minutes 9
    python benchmarks/gpu.py table --out OUT

It only needs torch, numpy, Pillow and safetensors, and also runs on a CPU for a rehearsal. Haze is synthesized on the
device, on images from `benchmarks/weights/pack.py`. OUT will contain the weights in pieces of at most 15 MiB,
``weights.00``, ``weights.01``... (``cat weights.* > weights.safetensors``), and ``log.jsonl``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from dehazexl.model import DehazeXL, Spec
from dehazexl.model import decoder as decoder_module
from dehazexl.model import encoder as encoder_module
from dehazexl.model.spec import SPECS
from dehazexl.model.windows import Local
from dehazexl.synthesis.batched import HazyBatch, Synthesis, synthesize
from dehazexl.synthesis.images import Images
from dehazexl.training.config import Recipe
from dehazexl.training.losses import losses as loss_of

PIECE_SIZE = 15 * 2**20
"""Size in bytes of the pieces of the weights file."""
GRIDS = ((1, 1), (1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 2), (2, 2), (2, 3), (3, 2), (3, 3))
"""Rows and columns of tiles of the crops in a step; the number of tiles in a step is a multiple of each product."""
PARTIAL_SHARE = 0.35
"""Share of steps whose crops end within a tile and are continued by reflection, as most images are."""
MAX_OFFSET = 512
"""Largest random offset of a crop from the corner of a larger image, in tokens."""


def make_batch(images: Images, tiles: int, spec: Spec, seed: int, step: int, generator: torch.Generator) -> HazyBatch:
    """Make the batch of a step, reproducibly from seed and number of the step."""
    random = np.random.default_rng((seed, step))
    rows, cols = GRIDS[int(random.integers(len(GRIDS)))]
    cut = random.integers(3 * spec.tile // 4, size=2) if random.random() < PARTIAL_SHARE else (0, 0)
    h, w = rows * spec.tile - int(cut[0]), cols * spec.tile - int(cut[1])
    count = max(1, tiles // (rows * cols))
    clear, upright = images.crops(count, h, w, random, whole=0.5 if rows == cols == 1 else 0.2)
    generator.manual_seed(int(random.integers(2**31)))
    return synthesize(clear, upright, generator)


class Trainer:
    """A network in training, the moving average of its weights, and the optimizer."""

    def __init__(self, spec: Spec, recipe: Recipe, device: torch.device, init: DehazeXL | None) -> None:
        torch.manual_seed(recipe.seed)
        self.model = (init or DehazeXL(spec)).to(device).requires_grad_(True).train()
        self.average = copy.deepcopy(self.model).eval()
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=device.type == "cuda")
        self.recipe, self.device, self.step = recipe, device, 0
        self.half = True

    def train(self, batch: HazyBatch, offset: tuple[int, int], lr: float) -> Tensor:
        """Update the weights and return the loss, on the device."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            change = self.model.predict_affine(batch.hazy, offset)
        loss = loss_of(batch, change, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip, foreach=True)
        # A gradient that is not finite is replaced by zeros on the device, without synchronization.
        good = torch.isfinite(norm) & torch.isfinite(loss)
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad = torch.where(good, p.grad, 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return loss.detach()

    def state(self) -> dict:
        """Return the state from which training can be resumed."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load(self, state: dict) -> None:
        """Restore the result of `state`."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def compile_for_tiles(model: DehazeXL, tiles: int) -> None:
    """Compile encoder and decoder for the number of tiles in a step; other numbers of tiles run uncompiled.

    Attention is not compiled: on an H200 with torch 2.11, no kernel was found for the compiled version.
    """
    for module in (encoder_module, decoder_module):
        module.attend = torch.compiler.disable(module.attend)
    for module in (model.encoder, model.decoder):
        plain = module.forward
        fast = torch.compile(plain, dynamic=False)

        def forward(x: Tensor, *rest: object, plain=plain, fast=fast):
            return (fast if len(x) == tiles else plain)(x, *rest)

        module.forward = forward


def use_dense_convolutions(model: DehazeXL) -> None:
    """Replace depthwise convolutions by dense ones with diagonal weights, which train much faster on some GPUs."""
    for module in model.modules():
        if isinstance(module, Local):
            conv = module.conv
            conv.register_buffer("eye", torch.eye(conv.in_channels, device=conv.weight.device)[..., None, None], False)
            conv.forward = lambda x, conv=conv: F.conv2d(x, conv.eye * conv.weight, conv.bias)


def probe(args: argparse.Namespace) -> None:
    """Time forward and backward passes of depthwise convolutions and their dense equivalents."""
    from PIL import features

    print("WebP:", features.check("webp"), "torch", torch.__version__)
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True
    for width, side in ((32, 64), (64, 32), (64, 64), (128, 16), (128, 32), (256, 16), (256, 8), (512, 8)):
        x = torch.randn(args.tiles, side, side, width, device=device, requires_grad=True)
        local = Local(width, 5).to(device)
        line = {"width": width, "side": side}
        for name in ("depthwise", "dense"):
            if name == "dense":
                use_dense_convolutions(local)
            for count in (3, 10):
                synchronize(device)
                before = time.perf_counter()
                for _ in range(count):
                    with torch.autocast(device.type, torch.bfloat16):
                        local(x).sum().backward()
                synchronize(device)
            line[name] = round((time.perf_counter() - before) / 10 * 1000, 2)
        print(line, flush=True)


def tune(trainer: Trainer, batch: HazyBatch, tiles: int, compiled: bool) -> None:
    """Select the fastest implementation: depthwise or dense convolutions, and compiled or not if `compiled`."""

    def seconds(count: int) -> float:
        for repeat in (2, count):
            synchronize(trainer.device)
            begun = time.perf_counter()
            for _ in range(repeat):
                with torch.autocast(trainer.device.type, torch.bfloat16):
                    change = trainer.model.predict_affine(batch.hazy)
                loss_of(batch, change, trainer.recipe).backward()
            synchronize(trainer.device)
        return (time.perf_counter() - begun) / count

    plain = seconds(4)
    plain_forwards = {module: module.conv.forward for module in trainer.model.modules() if isinstance(module, Local)}
    use_dense_convolutions(trainer.model)
    other = seconds(4)
    print(f"a step takes {plain:.3f} s, {other:.3f} s with dense convolutions", flush=True)
    if plain < other:
        for module, forward in plain_forwards.items():
            module.conv.forward = forward
    if compiled:
        compile_if_faster(trainer, tiles, seconds, min(plain, other))


def compile_if_faster(trainer: Trainer, tiles: int, seconds: Callable[[int], float], plain: float) -> None:
    """Compile encoder and decoder if a step then takes less than `plain` seconds."""
    begun = time.perf_counter()
    forwards = {module: module.forward for module in (trainer.model.encoder, trainer.model.decoder)}
    try:
        compile_for_tiles(trainer.model, tiles)
        took = seconds(4)
        print(f"compiled {took:.3f} s, after {time.perf_counter() - begun:.0f} s", flush=True)
    except Exception:  # the compiler can fail in many ways, and training continues without it
        print("not compiled:", traceback.format_exc(limit=-3), flush=True)
        took = math.inf
    if took > plain:
        for module, forward in forwards.items():
            module.forward = forward


JUDGED = (1.5, 2.7), 0.0, (0.85, 1.0)
"""Thickness, share of dense haze and airlight of the haze that the evaluation adds, see `evaluation.paired`."""


def validation_cases(images: Images, side: int, device: torch.device, most: int) -> list[HazyBatch]:
    """Return the validation cases: the center of each image with haze in file values, in linear light, and without."""
    generator, batches = torch.Generator(device), []
    for i in sorted({round(place) for place in np.linspace(0, len(images.pixels) - 1, most)}):
        pixels = images.pixels[i]
        _, h, w = pixels.shape
        y, x = max(0, (h - side) // 2), max(0, (w - side) // 2)
        clear = pixels[None, :, y : y + side, x : x + side].float() / 255
        upright = torch.tensor([images.upright[i]], device=device)
        for linear, share in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
            generator.manual_seed(1000 + i)
            how = Synthesis(
                *JUDGED, clear=share, linear=linear, dark=0, pale=0, collar=0, soften=0, grade=0, noise=0, jpeg=0
            )
            batches.append(synthesize(clear, upright, generator, how))
    return batches


@torch.no_grad()
def validate(model: DehazeXL, some: list[HazyBatch]) -> dict[str, float]:
    """Return the mean PSNR in decibels for haze in file values, haze in linear light, and clear images."""
    model.train().eval()  # clears cached biases
    scores: list[float] = []
    for batch in some:
        with torch.autocast(batch.hazy.device.type, torch.bfloat16, enabled=True):
            change = model.predict_affine(batch.hazy)
        out = (change.gain * batch.hazy + change.bias).clamp(0, 1)
        scores.append(min(100.0, -10 * math.log10(max(float((out - batch.clear).square().mean()), 1e-10))))
    return {name: sum(scores[i::3]) / len(scores[i::3]) for i, name in enumerate(("values", "light", "clear"))}


def save_weights(model: DehazeXL, out: Path, about: dict) -> None:
    """Write the weights in half precision, in pieces of `PIECE_SIZE`."""
    from safetensors.torch import save

    tensors = {name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}
    text = {"format": "dehazexl", "spec": model.spec.to_json()} | {k: json.dumps(v) for k, v in about.items()}
    data = save(tensors, text)
    for i, start in enumerate(range(0, len(data), PIECE_SIZE)):
        (out / f"weights.{i:02d}").write_bytes(data[start : start + PIECE_SIZE])


def load_matching(model: DehazeXL, spec: Spec) -> DehazeXL:
    """Create a network with the weights of another one where name and shape agree."""
    new = DehazeXL(spec)
    own, theirs = new.state_dict(), model.state_dict()
    new.load_state_dict(own | {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape})
    return new


def save(trainer: Trainer, args: argparse.Namespace, scores: dict) -> None:
    """Write the averaged weights and the state of the training."""
    about = {
        "trained": scores,
        "recipe": asdict(trainer.recipe),
        "init": args.init or "random",
        "licence": "BSD-3-Clause",
    }
    save_weights(trainer.average, args.out, about)
    if args.state:
        args.state.parent.mkdir(parents=True, exist_ok=True)
        part = args.state.with_suffix(".part")
        torch.save(trainer.state(), part)
        part.replace(args.state)


def make_trainer(args: argparse.Namespace, device: torch.device) -> Trainer:
    """Create a trainer with the spec, initial weights and saved state given by the arguments."""
    spec = replace(SPECS["fast"], scale=args.scale) if not args.spec else replace(SPECS[args.spec])
    recipe = Recipe(lr=args.lr, ema=args.ema, seed=args.seed, warmup=args.warmup)
    init = None
    if args.init:
        from dehazexl.model.weights import load_model

        init = load_model(args.init, device="cpu", dtype="float32")
        if args.fitting:
            print(f"copying the matching weights of {args.init} ({init.spec.head})", flush=True)
            init = load_matching(init, spec)
        spec = init.spec
    trainer = Trainer(spec, recipe, device, init)
    if args.state and args.state.exists():
        trainer.load(torch.load(args.state, map_location=device, weights_only=True))
        print("resumed at step", trainer.step)
    return trainer


def scheduled_rate(trainer: Trainer, args: argparse.Namespace, progress: float) -> float:
    """Return the learning rate after a share of the time; the number of steps per minute is not known in advance."""
    place = args.begin + (args.end - args.begin) * min(1.0, progress)
    warm = min(1.0, (trainer.step + 1) / trainer.recipe.warmup)
    return trainer.recipe.lr * warm * max(0.5 * (1 + math.cos(math.pi * place)), 0.002)


def draw_step(
    trainer: Trainer, images: Images, args: argparse.Namespace, spec: Spec, generator: torch.Generator
) -> tuple[HazyBatch, tuple[int, int]]:
    """Set the scale of the network for the next step, and return the batch and its offset in tokens."""
    random = np.random.default_rng((trainer.recipe.seed, trainer.step, 7))
    # Some steps use the other scale, so that the weights work at both.
    other = spec.scale < 4 and random.random() < args.other_scale
    trainer.model.spec = replace(spec, scale=3 - spec.scale) if other else spec
    batch = make_batch(images, args.tiles, trainer.model.spec, trainer.recipe.seed, trainer.step, generator)
    y, x = random.integers(MAX_OFFSET, size=2) if random.random() < 0.5 else (0, 0)
    return batch, (int(y), int(x))


def train(args: argparse.Namespace) -> None:
    """Train for `args.minutes`, and write weights, state and log."""
    started = time.perf_counter()
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 3  # algorithms tried for each of the many shapes
    trainer = make_trainer(args, device)
    spec = trainer.model.spec
    images = Images.load(args.data, "train", device)
    some = validation_cases(Images.load(args.data, "valid", device), 512, device, args.cases)
    print(f"{len(images.pixels)} images, {len(some)} cases, {time.perf_counter() - started:.0f} s", flush=True)
    generator = torch.Generator(device)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.tune:
        tune(
            trainer,
            make_batch(images, args.tiles, spec, trainer.recipe.seed, 10**6, generator),
            args.tiles,
            args.compile,
        )
    log = (args.out / "log.jsonl").open("a")
    first, begun, losses, parts = trainer.step, time.perf_counter(), [], [0.0, 0.0]
    limit = 60 * args.minutes - args.reserve
    for count in itertools.count():
        now = time.perf_counter()
        if now - started > limit or count == args.steps:
            break
        lr = scheduled_rate(trainer, args, (now - started) / limit)
        batch, offset = draw_step(trainer, images, args, spec, generator)
        if args.profile:
            synchronize(device)
            parts[0] += time.perf_counter() - now
        losses.append(trainer.train(batch, offset, lr))
        if args.profile:
            synchronize(device)
            parts[1] += time.perf_counter() - now
        if len(losses) == args.every:
            line = {"step": trainer.step, "loss": round(float(torch.stack(losses).mean()), 5), "lr": round(lr, 6)}
            line["seconds"] = round(now - started)
            line["tiles_s"] = round((trainer.step - first) * args.tiles / (time.perf_counter() - begun))
            if args.validate and (trainer.step // args.every) % args.validate == 0:
                line |= {name: round(score, 3) for name, score in validate(trainer.average, some).items()}
                save(trainer, args, line)
            print(line, [round(p / len(losses), 4) for p in parts] if args.profile else "", flush=True)
            print(json.dumps(line), file=log, flush=True)
            losses, parts = [], [0.0, 0.0]
    scores = validate(trainer.average, some)
    print({"step": trainer.step, "seconds": round(time.perf_counter() - started)} | scores, flush=True)
    save(trainer, args, {"step": trainer.step, **scores})
    if device.type == "cuda":
        print(torch.cuda.get_device_name(), f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at its peak")


@torch.inference_mode()
def table(args: argparse.Namespace) -> None:
    """Measure time and memory of forward passes over whole images."""
    device, rows = torch.device(args.device), []
    for name, dtype in itertools.product(("official", "compact", "fast"), (torch.float16, torch.float32)):
        torch.manual_seed(0)
        model = DehazeXL(SPECS[name]).to(device, dtype).eval()
        print(name, dtype, "differs from the CPU by at most", f"{cpu_difference(model, dtype):.2e}", flush=True)
        for side in args.sides:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                x = torch.rand(1, 3, side, side, device=device)
                times = []
                for _ in range(3 if side < 8192 else 2):
                    synchronize(device)
                    before = time.perf_counter()
                    model.predict_affine(x, part=64)
                    synchronize(device)
                    times.append(time.perf_counter() - before)
                memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else math.nan
                rows.append(
                    {
                        "spec": name,
                        "dtype": str(dtype)[6:],
                        "side": side,
                        "seconds": round(min(times), 4),
                        "gib": round(memory, 2),
                    }
                )
                print(rows[-1], flush=True)
            except torch.OutOfMemoryError:
                print(name, dtype, side, "out of memory", flush=True)
                break
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    (args.out / "table.json").write_text(
        json.dumps({"device": gpu, "torch": torch.__version__, "rows": rows}, indent=1)
    )


def cpu_difference(model: DehazeXL, dtype: torch.dtype) -> float:
    """Return the largest difference of the output from that of the same weights on the CPU in float32."""
    x = torch.rand(1, 3, 600, 700, generator=torch.Generator().manual_seed(1)).to(dtype).float()
    same = copy.deepcopy(model).to("cpu", torch.float32)
    return float((model(x.to(model.device)).cpu() - same(x)).abs().max())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train")
    one.set_defaults(run=train)
    one.add_argument("--data", type=Path, default=Path(".crops/images.zip"))
    one.add_argument("--state", type=Path)
    one.add_argument("--init")
    one.add_argument(
        "--fitting", action="store_true", help="copy the weights of --init that match the spec by name and shape"
    )
    one.add_argument("--spec")
    one.add_argument("--scale", type=int, default=2)
    one.add_argument("--minutes", type=float, default=9.0)
    one.add_argument("--reserve", type=float, default=20.0, help="seconds reserved for the final validation")
    one.add_argument("--begin", type=float, default=0.0, help="position in the schedule, 0 to 1")
    one.add_argument("--end", type=float, default=1.0)
    one.add_argument("--steps", type=int, default=-1)
    one.add_argument("--tiles", type=int, default=36)
    one.add_argument("--lr", type=float, default=1.2e-3)
    one.add_argument("--warmup", type=int, default=200)
    one.add_argument("--ema", type=float, default=0.998)
    one.add_argument("--seed", type=int, default=20)
    one.add_argument("--every", type=int, default=50)
    one.add_argument("--cases", type=int, default=15, help="number of images to validate on")
    one.add_argument("--validate", type=int, default=8, help="number of reports between validations, 0 for none")
    one.add_argument("--tune", action="store_true", help="select the fastest implementation, see tune()")
    one.add_argument("--compile", action="store_true", help="with --tune: try torch.compile, which takes minutes")
    one.add_argument("--profile", action="store_true")
    one.add_argument("--other-scale", type=float, default=0.25, help="share of steps at the other scale")
    three = commands.add_parser("probe")
    three.set_defaults(run=probe)
    three.add_argument("--tiles", type=int, default=72)
    two = commands.add_parser("table")
    two.set_defaults(run=table)
    two.add_argument("--sides", type=int, nargs="+", default=[1024, 4096, 8192, 16384])
    for each in (one, two, three):
        each.add_argument("--out", type=Path, required=True)
        each.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
