"""Mutation fuzz of every reader: damaged files are read, or refused in one line, in little time and memory.

    python benchmarks/fuzz.py [--kinds own|gdal] [--count 20000] [--seed 0] [--log fuzz.jsonl]

Sound files are damaged at random and read in a process of limited memory; the same seed makes the same files. A run
that is stopped goes on where it was. ``--only N`` writes input N into the folder ``fuzz-N`` and shows its traceback.
Prints the counts and saves them as ``benchmarks/results/fuzz.json`` (``fuzz-gdal.json``).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import rasterio
import rasterio.shutil
import tifffile
import torch
import zarr
from machine import save_result
from rasterio.transform import from_origin

from dehazexl.image.image import value_range
from dehazexl.io.open import open_image
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model.weights import load_model, save_model

MEMORY = 1200 * 2**20
"""Bytes that an input may make the process allocate."""
SECONDS = 20
"""Seconds that an input may take."""
BLOCK = 500
"""Inputs read by one process."""
PARTS = 3
"""Mutations of an input at most."""
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 7, 2**31, 2**63, 2**70, 0.5, 1e308, float("inf"), float("nan"), "", "a", "..", "/",
    "pickle", "gzip", "|O", "<u2", [], [[]], [1], [2**40, 2**40], {}, {"id": "pickle"}, {"a": 1},
)  # fmt: skip
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)

Random = np.random.Generator


class TooLongError(BaseException):
    """An input takes more than `SECONDS`; not an Exception, which readers turn into their own."""


def picture(bands: int = 3, dtype: str = "uint16") -> Any:
    y, x, c = np.mgrid[0:96, 0:80, 0:bands]
    return (1000 + 900 * np.sin(x / 9 + c) * np.cos(y / 7)).astype(dtype)


def sound_files(folder: Path) -> dict[str, Path]:
    """Write a sound file for each reader, and for each of its ways."""
    rgb, byte = picture(), (picture() // 16).astype("uint8")
    made = {name: folder / name for name in SOUND}
    tifffile.imwrite(made["strips.tif"], rgb, rowsperstrip=16, photometric="rgb")
    tifffile.imwrite(made["tiles.tif"], rgb, tile=(32, 48), compression="zlib", predictor=True, photometric="rgb")
    tifffile.imwrite(made["lzw.tif"], rgb, rowsperstrip=8, compression="lzw", photometric="rgb", byteorder=">")
    tifffile.imwrite(made["jpeg.tif"], byte, tile=(32, 32), compression="jpeg", photometric="rgb")
    tifffile.imwrite(
        made["big.tif"], np.moveaxis(picture(4), -1, 0), bigtiff=True, compression="zstd", planarconfig="separate"
    )
    with tifffile.TiffWriter(made["pyramid.ome.tif"], ome=True) as file:
        options: dict[str, Any] = {"tile": (32, 32), "compression": "zlib", "photometric": "minisblack"}
        file.write(np.moveaxis(rgb, -1, 0), subifds=1, metadata={"axes": "CYX", "PhysicalSizeX": 0.5}, **options)
        file.write(np.moveaxis(rgb, -1, 0)[:, ::2, ::2], subfiletype=1, **options)
    PIL.Image.fromarray(byte).save(made["rgb.png"])
    PIL.Image.fromarray(rgb[..., 0]).save(made["deep.png"])
    PIL.Image.fromarray(byte).quantize(16).save(made["palette.png"], transparency=3)
    exif = PIL.Image.Exif()
    exif[274] = 6
    PIL.Image.fromarray(byte).save(made["rgb.jpg"], exif=exif, icc_profile=b"a" * 64)
    PIL.Image.fromarray(byte).convert("CMYK").save(made["cmyk.jpg"], progressive=True)
    zarr.create_array(made["v2.zarr"], data=rgb, chunks=(32, 32, 3), zarr_format=2)
    zarr.create_array(made["v3.zarr"], data=rgb, chunks=(32, 32, 3))
    zarr.create_array(made["shards.zarr"], data=rgb, chunks=(32, 32, 3), shards=(64, 64, 3))
    made["ome.zarr"] = ome_zarr(made["ome.zarr"], rgb)
    with zarr.storage.ZipStore(made["zip.zarr.zip"], mode="w") as store:
        zarr.create_array(store, data=rgb, chunks=(64, 64, 3))
    torch.manual_seed(0)
    model = DehazeXL(SPECS["tiny"])
    save_model(model, made["tiny.safetensors"], half=True, license="none")
    state = dict(list(model.state_dict().items())[:6])
    torch.save(state, made["zip.pth"])
    torch.save(state, made["plain.pth"], _use_new_zipfile_serialization=False)
    return made


def gdal_files(folder: Path) -> dict[str, Path]:
    """Write a sound file for each format that GDAL alone reads, and for what only GDAL writes."""
    byte = np.moveaxis((picture(3) // 16).astype("uint8"), -1, 0)
    made = {name: folder / name for name in SOUND["gdal"]}
    profile = {"driver": "GTiff", "width": 80, "height": 96, "dtype": "uint8", "count": 3, "crs": "EPSG:32632"}
    profile |= {"transform": from_origin(500_000, 5_000_000, 1, 1)}
    with rasterio.open(made["mask.tif"], "w", **profile, tiled=True, blockxsize=32, blockysize=32) as file:
        file.write(byte)
        file.write_mask(byte[0] > 40)
        file.update_tags(DATETIME="2026:01:01 00:00:00", ns="A")
    with rasterio.open(made["mask.tif"]) as file:
        copies = {"cog.tif": "COG", "rgb.jp2": "JP2OpenJPEG", "rgb.img": "HFA", "rgb.bsq": "ENVI", "rgb.vrt": "VRT"}
        for name, driver in copies.items():
            options = {"blocksize": 128, "compress": "deflate"} if driver == "COG" else {}
            rasterio.shutil.copy(file, made[name], driver=driver, **options)
        rasterio.shutil.copy(file, made["rgb.webp"], driver="WEBP", LOSSLESS="YES")
    return made


SOUND = {
    "own": [
        "strips.tif",
        "tiles.tif",
        "lzw.tif",
        "jpeg.tif",
        "big.tif",
        "pyramid.ome.tif",
        "rgb.png",
        "deep.png",
        "palette.png",
        "rgb.jpg",
        "cmyk.jpg",
        "v2.zarr",
        "v3.zarr",
        "shards.zarr",
        "ome.zarr",
        "zip.zarr.zip",
        "tiny.safetensors",
        "zip.pth",
        "plain.pth",
    ],
    "gdal": ["mask.tif", "cog.tif", "rgb.jp2", "rgb.img", "rgb.bsq", "rgb.vrt", "rgb.webp"],
}

BESIDE = {"rgb.bsq": "rgb.hdr", "rgb.vrt": "mask.tif"}
"""Files that belong to others."""

MADE = {"own": sound_files, "gdal": gdal_files}


def ome_zarr(path: Path, pixels: Any) -> Path:
    """Write an OME-Zarr of two levels, with attributes of this project."""
    group = zarr.open_group(path, mode="w")
    for number, step in enumerate((1, 2)):
        group.create_array(str(number), data=np.ascontiguousarray(pixels[::step, ::step]), chunks=(32, 32, 3))
    scales = [[{"type": "scale", "scale": [step, step, 1.0]}] for step in (1.0, 2.0)]
    levels = [{"path": str(number), "coordinateTransformations": scale} for number, scale in enumerate(scales)]
    axes = [
        {"name": "y", "type": "space", "unit": "meter"},
        {"name": "x", "type": "space", "unit": "meter"},
        {"name": "c"},
    ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    group.attrs["dehazexl"] = {"rgb": [0, 1, 2], "alpha": None, "metadata": {"software": "a"}}
    group.attrs["_FillValue"] = 7
    return path


def mutate(data: bytes, random: Random) -> bytes:
    """Damage some bytes; half of the damage is in the first or last 512, where the headers are."""
    made = bytearray(data)
    for _ in range(random.integers(1, PARTS + 1)):
        size = len(made)
        if not size:
            break
        near = int(random.integers(min(size, 512)))
        at = int(random.choice([near, size - 1 - near, *random.integers(size, size=2)]))
        match random.integers(11):
            case 0 | 1 | 2:
                made[at] ^= 1 << int(random.integers(8))
            case 3 | 4 | 5:
                width, order = int(random.choice([1, 2, 4, 8])), str(random.choice(["little", "big"]))
                number = NUMBERS[random.integers(len(NUMBERS))] % 256**width
                made[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
            case 6 | 7:
                made[at : at + 8] = random.bytes(min(8, size - at))
            case 8:
                del made[at : at + int(random.integers(1, 64))]
            case 9:
                start = int(random.integers(size))
                made[at:at] = made[start : start + int(random.integers(1, 64))]
            case _:
                del made[at:]
    return bytes(made)


def mutate_json(value: Any, random: Random) -> Any:
    """Replace one value somewhere in a JSON document, or remove it."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[random.integers(len(keys))]
        made: Any = value.copy()
        if random.random() < 0.1:
            del made[key]
        else:
            made[key] = mutate_json(value[key], random)
        return made
    return ODD[random.integers(len(ODD))]


