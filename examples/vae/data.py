"""Images for the VAE example: scikit-learn's digits, .npy, .npz and IDX files."""

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vae import flags

TEST_FRACTION = 0.2
# Apart from --seed, so that runs of different seeds are tested on the same images.
SPLIT_SEED = 0
LEAST_IMAGES = 20
IMAGE_KEYS = ("images", "x", "x_train", "data")
LABEL_KEYS = ("labels", "y", "y_train")
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Images:
    """Images of whole-number pixels 0..levels, split for training and testing.

    Attributes:
        train: uint8, shape (images, pixels).
        test: uint8, shape (images, pixels).
        test_labels: classes 0, 1, ... of the test images, or None.
        classes: names of the classes.
        levels: the brightest value that a pixel can have.
        shape: shape of one image.
        source: where they come from, in words.
        stratified: whether both parts have the same share of every class.
    """

    train: Array
    test: Array
    test_labels: Array | None
    classes: tuple[str, ...]
    levels: int
    shape: tuple[int, ...]
    source: str
    stratified: bool

    @property
    def pixels(self) -> int:
        return self.train.shape[1]


class Unreadable(ValueError):
    """A file that holds no images, with the reason in one sentence."""


def load(path: Path | None, batch_size: int) -> Images:
    """Images of a file, or the digits of scikit-learn; stops where that cannot be."""
    try:
        images = digits() if path is None else from_file(path)
    except Unreadable as error:
        flags.stop(f"--data {path}: {error}")
    if batch_size > len(images.train):
        flags.stop(
            f"--batch-size {batch_size} exceeds the {len(images.train)} training "
            "images; give a smaller one."
        )
    return images


def digits() -> Images:
    bunch: Any = load_digits()
    source = "the handwritten digits of scikit-learn"
    return split(*pixels_and_levels(bunch.images), bunch.target, source)


def from_file(path: Path) -> Images:
    images, labels = read(path)
    return split(*pixels_and_levels(images), labels, str(path))


def read(path: Path) -> tuple[Array, Array | None]:
    """Images and labels (if there are any) as they are stored."""
    content = read_bytes(path)
    if content.startswith(b"\x93NUMPY"):
        return read_numpy(content), None
    if content.startswith(b"PK"):
        return read_archive(content)
    if content.startswith((b"\x1f\x8b", b"\x00\x00")):
        return read_idx(content), idx_labels(path)
    raise Unreadable(
        f"the file begins with {content[:4]!r}, which is none of .npy, .npz, IDX and "
        "gzipped IDX; save the images with numpy.save."
    )


def read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Unreadable("there is no such file; give the path of one.") from None
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}.") from None
    if not content:
        raise Unreadable("the file is empty; give one that holds images.")
    return content


def read_numpy(content: bytes) -> Any:
    """An array, or an archive of arrays; never unpickles."""
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    # A damaged header makes numpy raise errors of many kinds.
    except Exception as error:
        raise Unreadable(f"numpy cannot read the file: {error}") from None


def read_archive(content: bytes) -> tuple[Array, Array | None]:
    """The arrays of an .npz file that are named like images and like labels."""
    archive = read_numpy(content)
    names = list(archive.files)
    label_name = next((name for name in LABEL_KEYS if name in names), None)
    others = [name for name in names if name not in LABEL_KEYS]
    image_name = next((name for name in IMAGE_KEYS if name in names), None)
    if image_name is None and len(others) == 1:
        image_name = others[0]
    if image_name is None:
        raise Unreadable(
            f"the archive holds {names}, but no array named {', '.join(IMAGE_KEYS)}; "
            "rename the images."
        )
    try:
        images = np.asarray(archive[image_name])
        return images, None if label_name is None else np.asarray(archive[label_name])
    # Each member is decompressed and parsed here, with errors of many kinds.
    except Exception as error:
        raise Unreadable(f"numpy cannot read the archive: {error}") from None


