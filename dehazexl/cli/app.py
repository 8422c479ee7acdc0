"""The command line: ``dehazexl run``, ``info``, ``demo``, ``train``, ``evaluate`` and ``haze``.

Nothing heavy is imported before a command begins, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import dehazexl

if TYPE_CHECKING:
    from dehazexl.cli.run import Settings
    from dehazexl.model import DehazeXL

app = typer.Typer(
    help="Remove haze from pictures of any size: drone pictures, orthomosaics, satellite scenes, photographs.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FORESEEN = (ValueError, TypeError, OSError, FloatingPointError, MemoryError)
"""What goes wrong because of files, disks and arguments, not because of the program."""

# Typer brings its own copy of click from some release on, and has no public name for this one.
USAGE: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "UsageError")

Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda, cuda:N or mps.")
]
Weights = Annotated[
    list[str],
    typer.Option(
        metavar="WEIGHTS",
        help="Bundled weights by name, a .safetensors or official .pth file, or a folder of them. Repeatable.",
    ),
]


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; the console's entry point.

    Every failure that can be foreseen becomes one line on stderr and exit code 2.
    """
    try:
        code = app(args=args, prog_name="dehazexl", standalone_mode=False)
    except USAGE as error:
        context = getattr(error, "ctx", None)
        text = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        fail(f"{text}; see {context.command_path if context else 'dehazexl'} --help")
        return 2
    except FORESEEN as error:
        if os.environ.get("DEHAZEXL_TRACEBACK"):
            raise
        fail(message(error))
        return 2
    except RuntimeError as error:
        from dehazexl.engine.memory import short_of_memory

        if not short_of_memory(error):
            raise
        fail("the device's memory is not enough: give a smaller --batch (train: --tiles, or --part), or --device cpu")
        return 2
    return code if isinstance(code, int) else 0


def given(context: typer.Context) -> set[str]:
    """Return the names of the options that were typed, not left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def fail(text: str) -> None:
    """Say in one line on stderr what went wrong."""
    print("dehazexl: error:", " ".join(text.split()), file=sys.stderr)


def stopped(left: str) -> typer.Exit:
    """Say in one line on stderr what Ctrl-C left, and return what to raise."""
    # Reads that were under way are awaited by nobody now, and Python would say so of each.
    warnings.simplefilter("ignore", RuntimeWarning)
    fail(f"stopped; {left}")
    return typer.Exit(130)


def message(error: Exception) -> str:
    """Put a foreseen error into words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"the memory is not enough ({error}): take less at once (run: --region; train: --tiles, or --part)"
    return str(error) or type(error).__name__


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Print the version, or the help where no command is given."""
    if version:
        print(dehazexl.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A TIFF, Zarr, PNG or JPEG, or a folder of such pictures.")
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT",
            help="A .zarr, .tif, .png or .jpg; a folder if there are several pictures or several weights.",
        ),
    ],
    weights: Weights = ["compact"],  # noqa: B006
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(metavar="DTYPE", help="Precision: auto (half where it is faster), float32, float16 or bfloat16."),
    ] = "auto",
    batch: Annotated[str, typer.Option(metavar="N", help="Tiles computed at once: auto or a number.")] = "auto",
    overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Pixels by which tiles overlap, 0 to 128; else what suits the weights."),
    ] = None,
    strength: Annotated[float, typer.Option(metavar="SHARE", help="From 0 (the input) to 1 (all haze removed).")] = 1.0,
    limits: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Values that are black and white. [default: 8 bits: 0,255; else 0 and percentile 99.9]",
        ),
    ] = "",
    bands: Annotated[
        str,
        typer.Option(
            metavar="R,G,B", help="Red, green and blue: numbers from 1, or names. [default: as the file says]"
        ),
    ] = "",
    region: Annotated[
        str, typer.Option(metavar="Y0:Y1,X0:X1", help="Take only these rows and columns, as a picture of its own.")
    ] = "",
    resize: Annotated[str, typer.Option(metavar="WxH", help="Bring pictures to this size first, in memory.")] = "",
    nor: Annotated[bool, typer.Option("--nor", help="The official .pth was trained with --nor.")] = False,
    tokens: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the tokens here, so that a stopped run can go on.")
    ] = None,
    ngff: Annotated[str, typer.Option(metavar="VERSION", help="Version of OME-Zarr: 0.5 or 0.4.")] = "0.5",
    compression: Annotated[str, typer.Option(metavar="KIND", help="Of a TIFF: deflate, zstd or none.")] = "deflate",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Remove the haze from a picture, or from a folder of pictures.

    The output has the input's size, bands, data type and georeference.
    """
    from dehazexl.cli import parse
    from dehazexl.cli.run import Settings

    settings = Settings(
        overlap=overlap,
        strength=strength,
        value_range=parse.limits(limits) if limits else None,
        bands=parse.bands(bands) if bands else None,
        batch=parse.batch(batch),
        region=parse.region(region) if region else None,
        resize=parse.size(resize) if resize else None,
        ngff=ngff,  # type: ignore[arg-type]
        compression=compression,  # type: ignore[arg-type]
        overwrite=overwrite,
    )
    try:
        kept_in = tokens and tokens.expanduser()
        dehaze_all(source.expanduser(), output.expanduser(), weights, device, dtype, nor, kept_in, settings)
    except KeyboardInterrupt:
        kept = f"run it again to go on with the tokens in {tokens}" if tokens else "--tokens DIR makes a run resumable"
        raise stopped(f"unfinished output was removed, {kept}") from None


