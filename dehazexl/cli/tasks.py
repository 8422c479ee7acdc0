"""Images and weights on the command line: which belong together, and the names of their outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dehazexl.io.sidecars import ENVI, envi_data
from dehazexl.io.unfinished import part_of
from dehazexl.io.write import PHOTO, TIFF, ZARR

KINDS = (*TIFF, ".btf", *PHOTO, *ZARR, ".jp2", ".j2k", ".vrt", ".img", ".bsq", ".bil", ".bip", ".webp")
"""Suffixes of the images in a folder."""

WEIGHTS = (".safetensors", ".pth")


@dataclass(frozen=True)
class Task:
    """One image to be dehazed with one network; `rivals` are other images whose output would have the same name."""

    source: Path
    weights: Path
    output: Path
    tokens: Path | None = None
    rivals: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which images of a folder are meant.

    Attributes
    ----------
    pattern
        Pattern of their names, or of the ends of their paths if it contains a slash, such as ``*_B04.tif``; empty for
        all images. A pattern that ends in a suffix finds files with it, whatever it is.
    recursive
        Whether images in subfolders are meant, too.
    """

    pattern: str = ""
    recursive: bool = False

    def __bool__(self) -> bool:
        return bool(self.pattern) or self.recursive

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the images."""
        suffix = Path(self.pattern).suffix.lower()
        return (*KINDS, ".zarr.zip", *([suffix] if suffix and not set("*?[") & set(suffix) else ()))

    def walk(self, folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
        """Yield the images of a folder in the order of their names, hidden ones left out."""
        seen |= {folder.resolve()}  # links may lead back
        for path in sorted(each for each in folder.iterdir() if not each.name.startswith(".")):
            if path.name.lower().endswith(self.suffixes) or is_zarr(path) or _is_raw(path):
                if not self.pattern or path.match(self.pattern):
                    yield path
            elif self.recursive and path.is_dir() and path.resolve() not in seen:
                yield from self.walk(path, seen)


def _is_raw(path: Path) -> bool:
    """Return whether a file holds the raw pixels of an ENVI image, by its header."""
    return path.suffix.lower() in ENVI and path.is_file() and envi_data(path) is not None


ALL = Selection()


def plan(
    source: Path,
    output: Path,
    weights: Sequence[str],
    tokens: Path | None = None,
    new_folder: bool = False,
    selection: Selection = ALL,
) -> tuple[list[Task], Path | None]:
    """Pair images and weights, and name the outputs.

    Parameters
    ----------
    source
        An image, or a folder of images.
    output
        A file or Zarr for one image and one network; else a folder, in which each image keeps its name and its
        subfolder; its name is followed by that of the weights if there are several.
    weights
        Names of bundled weights, files, or folders of weights.
    tokens
        Folder for tokens; several tasks have subfolders.
    new_folder
        `output` is a folder, even if it does not exist.
    selection
        Which images of a folder are meant.

    Returns
    -------
    tasks : list of Task
        By weights, then by image.
    folder : Path or None
        Folder of the outputs, or None for a single output.

    Raises
    ------
    FileNotFoundError, ValueError
        If an image or weights do not exist, or the folder of tokens overlaps with images or outputs.
    """
    from dehazexl.engine.tokens import check_apart

    images, files = find_images(source, selection), find_weights(weights)
    if tokens is not None:
        check_apart(tokens, source, output, part_of(output))
    many = images != [source] or files.keys() != {""}
    if not many and not new_folder and not is_folder(output):
        return [Task(source, files[""], output, tokens)], None
    if images != [source] and source.resolve() in (output.resolve(), *output.resolve().parents):
        raise ValueError(f"{output} is the folder of the input, or in it: choose another folder for the output")
    if many and output.suffix.lower() in KINDS:
        raise ValueError(f"{output} is one image, but there are several outputs: give a folder as OUTPUT")
    tasks = []
    for name, file in files.items():
        for image in images:
            target = output_path(image, source, name)
            tasks.append(Task(image, file, output / target, tokens and tokens / target if many else tokens))
    return with_rivals(tasks), output


def check_alone(sources: Sequence[Path], output: Path) -> None:
    """Raise ValueError if several images would be written to an output."""
    if len(sources) > 1:
        raise ValueError(f"{', '.join(map(str, sources))} would be written to the same {output}: rename all but one")


def with_rivals(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks, those with the same output as rivals of each other."""
    sources: dict[Path, list[Path]] = {}
    for task in tasks:
        sources.setdefault(task.output, []).append(task.source)
    return [replace(task, rivals=tuple(each for each in sources[task.output] if each != task.source)) for task in tasks]