def mutate_text(data: bytes, random: Random) -> bytes:
    """Damage a JSON document in its structure, or else its bytes."""
    if random.random() < 0.2:
        return mutate(data, random)
    value = json.loads(data)
    for _ in range(random.integers(1, 3)):
        value = mutate_json(value, random)
    return json.dumps(value).encode()


def mutate_words(data: bytes, random: Random) -> bytes:
    """Replace a number or a word of a text, or else damage its bytes."""
    words = list(re.finditer(rb"[\w.]+", data))
    if random.random() < 0.2 or not words:
        return mutate(data, random)
    word = words[random.integers(len(words))]
    odd = [str(number).encode() for number in (-1, *NUMBERS, 0.5, float("nan"))] + [b"", b"..", b"/", b"Float64"]
    return data[: word.start()] + odd[random.integers(len(odd))] + data[word.end() :]


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """Damage the header of a safetensors file, or the spec in it, or else its bytes."""
    if random.random() < 0.2:
        return mutate(data, random)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if random.random() < 0.7:
        about = header["__metadata__"]
        about["spec"] = mutate_text(about["spec"].encode(), random).decode(errors="replace")
    else:
        header = mutate_json(header, random)
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + data[8 + length :]


def mutate_zip(data: bytes, random: Random) -> bytes:
    """Damage one member of a zip file, or else its bytes."""
    if random.random() < 0.5:
        return mutate(data, random)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        chosen = names[random.integers(len(names))]
        for name in names:
            part = old.read(name)
            if name == chosen:
                part = mutate_text(part, random) if name.endswith(".json") else mutate(part, random)
            new.writestr(name, part)
    return made.getvalue()


