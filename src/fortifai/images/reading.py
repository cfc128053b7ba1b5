"""Reads greyscale images: scikit-learn's digits, and IDX, PNG, .npy files and the hub."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai.errors import InputError, nearest, reason
from fortifai.file_formats import expand, hub_rows, read_bytes, read_npy

Pixels = NDArray[np.float32]
Labels = NDArray[np.int64]

_IDX_IMAGES = 0x00000803
_IDX_LABELS = 0x00000801
_IDX_NAMES = {_IDX_IMAGES: "uint8 images", _IDX_LABELS: "uint8 labels"}


@dataclasses.dataclass(frozen=True)
class Images:
    """Greyscale images of one size; `check_images` is called when they are made.

    Attributes:
        pixels: (n, height, width), float32, in [0, 1].
        labels: Class of each image from 0, (n,), int64; None if they have none.
        source: Where they came from, for messages.
    """

    pixels: Pixels
    labels: Labels | None
    source: str

    def __post_init__(self) -> None:
        check_images(self)


def check_images(images: Images) -> None:
    """Whether images are what `Images` says.

    Raises:
        InputError: Another type or number of axes, no images, a value that is NaN or outside
            [0, 1], or labels that are not one integer from 0 for each image.
    """
    pixels, labels, source = images.pixels, images.labels, images.source
    if pixels.dtype != np.float32:
        raise InputError(f"pixels of {source} are {pixels.dtype}; convert them to float32")
    if pixels.ndim != 3:
        raise InputError(
            f"pixels of {source} have {pixels.ndim} axes, shape {pixels.shape}; give 3, "
            "(images, height, width)"
        )
    if not pixels.size:
        raise InputError(
            f"{source} is empty, of shape {pixels.shape}; give at least one image with pixels"
        )
    _check_range(pixels, source)
    if labels is None:
        return
    if labels.dtype != np.int64 or labels.shape != (len(pixels),):
        raise InputError(
            f"labels of {source} are {labels.dtype} of shape {labels.shape}; give int64 of shape "
            f"({len(pixels)},), one for each image"
        )
    if labels.min() < 0:
        raise InputError(
            f"labels of {source} go down to {labels.min()}; classes count from 0, read these "
            "images without labels"
        )


def _check_range(pixels: NDArray[Any], source: str) -> None:
    missing = int(np.isnan(pixels).sum())
    if missing == pixels.size:
        raise InputError(f"{source} has nothing but NaN; pixels must lie in [0, 1], repair them")
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    if missing or low < 0 or high > 1:
        nan = f" and {missing} NaN" if missing else ""
        raise InputError(
            f"{source} has values from {low:g} to {high:g}{nan}; pixels must lie in [0, 1]; divide "
            "by 255 if they are bytes, or repair them"
        )


# --- built in ---------------------------------------------------------------------------------


def digits() -> Images:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8, with labels 0 to 9.

    Their values 0 to 16 are divided by 16. They come with the library: no network is needed.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.images / 16).astype(np.float32)
    return Images(pixels, data.target.astype(np.int64), "scikit-learn's digits")


# --- files ------------------------------------------------------------------------------------


def read_idx(images: str | Path, labels: str | Path | None, root: Path) -> Images:
    """Read the IDX files that MNIST comes in; packed ones too, whatever their names say.

    A file of images is the magic number 0x00000803, the number of images, of rows and of columns
    (4 bytes each, the highest first) and a byte for each pixel, which is divided by 255. A file of
    labels is 0x00000801, their number and a byte for each.

    Args:
        images: Path of the images, relative to `root`.
        labels: Path of the labels, relative to `root`; None if there are none.
        root: Folder of relative paths.

    Raises:
        InputError: A file is missing, is a folder, has another magic number, has fewer or more
            bytes than its header says, or there are not as many labels as images.
    """
    path = _one(images, root)
    pixels = _unit(_read_idx(path, _IDX_IMAGES), str(path))
    if labels is None:
        return Images(pixels, None, path.name)
    label_path = _one(labels, root)
    found = _read_idx(label_path, _IDX_LABELS).astype(np.int64)
    if len(found) != len(pixels):
        raise InputError(
            f"{label_path} has {len(found)} labels and {path} has {len(pixels)} images; give files "
            "that belong together"
        )
    return Images(pixels, found, path.name)


def _one(name: str | Path, root: Path) -> Path:
    paths = expand([name], root)
    if len(paths) > 1:
        raise InputError(
            f"{str(name)!r} names {len(paths)} files, {paths[0].name} and {paths[1].name} among "
            "them; give the path of one"
        )
    return paths[0]


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    data = read_bytes(path)
    axes = magic & 0xFF
    header = 4 * (1 + axes)
    wanted = f"{magic:#010x} ({_IDX_NAMES[magic]})"
    if len(data) >= 4 and (came := int.from_bytes(data[:4], "big")) != magic:
        known = f" ({_IDX_NAMES[came]})" if came in _IDX_NAMES else ""
        raise InputError(
            f"{path} begins with the magic number {came:#010x}{known}, not {wanted}; give an IDX "
            f"file of {_IDX_NAMES[magic]}"
        )
    if len(data) < header:
        raise InputError(
            f"{path} has {len(data)} bytes and an IDX header of {wanted} has {header}; give the "
            "whole file"
        )
    shape = tuple(int.from_bytes(data[4 * i : 4 * i + 4], "big") for i in range(1, axes + 1))
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise InputError(
            f"{path} has {len(data)} bytes and its header, for shape {shape}, expects {expected}; "
            "give the whole file"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_array(file: str | Path, root: Path) -> Images:
    """Read a .npy file of images, (n, height, width) or (n, height, width, 1).

    Args:
        file: Path relative to `root`. uint8 is divided by 255; floats must lie in [0, 1].
        root: Folder of the path.

    Raises:
        InputError: It is missing, not a .npy file, of another type or shape, or has values outside
            [0, 1].
    """
    path = _one(file, root)
    array = read_npy(path)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    return Images(_unit(array, str(path)), None, path.name)


def _unit(array: NDArray[Any], source: str) -> Pixels:
    """Pixels as float32; bytes are divided by 255."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f":
        raise InputError(
            f"{source} holds {array.dtype}; give uint8 from 0 to 255 or floats in [0, 1]"
        )
    if array.size:
        # before the conversion, in which 1 + 1e-9 would become 1 and 1e300 overflow
        _check_range(array, source)
    return array.astype(np.float32)