def dehaze_all(
    source: Path,
    output: Path,
    weights: Sequence[str],
    device: str,
    dtype: str,
    nor: bool,
    tokens: Path | None,
    settings: Settings,
) -> None:
    """Run the tasks and print a line for each."""
    from dehazexl.cli import run as work

    tasks, folder = work.plan(source, output, weights, tokens)
    if nor and (known := next((task.weights for task in tasks if task.weights.suffix == ".safetensors"), None)):
        raise ValueError(f"--nor is for official .pth files; {known} says itself how it is normalized")
    failures: list[str] = []

    def say(text: str) -> None:
        fail(text)
        failures.append(text)

    for result in work.run(tasks, folder, settings, loader(device, dtype, nor), say):
        print(result, flush=True)
        if result.note:
            print(f"dehazexl: {result.note}", file=sys.stderr)
    if failures:
        raise ValueError(f"{len(failures)} of {len(tasks)} pictures could not be dehazed, see above")


def loader(device: str, dtype: str = "auto", nor: bool = False) -> Callable[[Path], DehazeXL]:
    """Return what loads weights and says on stderr where they will compute."""

    def load(path: Path) -> DehazeXL:
        from dehazexl.model.weights import load_model

        model = load_model(path, device, dtype, normalized=nor)
        print(f"{path.name} on {model.device}, {str(model.dtype).removeprefix('torch.')}", file=sys.stderr)
        return model

    return load