def mutate_png(data: bytes, random: Random) -> bytes:
    """Damage a PNG, and mostly write the checksums of its chunks again."""
    made = bytearray(mutate(data, random))
    at = 8
    while at + 12 <= len(made) and random.random() < 0.95:
        end = at + 8 + int.from_bytes(made[at : at + 4], "big")
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4, "big")[: len(made) - end]
        at = end + 4
    return bytes(made)


def make_input(sound: Path, folder: Path, random: Random) -> Path:
    """Write a damaged copy of a sound file into an empty folder."""
    path = folder / sound.name
    if sound.is_dir():
        shutil.copytree(sound, path)
        files = sorted(each for each in path.rglob("*") if each.is_file())
        metadata = [each for each in files if each.name.startswith((".z", "zarr.json"))]
        chosen = metadata if random.random() < 0.8 else files
        file = chosen[random.integers(len(chosen))]
        damage: Callable[[bytes, Random], bytes] = mutate_text if file in metadata else mutate
        file.write_bytes(damage(file.read_bytes(), random))
        return path
    damaged = path
    if (beside := sound.with_name(BESIDE.get(sound.name, "none"))).is_file():
        shutil.copy(sound, path)
        shutil.copy(beside, folder)
        damaged = [path, folder / beside.name][random.integers(2)]
    kinds = {".safetensors": mutate_safetensors, ".zip": mutate_zip, ".png": mutate_png}
    kinds |= {".vrt": mutate_words, ".hdr": mutate_words}
    damage = kinds.get(damaged.suffix, mutate_zip if path.name == "zip.pth" else mutate)
    damaged.write_bytes(damage(sound.with_name(damaged.name).read_bytes(), random))
    return path


def read(path: Path) -> None:
    """Read an input as its users do: weights with all tensors, an image with its corners and its value range."""
    if path.suffix in (".safetensors", ".pth"):
        load_model(path, "cpu", "float32")
        return
    image = open_image(path)
    for level in image.levels:
        level[:64, :64].compute()
        level[-64:, -64:].compute()
    value_range(image)
    assert image.guard is not None
    image.guard()


