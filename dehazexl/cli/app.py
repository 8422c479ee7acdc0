"""Command-line interface: ``dehazexl run`` and the other commands.

Heavy modules are imported when a command runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

import dehazexl
from dehazexl.cli.errors import EXPECTED_ERRORS, echo_error, format_error, is_device_full, names_of, print_traceback
from dehazexl.cli.progress import interruptible
from dehazexl.cli.streams import lenient_streams

if TYPE_CHECKING:
    from typing import Any

    from dehazexl.cli.run import Settings
    from dehazexl.cli.tasks import Task
    from dehazexl.io.raster_write import Compression
    from dehazexl.io.zarr_write import Ngff
    from dehazexl.model import DehazeXL

app = typer.Typer(
    help="Remove haze from images of any size: drone images, orthomosaics, satellite scenes, photographs.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Newer releases of Typer contain their own copy of click, without a public name for this class.
USAGE: type[Exception] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "UsageError")

Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="auto (CUDA, else Apple MPS, else the CPU), cpu, cuda, cuda:N or mps.")
]
Weights = Annotated[
    list[str],
    typer.Option(
        metavar="WEIGHTS",
        help="Bundled weights by name, a .safetensors or official .pth file, or a folder of them. Repeatable.",
    ),
]


STOPPED = 3
"""Code of an interrupted command that has printed its state; `main` returns that of the signal instead."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; the console entry point.

    Expected errors are printed in one line on stderr. The environment variable ``DEHAZEXL_TRACEBACK`` adds the
    traceback.

    Returns
    -------
    int
        Exit code: 0, 1 if some of several images failed, 2 for errors, 128 plus the number of a signal: 130 after
        Ctrl-C, 143 after SIGTERM.
    """
    with lenient_streams():
        return run_command(args)


def run_command(args: Sequence[str] | None) -> int:
    """Run a command; see `main`."""
    try:
        with interruptible() as interruption:
            code = app(args=args, prog_name="dehazexl", standalone_mode=False)
    except USAGE as error:
        context = getattr(error, "ctx", None)
        text = cast("Any", error).format_message().rstrip(".")  # typer hides the class that has it
        echo_error(f"{text}; see {context.command_path if context else 'dehazexl'} --help")
        return 2
    except (typer.Abort, KeyboardInterrupt):
        code = 1
    except EXPECTED_ERRORS as error:
        print_traceback()
        echo_error(format_error(error))
        return 2
    except RuntimeError as error:
        if not is_device_full(error):
            raise
        echo_error(format_error(error))
        return 2
    if interruption.signum is not None:
        if code != STOPPED:
            echo_error("stopped")
        return 128 + interruption.signum
    return code if isinstance(code, int) else 0


def explicit_options(context: typer.Context) -> set[str]:
    """Return the names of the options that were set on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def interrupted(state: str) -> typer.Exit:
    """Print the state after a signal in one line on stderr, and return the exception to raise."""
    # Python would warn about each unfinished read that is never awaited.
    warnings.simplefilter("ignore", RuntimeWarning)
    echo_error(f"stopped; {state}")
    return typer.Exit(STOPPED)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Print the version, or the help if no command is given."""
    if version:
        print(dehazexl.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A TIFF, Zarr, PNG or JPEG, or a folder of them.")],
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT",
            help="A .zarr, .tif, .png or .jpg; a folder for several images or weights, or with a / at its end.",
        ),
    ],
    weights: Weights = ["compact"],  # noqa: B006
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(metavar="DTYPE", help="Precision: auto (half where faster), float32, float16 or bfloat16."),
    ] = "auto",
    batch: Annotated[str, typer.Option(metavar="N", help="Number of tiles computed at once, or auto.")] = "auto",
    overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Overlap of tiles, 0 to 128. [default: that of the weights]"),
    ] = None,
    strength: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the haze to remove, from 0 (the input) to 1 (all of it).")
    ] = 1.0,
    value_range: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Values of black and white. [default: 0,255 for 8 bits; else 0 and percentile 99.9]",
        ),
    ] = "",
    bands: Annotated[
        str,
        typer.Option(
            metavar="R,G,B", help="Red, green and blue bands, by number from 1 or by name. [default: from the metadata]"
        ),
    ] = "",
    region: Annotated[str, typer.Option(metavar="Y0:Y1,X0:X1", help="Dehaze these rows and columns alone.")] = "",
    context: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="What else takes part in dehazing a region: all of the image, region (nothing), neighborhood:PIXELS. "
            "pooled:N, for gigapixels: all, with N x N keys of tiles far away pooled.",
        ),
    ] = "all",
    resize: Annotated[
        str, typer.Option(metavar="WxH", help="Resize the input (a region: it alone) to this size first, in memory.")
    ] = "",
    nor: Annotated[bool, typer.Option("--nor", help="The official .pth file was trained with --nor.")] = False,
    maps: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Write maps beside OUTPUT: transmission, airlight, removed (haze removed, in percent), with commas.",
        ),
    ] = "",
    tokens: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the tokens, from which a stopped run can be resumed.")
    ] = None,
    ngff: Annotated[str, typer.Option(metavar="VERSION", help="Version of OME-Zarr, 0.5 or 0.4.")] = "0.5",
    compression: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="Compression of TIFF files: deflate, zstd, lzw, lerc, none; jpeg, webp. [default: as the input]",
        ),
    ] = "",
    nodata: Annotated[float | None, typer.Option(metavar="VALUE", help="Value of pixels without data.")] = None,
    page: Annotated[int | None, typer.Option(metavar="N", help="Page of a TIFF, or plane of a stack, from 1.")] = None,
    border: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="ignore: a border of one value does not count; keep: it is part of the image."
        ),
    ] = "ignore",
    pattern: Annotated[
        str,
        typer.Option("--glob", metavar="PATTERN", help="Of a folder, images of these names, as in '*_B04.tif'."),
    ] = "",
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Of a folder, also the images in subfolders, which OUTPUT mirrors.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Table of all images: state, seconds, size and message.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing outputs, once the new ones are complete.")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out the images whose outputs exist, whatever made them.")
    ] = False,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Start even if memory or disk are too small by an estimate.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again, instead of going on with the work of a run that was stopped.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Work in N processes of this machine, which dask manages.")
    ] = None,
    scheduler: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Work on the dask cluster of this scheduler, e.g. tcp://host:8786; all machines share the files.",
        ),
    ] = "",
    dask_config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file of dask settings.")] = None,
) -> None:
    """Remove haze from an image or a folder of images.

    The output has the size, bands, data type and georeference of the input.

    A run that was stopped or killed goes on when the same command is given again. Until then its work is in the folder
    .OUTPUT.part next to OUTPUT.
    """
    from dehazexl.cli import parse
    from dehazexl.cli.run import Settings, remaining
    from dehazexl.cli.tasks import Selection, plan
    from dehazexl.cli.workers import connected

    settings = Settings(
        overlap=overlap,
        strength=strength,
        value_range=parse.value_range(value_range) if value_range else None,
        bands=parse.bands(bands) if bands else None,
        batch=parse.batch(batch),
        region=parse.region(region) if region else None,
        context=context,
        resize=parse.size(resize) if resize else None,
        ngff=cast("Ngff", ngff),  # `write` checks both, with one message for the command line and Python
        compression=cast("Compression", compression) if compression else None,
        overwrite=overwrite,
        nodata=nodata,
        page=page,
        border=cast("Any", border),
        fresh=fresh,
        skip_existing=skip_existing,
        unchecked=unchecked,
        maps=parse.names(maps) if maps else (),
    )
    target, tokens = Path(output).expanduser(), tokens and tokens.expanduser()
    try:
        is_new, selection = output.endswith(("/", os.sep)), Selection(pattern, recursive)
        tasks, folder = plan(source.expanduser(), target, weights, tokens, is_new, selection)
        with connected(workers, scheduler, dask_config and dask_config.expanduser(), device) as found:
            dehaze_all(
                tasks,
                folder,
                loader(device, dtype, nor),
                nor,
                replace(settings, workers=found),
                report and report.expanduser(),
            )
    except KeyboardInterrupt:
        raise interrupted(remaining(target, tokens)) from None


def dehaze_all(
    tasks: Sequence[Task],
    folder: Path | None,
    load: Callable[[Path], DehazeXL],
    nor: bool,
    settings: Settings,
    report: Path | None,
) -> None:
    """Dehaze all images with all weights and print a line for each output."""
    from dehazexl.cli.folder import run

    if nor and (known := next((task.weights for task in tasks if task.weights.suffix == ".safetensors"), None)):
        raise ValueError(f"--nor is for official .pth files; {known} stores its normalization")
    failed: list[Path] = []

    def echo_failure(task: Task, text: str) -> None:
        echo_error(text)
        failed.append(task.source)

    for result in run(tasks, folder, settings, load, echo_failure, report):
        print(result, flush=True)
    if failed:
        echo_error(f"{len(failed)} of {len(tasks)} images could not be dehazed: {names_of(failed)}")
        raise typer.Exit(1)


@app.command()
def status(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="OUTPUT of a run, or the folder of its outputs.")],
) -> None:
    """Print the progress of unfinished work: stage, share, time left, size on disk, and the process."""
    from dehazexl.cli.leftovers import status as lines

    for line in lines(output.expanduser()):
        print(line)


@app.command()
def clean(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="OUTPUT of a run, or the folder of its outputs.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without a question.")] = False,
) -> None:
    """List the work that killed runs have left on an output or in a folder, and remove it after a question.

    Complete images and work in progress are kept.
    """
    from dehazexl.cli import leftovers

    at = leftovers.unfinished_at(output.expanduser())
    if not at and not output.expanduser().exists():
        raise FileNotFoundError(f"{output} does not exist, and there is no unfinished work on it")
    found = []
    for each in at:
        leftovers.settle(each)
        if each.folder.is_dir():
            print(leftovers.describe(each))
            found += [] if each.busy() else [each]
    if not found:
        print(f"{output}: nothing to remove")
    elif yes or (sys.stdin is not None and sys.stdin.isatty() and typer.confirm("Remove what is not in progress?")):
        for each in found:
            print(leftovers.clean(each))
    else:
        print("nothing was removed: give --yes to remove what is not in progress")


def loader(device: str, dtype: str = "auto", nor: bool = False) -> Callable[[Path], DehazeXL]:
    """Return a function that loads weights and prints their device and precision on stderr."""

    def load(path: Path) -> DehazeXL:
        from dehazexl.model.weights import load_model

        model = load_model(path, device, dtype, normalized=nor)
        print(f"{path.name} on {model.device}, {str(model.dtype).removeprefix('torch.')}", file=sys.stderr)
        return model

    return load


@app.command()
def explain(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A TIFF, Zarr, PNG or JPEG.")],
    window: Annotated[str, typer.Option(metavar="Y0:Y1,X0:X1", help="Rows and columns of the output to explain.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder for maps, figures and numbers.")],
    detector: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Explain the sum of the window, its mean-variance, or its gradient (edge strength)."
        ),
    ] = "sum",
    baseline: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH", help="Compare with dehazed, black, blur, or an image of the same size without haze."
        ),
    ] = "dehazed",
    steps: Annotated[int, typer.Option(metavar="N", help="Number of points on the path from the baseline.")] = 100,
    fold: Annotated[
        int,
        typer.Option(
            metavar="N", help="Smooth the path, in N pieces: the difference fades in from coarse to fine. [default: no]"
        ),
    ] = 1,
    sigma: Annotated[
        float,
        typer.Option(metavar="PIXELS", help="Standard deviation of the baseline blur, and of a smoothed path's start."),
    ] = 32.0,
    curves: Annotated[
        bool, typer.Option("--curves/--no-curves", help="Compute deletion and insertion curves of tiles.")
    ] = True,
    weights: Annotated[str, typer.Option(metavar="WEIGHTS", help="Bundled weights by name, or a file.")] = "compact",
    device: Device = "auto",
    batch: Annotated[str, typer.Option(metavar="N", help="Number of tiles computed at once, or auto.")] = "auto",
    overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Overlap of tiles, 0 to 128. [default: that of the weights]"),
    ] = None,
    value_range: Annotated[
        str, typer.Option("--range", metavar="LOW,HIGH", help="Values of black and white, as in run.")
    ] = "",
    bands: Annotated[str, typer.Option(metavar="R,G,B", help="Red, green and blue bands, as in run.")] = "",
    nor: Annotated[bool, typer.Option("--nor", help="The official .pth file was trained with --nor.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing explanation.")] = False,
    map_format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="Of the maps: tiff or zarr.")] = "tiff",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again, instead of going on with a command that was stopped.")
    ] = False,
) -> None:
    """Show which parts of an image the network used for a window of its output.

    The Dehazing Attribution Map of the paper, by integrated gradients in float32: what each pixel contributes to the
    difference that the image makes to the window, compared with a baseline. A command that was
    stopped or killed goes on when it is given again.
    """
    from dehazexl.cli import parse
    from dehazexl.cli.explain import explain_to_folder, remaining
    from dehazexl.engine.explain.attribution import prepare_float32
    from dehazexl.image.grid import Window
    from dehazexl.model.weights import find_weights

    y0, y1, x0, x1 = parse.region(window, "--window")
    model = loader(device, "float32", nor)(find_weights(weights))
    job = prepare_float32(
        source.expanduser(),
        model,
        overlap,
        parse.value_range(value_range) if value_range else None,
        parse.bands(bands) if bands else None,
        parse.batch(batch),
    )
    place = Window(y0 or 0, job.grid.height if y1 is None else y1, x0 or 0, job.grid.width if x1 is None else x1)
    try:
        for line in explain_to_folder(
            job, place, out.expanduser(), map_format=map_format, overwrite=overwrite, fresh=fresh,
            detector=detector, baseline=baseline, steps=steps, sigma=sigma, fold=fold, with_curves=curves,
        ):  # fmt: skip
            print(line, flush=True)
    except KeyboardInterrupt:
        raise interrupted(remaining(out.expanduser())) from None


@app.command()
def info(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="An image, a weights file, or the name of bundled weights.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the properties of an image or of weights."""
    import json

    from dehazexl.cli.info import as_text, describe

    properties = describe(file)
    print(json.dumps(properties, indent=2) if as_json else as_text(properties))


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Output folder; existing demo files are replaced.")
    ] = Path("demo"),
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the image in pixels.")] = "1600x1200",
    weights: Annotated[str, typer.Option(metavar="WEIGHTS", help="Bundled weights by name, or a file.")] = "compact",
    device: Device = "auto",
) -> None:
    """Add haze to the sample image, dehaze it, and save both side by side."""
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
            metavar="FOLDER", help="Folders of clear 8-bit images, of pairs (hazy/, clear/), or of 8KDehaze."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Output folder for weights, checkpoints and log.")],
    hold_out: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Pattern of images to validate on, e.g. 'naip/*'. Repeatable. [default: every tenth]",
        ),
    ] = [],  # noqa: B006
    spec: Annotated[
        str, typer.Option(metavar="SPEC", help="Specification of the network: compact, official, tiny..., or JSON.")
    ] = "compact",
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Number of steps of the run.")] = 3000,
    tiles: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Number of tiles of 256 x 256 pixels in a batch; a single crop may have more."
        ),
    ] = 8,
    crop: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="Side of the largest crops in tiles.")] = 3,
    accumulate: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of batches whose gradients are accumulated in a step.")
    ] = 1,
    part: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of tiles computed at once, and recomputed in the backward pass to save memory. [default: all]",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="float32, or bfloat16 or float16 by autocast.")
    ] = "float32",
    procedural: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Share of crops from procedural images.")
    ] = 0.0,
    lr: Annotated[float, typer.Option(min=0, metavar="RATE", help="Peak learning rate.")] = 6e-4,
    ema: Annotated[
        float, typer.Option(min=0, max=1, metavar="DECAY", help="Decay of the moving average of the weights.")
    ] = 0.995,
    normalize: Annotated[bool, typer.Option("--normalize", help="Normalize colors like the official --nor.")] = False,
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Seed of weights, crops and haze; after --init, use another one for new crops."
        ),
    ] = 0,
    every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of steps between validations and checkpoints.")
    ] = 250,
    minutes: Annotated[
        float,
        typer.Option(
            min=0, metavar="MINUTES", show_default="no limit", help="Stop after this time; continue with --resume."
        ),
    ] = float("inf"),
    device: Device = "auto",
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS", help="Start from these weights and their spec, e.g. compact, instead of random weights."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in RUN with its options, except those given and --device, --every and --minutes.",
        ),
    ] = False,
) -> None:
    """Train a network on clear images with synthetic haze, or on pairs.

    RUN will contain best.safetensors, last.safetensors, checkpoints of both (best.pt, checkpoint.pt), log.csv and
    plot.png.
    With several GPUs:
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
            given=explicit_options(context),
        )  # fmt: skip
        if done is not None:
            print(done)
    except KeyboardInterrupt:
        raise interrupted(f"--resume continues from the last checkpoint in {out}, if there is one") from None


@app.command()
def evaluate(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="Folders of clear images, of pairs (hazy/, clear/), or of 8KDehaze."),
    ] = [],  # noqa: B006
    real: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Score on the hazy photographs in FOLDER instead, without reference images."
        ),
    ] = None,
    weights: Weights = ["compact"],  # noqa: B006
    hold_out: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Pattern of images to score, as in train. [default: all; for 8KDehaze those held out by train]",
        ),
    ] = [],  # noqa: B006
    light: Annotated[
        str | None,
        typer.Option(
            metavar="LIGHT", help="Add haze to clear images in file values, in linear light, or both. [default: both]"
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Overlap of tiles, 0 to 128. [default: that of the weights]"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            metavar="PIXELS",
            help="Side of the center crop of clear images, 512 by default; longest side of photographs of --real.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for scores.csv, summary.csv and sheet.png; with --real for real.csv, real-summary.csv and "
            "real.png.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(metavar="DTYPE", help="Precision: float32 for reproducible scores, or another one."),
    ] = "float32",
) -> None:
    """Score weights, the hazy input and the dark channel prior.

    Images are pairs, the held-out part of 8KDehaze, or clear images with reproducible haze of four kinds, added in file
    values and in linear light (--light values, linear or both).
    Score only held-out images (listed by dehazexl info WEIGHTS): scores on training images are too good.
    Scores are computed at full resolution, RGB, data range 1: PSNR, SSIM, CIEDE2000, the ratio of jumps at tile borders
    to jumps elsewhere, seconds per image, and peak memory.

    On photographs with real haze (--real), the scores are perceived fog density (FADE), color cast, newly clipped
    pixels, lightness, amplified noise, and jumps at tile borders.
    """
    from dehazexl.cli.tasks import find_weights

    if (real is None) == (not folders):
        raise ValueError("pass either FOLDER, with clear images or pairs, or --real FOLDER, with hazy photographs")
    if real is not None and (hold_out or light is not None):
        raise ValueError("--hold-out and --light do not apply to --real, which scores all photographs: leave them out")
    files = {name or path.stem: path for name, path in find_weights(weights).items()}
    failures: list[str] = []

    def echo_failure(text: str) -> None:
        echo_error(text)
        failures.append(text)

    try:
        if real is not None:
            from dehazexl.cli.evaluate_real import score_real

            print(score_real(real, files, loader(device, dtype), echo_failure, overlap, size, out))
        else:
            from dehazexl.cli.evaluate import SIZE, score

            load, size = loader(device, dtype), size or SIZE
            print(score(folders, files, load, overlap, size, out, hold_out, light, echo_failure))
        if failures:
            where = real or ", ".join(map(str, folders))
            raise ValueError(f"images in {where} that could not be scored: {len(failures)}, see above")
    except KeyboardInterrupt:
        saved = f"the scores so far are in {out / ('real.csv' if real else 'scores.csv')}" if out else ""
        raise interrupted(saved or "--out DIR saves scores") from None


@app.command()
def haze(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A clear image, or a folder of them.")],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="An image, or a folder with a / at its end; for a folder, that of hazy/ and clear/."
        ),
    ],
    level: Annotated[int, typer.Option(metavar="N", help="Density from 1 (thin) to 4, modeled on 8KDehaze.")] = 3,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="veil, patches, ridges, depth, layers or fog. [default: veil or patches, at random]"
        ),
    ] = None,
    linear: Annotated[
        bool,
        typer.Option("--linear/--no-linear", help="Add haze in linear light, as in photographs, or in file values."),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the haze.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
) -> None:
    """Add haze to clear images, to create pairs for training and evaluation."""
    from dehazexl.cli.haze import make_pairs

    failed: list[Path] = []

    def echo_failure(path: Path, text: str) -> None:
        echo_error(text)
        failed.append(path)

    target, is_new = Path(out).expanduser(), out.endswith(("/", os.sep))
    for line in make_pairs(
        source.expanduser(), target, level, kind, seed, overwrite, linear, echo=echo_failure, new_folder=is_new
    ):
        print(line, flush=True)
    if failed:
        echo_error(f"no haze was added to {len(failed)} images: {names_of(failed)}")
        raise typer.Exit(1)