def is_folder(output: Path) -> bool:
    """Return whether OUTPUT is a folder of images, not a Zarr to be replaced."""
    return output.is_dir() and output.suffix.lower() not in ZARR


def is_zarr(path: Path) -> bool:
    """Return whether a path is the folder of a Zarr, which is an image."""
    from dehazexl.io.open import ZARR_FILES

    return path.is_dir() and any((path / name).exists() for name in ZARR_FILES)


def find_images(source: Path, selection: Selection = ALL) -> list[Path]:
    """List the images of a folder, or the single image.

    Raises
    ------
    FileNotFoundError
        If the source does not exist.
    ValueError
        If the folder has no such image, or a selection was made in a single image.
    """
    from dehazexl.io.open import check_exists

    check_exists(source)
    if not source.is_dir() or is_zarr(source):
        if selection:
            raise ValueError(f"{source} is one image: --glob and --recursive choose among those of a folder")
        return [source]
    found = list(selection.walk(source))
    if not found and selection.pattern:
        raise ValueError(f"{source} has no image that matches --glob {selection.pattern!r}: write it as '*_B04.tif'")
    if not found:
        raise ValueError(f"{source} is a folder without images ({' '.join(KINDS)}), and not a Zarr")
    return found


def find_weights(weights: Sequence[str]) -> dict[str, Path]:
    """Find the files of weights, by distinct names; the name is ``""`` if there is only one."""
    from dehazexl.model.weights import BUNDLED
    from dehazexl.model.weights import find_weights as find_file

    files: list[Path] = []
    alone = len(weights) == 1
    for source in weights:
        folder = Path(source).expanduser()
        if not folder.is_dir() or (BUNDLED / f"{source}.safetensors").exists():
            files.append(find_file(source))
            continue
        found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS and not path.name.startswith("."))
        if not found:
            raise FileNotFoundError(f"{folder} is a folder without weights ({' '.join(WEIGHTS)})")
        files += found
        alone = False
    if alone:
        return {"": files[0]}
    stems = Counter(file.stem for file in files)
    # best.safetensors of two trainings differ by their folders.
    named = [
        (file.stem if stems[file.stem] == 1 else f"{file.resolve().parent.name}-{file.stem}", file) for file in files
    ]
    if len(dict(named)) < len(named):
        raise ValueError(f"some of the weights have the same name: {', '.join(map(str, files))}; rename or copy them")
    return dict(named)


def output_name(image: Path, weights: str = "") -> str:
    """Return the name of an output: that of the image, with the name of the weights before the suffix."""
    from dehazexl.io.source import short_name

    stem = short_name(image)
    suffix = image.name.removeprefix(stem).removesuffix(".zip")
    if not suffix.lower().endswith((*TIFF, *PHOTO, *ZARR)):
        suffix = ".zarr" if image.is_dir() else ".tif"
    return f"{stem}_{weights}{suffix}" if weights else stem + suffix


def output_path(image: Path, source: Path, weights: str = "") -> Path:
    """Return the path of an output in its folder, which mirrors that of the images, `source`."""
    folder = image.parent.relative_to(source) if image != source else Path()
    return folder / output_name(image, weights)