def outcome(path: Path) -> str:
    """Read an input; return ``read``, ``refused``, or what else happened, which is a find."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        text = str(error)
        return "refused" if str(path) in text and "\n" not in text else f"unclear: {type(error).__name__}: {text[:200]}"
    except TooLongError:
        return f"more than {SECONDS} seconds"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(where.filename).name}:{where.name}: {str(error)[:200]}"
    return "read"


def interrupt(*_: object) -> None:
    raise TooLongError


def limit_memory() -> None:
    """Let this process allocate `MEMORY` more bytes; only Linux tells how many it has."""
    status = Path("/proc/self/status")
    if status.exists():
        held = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(held.split()[1]) + MEMORY,) * 2)


def work(kinds: str, numbers: list[int], seed: int, log: Path) -> None:
    """Read inputs, and write a line before and after each."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, interrupt)
    with tempfile.TemporaryDirectory() as folder, log.open("a", buffering=1) as lines:
        files = MADE[kinds](Path(folder))
        for path in files.values():  # everything is imported before memory is limited
            if (found := outcome(path)) != "read" and path.suffix != ".pth":  # those lack most of a network
                raise SystemExit(f"{path.name} is sound, but not read: {found}")
        limit_memory()
        for number in numbers:
            name = SOUND[kinds][number % len(SOUND[kinds])]
            place = Path(folder) / f"input-{number}"
            place.mkdir()
            path = make_input(files[name], place, np.random.default_rng([seed, number]))
            lines.write(json.dumps({"number": number, "reader": name}) + "\n")
            signal.alarm(SECONDS)
            try:
                found = outcome(path)
            finally:
                signal.alarm(0)
            lines.write(json.dumps({"number": number, "reader": name, "outcome": found}) + "\n")
            shutil.rmtree(place)


def results(log: Path) -> dict[int, dict[str, Any]]:
    """Return the last line of each input in a log; one without outcome ended the process that read it."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {line["number"]: line for line in map(json.loads, lines)}


def run(kinds: str, count: int, seed: int, log: Path) -> None:
    """Read all inputs that are not in the log yet, in processes of `BLOCK` inputs."""
    while remaining := sorted(set(range(count)) - results(log).keys()):
        part = ",".join(map(str, remaining[:BLOCK]))
        command = [
            sys.executable,
            __file__,
            "--kinds",
            kinds,
            "--numbers",
            part,
            "--seed",
            str(seed),
            "--log",
            str(log),
        ]
        try:
            subprocess.run(command, timeout=BLOCK * SECONDS, check=False)
        except subprocess.TimeoutExpired:
            print("a process hung and was ended", file=sys.stderr)
        print(f"{count - len(remaining)} of {count}", file=sys.stderr)


def report(kinds: str, log: Path, seed: int, seconds: float) -> None:
    """Print and save the counts by reader and outcome, and the finds."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    finds = []
    for number, line in sorted(results(log).items()):
        found = line.get("outcome", "the process ended")
        counts[line["reader"]][found if found in ("read", "refused") else "find"] += 1
        if found not in ("read", "refused"):
            finds.append({"number": number, "reader": line["reader"], "outcome": found})
    total = sum(counts.values(), Counter[str]())
    save_result(
        "fuzz" if kinds == "own" else f"fuzz-{kinds}",
        seed=seed,
        inputs=total.total(),
        seconds=round(seconds, 1),
        outcomes=total,
        readers=counts,
        finds=finds,
    )


def show(kinds: str, number: int, seed: int) -> None:
    """Write one input into the current folder and read it."""
    place = Path(f"fuzz-{number}")
    place.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        sound = MADE[kinds](Path(folder))[SOUND[kinds][number % len(SOUND[kinds])]]
        path = make_input(sound, place, np.random.default_rng([seed, number]))
    read(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default="own", choices=list(SOUND), help="which formats")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("fuzz.jsonl"), help="continued if it exists")
    parser.add_argument("--only", type=int, metavar="N", help="write and read this input alone")
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        show(args.kinds, args.only, args.seed)
    elif args.numbers:
        work(args.kinds, list(map(int, args.numbers.split(","))), args.seed, args.log)
    else:
        started = time.perf_counter()
        run(args.kinds, args.count, args.seed, args.log)
        report(args.kinds, args.log, args.seed, time.perf_counter() - started)


if __name__ == "__main__":
    main()
