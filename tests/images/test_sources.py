import gzip
import struct

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from fortifai.errors import InputError
from fortifai.images.reading import Images, digits, read_array, read_folder, read_hub, read_idx

BYTES = np.array([[[0, 51, 255], [1, 2, 254]], [[9, 8, 7], [100, 200, 128]]], dtype=np.uint8)


def idx(array, magic):
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def png(folder, name, array):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, format="PNG")


def npy(folder, name, array):
    np.save(folder / name, array)
    return name


def assert_bytes(images, expected):
    """Single-precision division rounds correctly, so the quotients agree to the last bit."""
    assert images.pixels.dtype == np.float32
    assert np.array_equal(images.pixels, (expected / 255.0).astype(np.float32))


# --- what images are --------------------------------------------------------------------------


def test_digits():
    images = digits()
    assert images.pixels.shape == (1797, 8, 8)
    assert images.pixels.dtype == np.float32
    # the first digit's first row, from the UCI repository's optdigits.tes: 0,0,5,13,9,1,0,0
    assert (images.pixels[0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert images.pixels.max() == 1
    assert images.labels.dtype == np.int64
    assert images.labels[:11].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert np.bincount(images.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


GOOD = np.array([[[0, 0.5], [1, 0.25]]], dtype=np.float32)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (GOOD.astype(np.float64), None, "pixels of it are float64; convert them to float32"),
        (GOOD[0], None, "have 2 axes"),
        (GOOD[:0], None, r"it is empty, of shape \(0, 2, 2\)"),
        (GOOD[:, :0], None, "it is empty"),
        (GOOD * 256 - 1, None, r"values from -1 to 255; pixels must lie in \[0, 1\]; divide by 2"),
        (GOOD * np.float32(1.0001), None, "values from 0 to 1.0001"),
        (GOOD - np.float32(0.1), None, "values from -0.1 to 0.9"),
        (np.float32([[[np.inf, np.nan]]]), None, "has values from inf to inf and 1 NaN"),
        (np.where(GOOD == 1, np.float32(np.nan), GOOD), None, "from 0 to 0.5 and 1 NaN; pixels"),
        (GOOD * np.float32(np.nan), None, "it has nothing but NaN"),
        (GOOD, np.array([0, 1]), r"labels of it are int64 of shape \(2,\); give int64 of shape"),
        (GOOD, np.array([[0]]), r"shape \(1, 1\)"),
        (GOOD, np.array([0], dtype=np.uint8), "labels of it are uint8"),
        (GOOD, np.array([-1]), "labels of it go down to -1"),
    ],
)
def test_what_is_no_images(pixels, labels, message):
    with pytest.raises(InputError, match=message):
        Images(pixels, labels, "it")


def test_what_is_images():
    Images(GOOD, None, "it")
    Images(GOOD, np.array([3]), "it")


# --- IDX --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("i", "l"), ("i.gz", "l.gz")])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_plain_and_gzip_by_content(tmp_path, names, pack):
    write(tmp_path, names[0], pack(idx(BYTES, 0x803)))
    write(tmp_path, names[1], pack(idx(np.array([7, 255], dtype=np.uint8), 0x801)))
    images = read_idx(*names, tmp_path)
    assert_bytes(images, BYTES)
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [7, 255]
    assert images.source == names[0]
    assert read_idx(str(tmp_path / names[0]), None, tmp_path).labels is None


IMAGES = idx(BYTES, 0x803)
LABELS = idx(np.array([1, 2], dtype=np.uint8), 0x801)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            LABELS,
            LABELS,
            r"/i begins with the magic number 0x00000801 \(uint8 labels\), not 0x00000803 "
            r"\(uint8 images\)",
        ),
        (IMAGES, IMAGES, r"/l begins with the magic number 0x00000803 \(uint8 images\), not 0x0"),
        (IMAGES[:2] + b"\x0d" + IMAGES[3:], LABELS, r"magic number 0x00000d03, not 0x00000803"),
        (b"\x89PNG\r\n\x1a\n", LABELS, "magic number 0x89504e47, not"),
        (IMAGES[:-1], LABELS, r"/i has 27 bytes and its header, for shape \(2, 2, 3\), expects 28"),
        (IMAGES + b"\0", LABELS, "/i has 29 bytes .* expects 28"),
        (gzip.compress(IMAGES[:-5], mtime=0), LABELS, "/i has 23 bytes .* expects 28"),
        (IMAGES[:15], LABELS, "/i has 15 bytes and an IDX header .* has 16"),
        (b"", LABELS, "/i has 0 bytes and an IDX header"),
        # a header that promises more than any memory holds
        (IMAGES[:4] + b"\xff" * 12 + IMAGES[16:], LABELS, "has 28 bytes .* expects 79228162458"),
        (IMAGES, LABELS[:-1], r"/l has 9 bytes and its header, for shape \(2,\), expects 10"),
        (IMAGES, LABELS[:7], "/l has 7 bytes and an IDX header .* has 8"),
        (idx(BYTES[:1], 0x803), LABELS, "/l has 2 labels and .*/i has 1 images"),
        (idx(BYTES[:0], 0x803), idx(np.zeros(0, np.uint8), 0x801), "is empty, of shape"),
        (gzip.compress(IMAGES, mtime=0)[:-9], LABELS, "/i is not a whole gzip file: .* bytes came"),
        (b"\x1f\x8b plain nonsense", LABELS, "/i is not a whole gzip file"),
    ],
)
def test_idx_that_is_not_whole(tmp_path, images, labels, message):
    write(tmp_path, "i", images)
    write(tmp_path, "l", labels)
    with pytest.raises(InputError, match=message):
        read_idx("i", "l", tmp_path)


