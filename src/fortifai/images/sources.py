"""Where images come from, as the YAML names it.

To add a source, write a subclass of `ImageSource` with a ``kind``, and name it in `SOURCES`.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

from fortifai.images.reading import Images, digits, read_array, read_folder, read_hub, read_idx
from fortifai.lab.plugins import Corpus


class ImageSource(Corpus):
    """Where images come from."""

    data: ClassVar[str] = "images"

    @abstractmethod
    def read(self, root: Path) -> Images:
        """The images.

        Args:
            root: Folder that file names are relative to.

        Raises:
            InputError: They are missing or something else.
        """


class Digits(ImageSource):
    """Scikit-learn's 1,797 handwritten digits, 8x8: real, and here without a network."""

    kind: Literal["digits"] = "digits"

    def read(self, root: Path) -> Images:
        """See `digits`."""
        return digits()


class IdxImages(ImageSource):
    """MNIST's file format, plain or gzip."""

    kind: Literal["idx"] = "idx"
    images: str
    labels: str | None = None

    def read(self, root: Path) -> Images:
        """See `read_idx`."""
        return read_idx(self.images, self.labels, root)


class ImageFolder(ImageSource):
    """PNG files; folders within it are classes."""

    kind: Literal["folder"] = "folder"
    path: str

    def read(self, root: Path) -> Images:
        """See `read_folder`."""
        return read_folder(self.path, root)


class ImageArray(ImageSource):
    """An .npy file of shape (n, height, width)."""

    kind: Literal["array"] = "array"
    file: str

    def read(self, root: Path) -> Images:
        """See `read_array`."""
        return read_array(self.file, root)


class HubImages(ImageSource):
    """A data set of the hub."""

    kind: Literal["hub"] = "hub"
    dataset: str
    config: str | None = None
    split: str = "train"
    image: str = "image"
    label: str | None = "label"

    def read(self, root: Path) -> Images:
        """See `read_hub`."""
        told = self.model_dump(exclude={"kind", "dataset"})
        return read_hub(self.dataset, **told)


SOURCES: tuple[type[ImageSource], ...] = (Digits, IdxImages, ImageFolder, ImageArray, HubImages)