def read_idx(content: bytes) -> Array:
    """The array of an IDX file: 0, 0, type, axes, big-endian sizes, then the values."""
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise Unreadable(f"the gzip stream is damaged: {error}.") from None
    if len(content) < 4 or content[:2] != b"\x00\x00" or content[2] not in IDX_TYPES:
        raise Unreadable(
            f"an IDX file begins with 0, 0, a type from 0x08 to 0x0E and a number of "
            f"axes, this one with {content[:4]!r}."
        )
    dtype, axes = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * axes
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    needed = start + math.prod(sizes) * dtype.itemsize
    if len(content) != needed:
        raise Unreadable(
            f"the IDX header announces {needed:,} bytes, the file has "
            f"{len(content):,}; download it again."
        )
    return np.frombuffer(content, dtype, offset=start).reshape(sizes)


def idx_labels(path: Path) -> Array | None:
    """Labels from the file that MNIST's naming puts beside the images, if any."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    beside = path.with_name(name)
    if name == path.name or not beside.is_file():
        return None
    try:
        return read_idx(read_bytes(beside))
    except Unreadable as error:
        raise Unreadable(f"its labels {beside} are unusable: {error}") from None


def pixels_and_levels(images: Array) -> tuple[Array, int]:
    """Images in uint8, and the least of 1, 16 and 255 that no value exceeds."""
    check_shape(images)
    if images.dtype.kind not in "buif":
        raise Unreadable(
            f"the images have dtype {images.dtype}; pixels must be whole numbers or floats."
        )
    low, high = images.min(), images.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unreadable("the images contain nan or infinite values; remove them.")
    if low == high:
        raise Unreadable(f"every pixel is {low}; there is nothing to learn.")
    if low < 0 or high > 255:
        raise Unreadable(
            f"pixels go from {low:g} to {high:g}; rescale them to 0..255 or to [0, 1]."
        )
    if images.dtype.kind == "f" and not np.array_equal(images, np.round(images)):
        return quantize(images, high), 255
    levels = next(level for level in (1, 16, 255) if high <= level)
    return images.astype(np.uint8), levels


def check_shape(images: Array) -> None:
    if images.ndim not in (2, 3, 4) or 0 in images.shape[1:]:
        raise Unreadable(
            f"the images have shape {images.shape}; it must be (N, H, W), (N, H, W, C) "
            "or (N, D)."
        )
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4):
        raise Unreadable(
            f"the images have shape {images.shape}; the last of four axes must be 1, 3 "
            "or 4 channels."
        )
    if len(images) < LEAST_IMAGES:
        raise Unreadable(
            f"there are {len(images)} images; training and testing need at least "
            f"{LEAST_IMAGES}."
        )


def quantize(images: Array, high: Any) -> Array:
    """Floats in [0, 1] as levels 0..255, on which a probability mass can be put."""
    if high > 1:
        raise Unreadable(
            f"pixels are floats up to {high:g}; scale them to [0, 1], or round them to "
            "whole numbers 0..255."
        )
    return np.round(255 * images).astype(np.uint8)


def split(images: Array, levels: int, labels: Array | None, source: str) -> Images:
    """A fixed split into training and test images, with equal shares of every class."""
    classes: tuple[str, ...] = ()
    codes = None
    if labels is not None:
        names, codes = class_codes(labels, len(images))
        classes = tuple(str(name) for name in names)
    test_count = math.ceil(TEST_FRACTION * len(images))
    # Every class needs a training and a test image, or no equal shares exist.
    stratified = (
        codes is not None and np.bincount(codes).min() >= 2 and len(classes) <= test_count
    )
    train, test = train_test_split(
        np.arange(len(images)),
        test_size=test_count,
        random_state=SPLIT_SEED,
        stratify=codes if stratified else None,
    )
    flat = images.reshape(len(images), -1)
    return Images(
        train=flat[train],
        test=flat[test],
        test_labels=None if codes is None else codes[test],
        classes=classes,
        levels=levels,
        shape=images.shape[1:],
        source=source,
        stratified=stratified,
    )


def class_codes(labels: Array, count: int) -> tuple[Array, Array]:
    """The distinct labels, and which of them every image has."""
    if labels.size != count or labels.shape[0] != count:
        raise Unreadable(
            f"the labels have shape {labels.shape}; {count} images need ({count},)."
        )
    whole = labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels))
    if labels.dtype.kind not in "biuSU" and not whole:
        raise Unreadable("the labels are neither whole numbers nor names; convert them.")
    values = labels.astype(np.int64) if whole else labels
    return np.unique(values.ravel(), return_inverse=True)