def test_idx_that_is_not_there(tmp_path):
    write(tmp_path, "i", IMAGES)
    write(tmp_path, "j", IMAGES)
    (tmp_path / "sub").mkdir()
    for images, labels, message in (
        ("none", None, "there is no file 'none'"),
        ("i", "none", "there is no file 'none'"),
        ("sub", None, "'sub' is a folder"),
        ("[ij]", None, r"'\[ij\]' names 2 files, i and j among them; give the path of one"),
    ):
        with pytest.raises(InputError, match=message):
            read_idx(images, labels, tmp_path)


def test_all_of_mnist(real_data):
    images = read_idx(
        "mnist/train-18k-images-idx3-ubyte.gz", "mnist/train-18k-labels-idx1-ubyte.gz", real_data
    )
    assert images.pixels.shape == (18_000, 28, 28)
    with gzip.open(real_data / "mnist/train-18k-labels-idx1-ubyte.gz") as file:
        labels = file.read()[8:]
    assert images.labels[0] == labels[0] == 5  # MNIST begins with a five
    assert np.bincount(images.labels).tolist() == [labels.count(k) for k in range(10)]
    with gzip.open(real_data / "mnist/train-18k-images-idx3-ubyte.gz") as file:
        data = file.read()
    for which in (0, 12_345, 17_999):
        start = 16 + 784 * which
        expected = [[data[start + 28 * y + x] / 255 for x in range(28)] for y in range(28)]
        assert np.array_equal(images.pixels[which], np.float32(expected))


# --- .npy -------------------------------------------------------------------------------------


def test_array_of_bytes(tmp_path):
    images = read_array(npy(tmp_path, "a.npy", BYTES), tmp_path)
    assert_bytes(images, BYTES)
    assert images.labels is None
    assert images.source == "a.npy"
    images = read_array(npy(tmp_path, "b.npy", BYTES[..., None]), tmp_path)
    assert_bytes(images, BYTES)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f8"])
def test_array_of_floats(tmp_path, kind):
    array = (BYTES / 255).astype(kind)
    images = read_array(npy(tmp_path, "a.npy", array), tmp_path)
    assert images.pixels.dtype == np.float32
    assert np.array_equal(images.pixels, array.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (BYTES.astype(np.float32), "values from 0 to 255; pixels must lie in .*; divide by 255"),
        (GOOD.astype(np.float64) + 1e-12, "values from 1e-12 to 1;"),  # 1 in single precision
        (GOOD.astype(np.float64) * 1e300, r"values from 0 to 1e\+300"),
        (GOOD - 1, "values from -1 to 0"),
        (BYTES.astype(np.int64), "holds int64; give uint8 from 0 to 255 or floats"),
        (BYTES > 5, "holds bool"),
        (BYTES[0], "have 2 axes"),
        (np.stack([BYTES] * 3, axis=-1), r"have 4 axes, shape \(2, 2, 3, 3\)"),
        (BYTES[:0], "is empty"),
        (GOOD[:0], "is empty"),
    ],
)
def test_array_that_is_no_images(tmp_path, array, message):
    with pytest.raises(InputError, match=message) as e:
        read_array(npy(tmp_path, "a.npy", array), tmp_path)
    assert "a.npy" in str(e.value)


def test_array_that_cannot_be_read(tmp_path):
    write(tmp_path, "a.npy", b"not numpy's")
    with pytest.raises(InputError, match=r"a.npy is not a whole .npy file"):
        read_array("a.npy", tmp_path)
    with pytest.raises(InputError, match=r"there is no file 'b.npy'"):
        read_array("b.npy", tmp_path)