def read_folder(path: str | Path, root: Path) -> Images:
    """Read the PNG files of a folder and its subfolders, sorted by name, as greyscale.

    Colours are weighted as ITU-R 601-2 does; transparency is ignored. Where every file stands in a
    subfolder, the subfolders' names, sorted, are the classes 0 to k - 1. Names that begin with a
    dot are passed over.

    Args:
        path: The folder, relative to `root`.
        root: Folder of the path.

    Raises:
        InputError: There is no such folder, it has no PNG files, one of them is not an image, or
            not all are of the same size.
    """
    folder = root / path
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.exists() else f"there is no folder {folder}"
        raise InputError(f"{what}; give a folder of PNG files")
    names = sorted(
        name
        for name in (file.relative_to(folder) for file in folder.rglob("*"))
        if name.suffix.lower() == ".png"
        and not any(part.startswith(".") for part in name.parts)
        and (folder / name).is_file()
    )
    if not names:
        raise InputError(f"{folder} has no PNG files; give a folder that has some")
    pixels = _stack((str(folder / name), _open(folder / name)) for name in names)
    labels = None
    if all(len(name.parts) > 1 for name in names):
        of = {part: i for i, part in enumerate(sorted({name.parts[0] for name in names}))}
        labels = np.array([of[name.parts[0]] for name in names], dtype=np.int64)
    return Images(pixels, labels, str(folder))


def _open(path: Path) -> Pixels:
    from PIL import Image

    try:
        with Image.open(path) as image:
            grey = _grey(image)
    except Exception as error:  # the decoders raise a dozen unrelated kinds
        raise InputError(
            f"{path} is not a whole image ({reason(error)}); repair it or take it out of the folder"
        ) from error
    return _unit(grey, str(path))