@app.command()
def info(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A picture, a weights file, or the name of bundled weights.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what is known of a picture, or of weights."""
    import json

    from dehazexl.cli.info import as_text, describe

    facts = describe(file)
    print(json.dumps(facts, indent=2) if as_json else as_text(facts))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; its demo files are replaced.")] = Path(
        "demo"
    ),
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the image in pixels.")] = "1600x1200",
    weights: Annotated[str, typer.Option(metavar="WEIGHTS", help="Bundled weights by name, or a file.")] = "compact",
    device: Device = "auto",
) -> None:
    """Add haze to a bundled photograph, dehaze it, and show both side by side."""
    from dehazexl.cli import parse
    from dehazexl.cli.demo import make_demo
    from dehazexl.model.weights import find_weights

    height, width = parse.size(size)
    for line in make_demo(folder.expanduser(), height, width, find_weights(weights), loader(device)):
        print(line, flush=True)


@app.command()
def train(
    context: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER", help="Folders of clear 8-bit pictures, of pairs (hazy/, clear/), or 8KDehaze's."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for weights, checkpoint and log.")],
    hold_out: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN", help="Pictures to validate on, e.g. 'naip/*'. Repeatable. [default: every tenth]"
        ),
    ] = [],  # noqa: B006
    spec: Annotated[
        str, typer.Option(metavar="SPEC", help="The network: compact, official, tiny..., or JSON.")
    ] = "compact",
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps of the whole run.")] = 3000,
    tiles: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tiles of 256 x 256 pixels in a batch; a crop may hold more.")
    ] = 8,
    crop: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="Side of the largest crops, in tiles.")] = 3,
    accumulate: Annotated[
        int, typer.Option(min=1, metavar="N", help="Batches of --tiles whose gradients make a step.")
    ] = 1,
    part: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Tiles computed at once, again in the backward pass: less memory. [default: all]"
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="float32; bfloat16 or float16 where it is safe (autocast).")
    ] = "float32",
    procedural: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Share of procedural pictures among the crops.")
    ] = 0.0,
    lr: Annotated[float, typer.Option(min=0, metavar="RATE", help="Peak learning rate.")] = 6e-4,
    ema: Annotated[
        float, typer.Option(min=0, max=1, metavar="DECAY", help="Of the moving average of the weights.")
    ] = 0.995,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Normalize colors as the official --nor does.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Of weights, crops and haze; another one after --init brings new crops."),
    ] = 0,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Steps between validations and checkpoints.")] = 250,
    minutes: Annotated[
        float,
        typer.Option(min=0, metavar="MINUTES", show_default="no limit", help="Stop after this time; --resume goes on."),
    ] = float("inf"),
    device: Device = "auto",
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS", help="Start from these weights and their spec, e.g. compact, not from scratch."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on in RUN; what is not given is as it was, but --device, --every and --minutes."
        ),
    ] = False,
) -> None:
    """Train a network on clear pictures, on which it makes the haze, or on pairs.

    RUN gets best.safetensors, last.safetensors, checkpoints of both (best.pt, checkpoint.pt), log.csv and plot.png.
    Several GPUs:
    torchrun --nproc-per-node 4 -m dehazexl train ...
    """
    from dehazexl.cli.train import train_with_bar
    from dehazexl.training.config import Recipe

    recipe = Recipe(
        steps=steps, tiles=tiles, crop=crop, accumulate=accumulate, part=part, precision=precision,
        procedural=procedural, lr=lr, ema=ema, seed=seed,
    )  # fmt: skip
    try:
        done = train_with_bar(
            folders, hold_out, out, spec, recipe,
            device=device, init=init, normalize=normalize, resume=resume, minutes=minutes, every=every,
            given=given(context),
        )  # fmt: skip
        if done is not None:
            print(done)
    except KeyboardInterrupt:
        raise stopped(f"--resume goes on from the last checkpoint in {out}, if there was one") from None


@app.command()
def evaluate(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="Folders of clear pictures, of pairs (hazy/, clear/), or 8KDehaze's."),
    ] = [],  # noqa: B006
    real: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Score on hazy photographs without a truth instead, those in FOLDER."),
    ] = None,
    weights: Weights = ["compact"],  # noqa: B006
    hold_out: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Score what matches, as train holds it out. [default: all; of 8KDehaze what train holds out]",
        ),
    ] = [],  # noqa: B006
    light: Annotated[
        str | None,
        typer.Option(
            metavar="LIGHT", help="Haze on clear pictures: on their values, on linear light, or both. [default: both]"
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="By which tiles overlap, 0 to 128; else what suits the weights."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            metavar="PIXELS",
            help="Side of the middle of clear pictures, 512 by default; larger photographs of --real are shrunk to it.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write scores.csv, summary.csv and sheet.png into this folder; of --real real.csv, real-summary.csv "
            "and real.png.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(metavar="DTYPE", help="Precision: float32, the same scores everywhere, or another."),
    ] = "float32",
) -> None:
    """Score weights beside the hazy input and the dark channel prior.

    On pairs, on what training holds out of 8KDehaze, or on clear pictures with haze of four kinds, the same each time,
    on the values of the file and on linear light (--light values, linear or both).
    Score what was held out (dehazexl info WEIGHTS lists it): of what was trained on, scores are too good.
    Scores are taken at full resolution, RGB, data range 1: PSNR, SSIM, CIEDE2000, the ratio of jumps at tile borders
    to others, seconds a picture, and the most memory held.

    On photographs with real haze (--real): perceived density of fog (FADE), cast, newly clipped pixels, lightness,
    amplified noise, and jumps at tile borders.
    """
    from dehazexl.cli.run import find_weights

    if (real is None) == (not folders):
        raise ValueError("give either FOLDER, of clear pictures or of pairs, or --real FOLDER, of hazy photographs")
    if real is not None and (hold_out or light is not None):
        raise ValueError("--real has no use for --hold-out and --light: it scores all photographs as they are")
    files = {name or path.stem: path for name, path in find_weights(weights).items()}
    try:
        if real is not None:
            from dehazexl.cli.evaluate_real import score_real

            failures: list[str] = []

            def say(text: str) -> None:
                fail(text)
                failures.append(text)

            print(score_real(real, files, loader(device, dtype), say, overlap, size, out))
            if failures:
                raise ValueError(f"pictures in {real} that could not be scored: {len(failures)}, see above")
        else:
            from dehazexl.cli.evaluate import SIZE, score

            print(score(folders, files, loader(device, dtype), overlap, size or SIZE, out, hold_out, light))
    except KeyboardInterrupt:
        kept = f"the scores so far are in {out / ('real.csv' if real else 'scores.csv')}" if out else ""
        raise stopped(kept or "--out DIR keeps scores") from None


@app.command()
def haze(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A clear picture, or a folder of them.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A picture; for a folder a folder, for hazy/ and clear/.")],
    level: Annotated[int, typer.Option(metavar="N", help="How dense: 1 (thin) to 4, after 8KDehaze.")] = 3,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="veil, patches, ridges, depth, layers or fog. [default: a veil or patches, drawn]"
        ),
    ] = None,
    linear: Annotated[
        bool,
        typer.Option(
            "--linear/--no-linear", help="Haze on linear light, as in photographs, or on the values of the file."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the haze.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Put haze on clear pictures: pairs to train and to compare on."""
    from dehazexl.cli.haze import make_pairs

    for line in make_pairs(source.expanduser(), out.expanduser(), level, kind, seed, overwrite, linear):
        print(line, flush=True)