@given(
    st_numpy.arrays(
        st.sampled_from([np.uint8, np.float16, np.float32, np.float64]),
        st_numpy.array_shapes(min_dims=3, max_dims=3, max_side=4),
    )
)
def test_images_are_in_range_or_refused(tmp_path_factory, array):
    folder = tmp_path_factory.mktemp("array")
    fine = array.dtype == np.uint8 or bool(((array >= 0) & (array <= 1)).all())
    try:
        pixels = read_array(npy(folder, "a.npy", array), folder).pixels
    except InputError:
        assert not fine
    else:
        assert fine
        assert pixels.dtype == np.float32
        assert pixels.shape == array.shape
        assert ((pixels >= 0) & (pixels <= 1)).all()


# --- folders ----------------------------------------------------------------------------------


def test_folder_of_classes(tmp_path):
    # three classes whose sorted order is not the order of writing
    for i, name in enumerate(["cat/2.png", "ant/x.PNG", "cat/10.png", "bee/deep/er.png"]):
        png(tmp_path, f"all/{name}", BYTES[0] // (i + 1))
    write(tmp_path, "all/cat/notes.txt", b"no image")
    write(tmp_path, "all/cat/._2.png", b"what macOS leaves behind")
    write(tmp_path, "all/.cache/3.png", b"hidden")
    (tmp_path / "all/dog").mkdir()  # a folder without images is no class
    images = read_folder("all", tmp_path)
    # sorted by name: ant/x, bee/deep/er, cat/10, cat/2
    assert_bytes(images, np.stack([BYTES[0] // k for k in (2, 4, 3, 1)]))
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [0, 1, 2, 2]


def test_folder_without_classes(tmp_path):
    png(tmp_path, "b.png", BYTES[1])
    png(tmp_path, "a.png", BYTES[0])
    images = read_folder(".", tmp_path)
    assert_bytes(images, BYTES)
    assert images.labels is None
    # one file beside the folders: they are not classes
    png(tmp_path, "sub/c.png", BYTES[0])
    images = read_folder(str(tmp_path), tmp_path / "elsewhere")
    assert_bytes(images, BYTES[[0, 1, 0]])
    assert images.labels is None


def test_colours_become_grey(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    png(tmp_path, "a.png", colours)
    # ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B; PIL rounds it to a byte
    expected = np.array([0.299, 0.587, 0.114, 1.0])
    found = read_folder(".", tmp_path).pixels[0, 0]
    assert np.abs(found - expected).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "RGB"])
def test_greys_of_any_mode(tmp_path, mode):
    grey = Image.fromarray(np.array([[0, 255, 255], [255, 0, 0]], dtype=np.uint8))
    grey.convert(mode).save(tmp_path / "a.png")
    images = read_folder(".", tmp_path)
    assert images.pixels.tolist() == [[[0, 1, 1], [1, 0, 0]]]


def test_sixteen_bits(tmp_path):
    array = np.array([[0, 255, 256], [32768, 65534, 65535]], dtype=np.uint16)
    png(tmp_path, "a.png", array)
    images = read_folder(".", tmp_path)
    assert np.array_equal(images.pixels[0], (array / 65535).astype(np.float32))


def test_folder_that_is_no_images(tmp_path):
    png(tmp_path, "mixed/a.png", BYTES[0])
    png(tmp_path, "mixed/b.png", BYTES[1])
    png(tmp_path, "mixed/c.png", BYTES[1].T)
    png(tmp_path, "mixed/d.png", BYTES[1][:1])
    write(tmp_path, "text/a.png", b"this is text")
    png(tmp_path, "cut/a.png", np.arange(10_000, dtype=np.uint16).reshape(100, 100) % 251)
    whole = (tmp_path / "cut/a.png").read_bytes()
    write(tmp_path, "cut/a.png", whole[: len(whole) // 2])
    write(tmp_path, "none/a.jpg", b"")
    write(tmp_path, "file", b"")
    for path, message in (
        ("mixed", r"mixed/a.png is 3 x 2 pixels and .*mixed/c.png is 2 x 3; give images of one"),
        ("text", r"text/a.png is not a whole image \("),
        ("cut", r"cut/a.png is not a whole image \("),
        ("none", "none has no PNG files"),
        ("file", "file is a file; give a folder"),
        ("nowhere", "there is no folder .*nowhere"),
    ):
        with pytest.raises(InputError, match=message) as e:
            read_folder(path, tmp_path)
        assert "\n" not in str(e.value)


# --- the hub ----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Makes `load_dataset` give a data set of some columns; returns what it was asked for."""
    asked = []

    def put(columns, features=None):
        rows = datasets.Dataset.from_dict(columns, features=features)

        def load(*args, **kwargs):
            asked.append((args, kwargs))
            return rows

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    return put


def pictures(arrays):
    return [Image.fromarray(array) for array in arrays]


def with_image(feature, label="int64"):
    return datasets.Features({"image": feature, "label": datasets.Value(label)})


def test_hub_images(hub):
    classes = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"image": datasets.Image(), "label": classes})
    asked = hub({"image": pictures(BYTES), "label": [1, 0]}, features)
    images = read_hub("any/set", config="small", split="test")
    assert asked[-1] == (("any/set", "small"), {"split": "test"})
    assert_bytes(images, BYTES)
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [1, 0]
    assert images.source == "any/set"
    assert read_hub("any/set", label=None).labels is None
    assert asked[-1] == (("any/set", None), {"split": "train"})


def test_a_data_set_in_a_folder_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.Value("uint8")})
    rows = datasets.Dataset.from_dict({"img": pictures(BYTES), "fine": [4, 2]}, features=features)
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set/train.parquet")
    images = read_hub(str(tmp_path / "set"), image="img", label="fine")
    assert_bytes(images, BYTES)
    assert images.labels.tolist() == [4, 2]
    with pytest.raises(InputError, match="split 'test', could not be loaded"):
        read_hub(str(tmp_path / "set"), split="test", image="img", label="fine")


@pytest.mark.parametrize(
    "feature",
    [
        datasets.Array2D((2, 3), "uint8"),
        datasets.List(datasets.List(datasets.Value("uint8"))),
        datasets.Array3D((2, 3, 1), "uint8"),
    ],
    ids=["array", "lists", "channel"],
)
def test_hub_arrays_of_bytes(hub, feature):
    array = BYTES[..., None] if isinstance(feature, datasets.Array3D) else BYTES
    hub({"image": array.tolist(), "label": [0, 1]}, with_image(feature))
    assert_bytes(read_hub("any"), BYTES)


def test_hub_arrays_of_floats(hub):
    array = BYTES / 255
    hub({"image": array.tolist(), "label": [0, 1]}, with_image(datasets.Array2D((2, 3), "float32")))
    assert_bytes(read_hub("any"), BYTES)


INT_ROWS = datasets.List(datasets.List(datasets.Value("int64")))


@pytest.mark.parametrize(
    ("columns", "features", "message"),
    [
        (
            {"image": pictures([BYTES[0], BYTES[1].T]), "label": [0, 1]},
            None,
            r"any \(train\), row 1, column 'image' is 3 x 2 pixels and .* row 2, .* is 2 x 3",
        ),
        ({"img": pictures(BYTES), "label": [0, 1]}, None, "no column 'image'.* it has img, label"),
        ({"image": pictures(BYTES), "labels": [0, 1]}, None, "'label'; did you mean 'labels'"),
        ({"image": pictures(BYTES), "label": ["a", "b"]}, None, "row 1.*: is 'a', not an integer"),
        ({"image": pictures(BYTES), "label": [0, None]}, None, "row 2, column 'label': is None,"),
        ({"image": pictures(BYTES), "label": [True, False]}, None, "is True, not an integer"),
        ({"image": pictures(BYTES), "label": [0, -1]}, None, "labels of any go down to -1"),
        (
            {"image": [pictures(BYTES)[0], None], "label": [0, 1]},
            with_image(datasets.Image()),
            r"row 2, column 'image': is no image \(NoneType\)",
        ),
        ({"image": ["a", "b"], "label": [0, 1]}, None, r"row 1.*: is no image \(str\)"),
        ({"image": [[[1, 2], [3]]], "label": [0]}, None, r"row 1.*: is no image \(list\)"),
        ({"image": [[0.5, 1.0]], "label": [0]}, None, r"is an array of shape \(2,\)"),
        ({"image": [[[1, 2]]], "label": [0]}, with_image(INT_ROWS), "holds int64; give uint8 from"),
        ({"image": [[[1.0, 2.0]]], "label": [0]}, None, "row 1.* has values from 1 to 2; pixels"),
        (
            {"image": [{"bytes": b"no PNG", "path": None}], "label": [0]},
            with_image(datasets.Image()),
            r"row 1, column 'image': cannot be decoded \(",
        ),
        ({"image": [], "label": []}, None, r"any \(train\) is empty"),
    ],
)
def test_hub_rows_that_are_no_images(hub, columns, features, message):
    hub(columns, features)
    with pytest.raises(InputError, match=message) as e:
        read_hub("any")
    assert "\n" not in str(e.value)


def test_a_hub_id_without_a_network(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        InputError, match=r"the data set nobody/nothing, split 'train', .* there is a network"
    ):
        read_hub("nobody/nothing")