def _grey(image: Any) -> NDArray[Any]:
    """A PIL image as (height, width), bytes or floats in [0, 1]."""
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):
        # 16 bits: depending on its version, PIL's conversion to 8 cuts values off at 255
        return np.asarray(image).astype(np.float64) / 65535
    return np.asarray(image.convert("L"))


def _stack(named: Iterable[tuple[str, Pixels]]) -> Pixels:
    """Images of one size as one array."""
    out: list[Pixels] = []
    first = ""
    for name, pixels in named:
        first = first or name
        if out and pixels.shape != out[0].shape:
            raise InputError(
                f"{first} is {_size(out[0])} pixels and {name} is {_size(pixels)}; give images of "
                "one size"
            )
        out.append(pixels)
    return np.stack(out)


def _size(pixels: Pixels) -> str:
    """Width x height, as image programs give it."""
    return " x ".join(str(length) for length in reversed(pixels.shape))


# --- the hub ----------------------------------------------------------------------------------


def read_hub(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    image: str = "image",
    label: str | None = "label",
) -> Images:
    """Read a data set of the hub; images become greyscale as in `read_folder`.

    Args:
        dataset: Its id.
        config: Its configuration, if it has several.
        split: Such as ``train``.
        image: Column of the images: files, or arrays (height, width) or (height, width, 1) as
            `read_array` takes them.
        label: Column of the classes, integers from 0; None to read none.

    Raises:
        InputError: It cannot be loaded (no such data set, config or split, no network), has no
            such column, a row has no image or no class, or not all images are of the same size.
    """
    rows = hub_rows(dataset, config=config, split=split)
    where = f"{dataset} ({split})"
    for column in (image, label):
        if column is not None and column not in rows.column_names:
            names = [str(name) for name in rows.column_names]
            raise InputError(
                f"{where} has no column {column!r}{nearest(column, names)}; it has "
                f"{', '.join(names)}"
            )
    if not len(rows):
        raise InputError(f"{where} is empty; give a split with images")
    kind = _declared(rows.features[image])
    pixels = _stack((at, _hub_image(value, kind, at)) for at, value in _values(rows, image, where))
    if label is None:
        return Images(pixels, None, dataset)
    labels = [_hub_label(value, at) for at, value in _values(rows, label, where)]
    return Images(pixels, np.array(labels, dtype=np.int64), dataset)


def _values(rows: Any, column: str, where: str) -> Iterator[tuple[str, Any]]:
    """A column's values with their places; one at a time, as they are decoded on access."""
    narrow = rows.select_columns([column])
    for index in range(len(narrow)):
        place = f"{where}, row {index + 1}, column {column!r}"
        try:
            value = narrow[index][column]
        except Exception as error:  # the decoders raise a dozen unrelated kinds
            raise InputError(
                f"{place}: cannot be decoded ({reason(error)}); choose another data set or split"
            ) from error
        yield place, value


def _declared(feature: Any) -> str | None:
    """The type of an array column's values; `datasets` hands them out as lists of int or float."""
    while hasattr(feature, "feature") or isinstance(feature, list):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    kind = getattr(feature, "dtype", None)
    return kind if kind == "uint8" else None


def _hub_image(value: Any, kind: str | None, place: str) -> Pixels:
    from PIL import Image

    if isinstance(value, Image.Image):
        return _unit(_grey(value), place)
    try:
        array = np.asarray(value, dtype=kind)
    except (ValueError, TypeError):
        array = np.empty(0, dtype=object)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        what = f"an array of shape {array.shape}" if array.dtype.kind in "iuf" else "no image"
        raise InputError(
            f"{place}: is {what} ({type(value).__name__}); name a column of images, or of arrays "
            "(height, width)"
        )
    return _unit(array, place)


def _hub_label(value: Any, place: str) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise InputError(
            f"{place}: is {value!r}, not an integer; name a column of classes, or read these "
            "images without labels"
        )
    return int(value)
