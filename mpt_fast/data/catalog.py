"""The names data sets are known by, where they are looked for, and how to get them."""

from pathlib import Path

from mpt_fast.data import cifar, digits, folder, idx
from mpt_fast.data.dataset import DataError, Dataset, MissingDataError, TensorSplit

__all__ = ["NAMES", "available", "load", "shape_of"]

NAMES = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "imagefolder")

_SYSTEM = Path("/usr/share/datasets")  # where Debian's dataset-* packages put their files
_DIGITS = tuple(str(i) for i in range(10))
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
# Per channel, of training pixels in [0, 1]; the digits' are computed from their 1433 images.
_STATISTICS = {
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagefolder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_IDX_CLASSES = {"fashion-mnist": _FASHION, "mnist": _DIGITS}
_TORCHVISION = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST"}
_HOW_TO_GET = {
    "fashion-mnist": "apt install dataset-fashion-mnist, or put its four *-ubyte.gz files in a "
    "folder and name it with --data-root",
    "mnist": "put its four *-ubyte.gz files in a folder and name it with --data-root",
    "cifar10": "download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and name its "
    "folder with --data-root",
    "cifar100": "download https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz and name its "
    "folder with --data-root",
    "imagefolder": "name a folder with train/<class>/ and val/<class>/ with --data-root",
}


_SHAPES = {
    "digits": ((1, 8, 8), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}


def shape_of(name: str, image_size: int = 224) -> tuple[tuple[int, int, int], int]:
    """((C, H, W), classes) of a data set without its files; of "imagefolder" as ImageNet's."""
    _check_name(name)
    return _SHAPES.get(name, ((3, image_size, image_size), 1000))


def _places(name: str, root: str | Path | None) -> list[Path]:
    """The folders a data set may lie in: those of `root` if it is given, else the usual ones."""
    if name == "imagefolder":
        return [Path(root)] if root is not None else []
    bases = [Path(root)] if root is not None else [_SYSTEM, Path("data")]
    places = [place for base in bases for place in (base, base / name)]
    if name in _TORCHVISION:
        places += [base / _TORCHVISION[name] / "raw" for base in bases]
    if root is None:  # the system folder itself holds data sets, never files
        places.remove(_SYSTEM)
    return places


def _missing(name: str, places: list[Path]) -> MissingDataError:
    where = ", ".join(str(place) for place in places) or "no folder was given"
    return MissingDataError(f"{name}: not found (looked in {where}); {_HOW_TO_GET[name]}")


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")


def available(name: str, root: str | Path | None = None) -> bool:
    """Whether `load(name, root)` would find files; says nothing about what is in them."""
    _check_name(name)
    places = _places(name, root)
    if name == "digits":
        return True
    if name == "imagefolder":
        return any(folder.find_folders(place) for place in places)
    if name in _IDX_CLASSES:
        return any(len(idx.idx_files(place)) == 4 for place in places)
    return cifar.find_source(name, places) is not None


def load(name: str, root: str | Path | None = None, *, image_size: int = 224) -> Dataset:
    """Load a data set by name.

    Args:
        name: "digits" (scikit-learn's, always there), "fashion-mnist", "mnist" (IDX files, plain or
            .gz), "cifar10", "cifar100" (binary or Python archive, unpacked or .tar.gz) or
            "imagefolder" (train/<class>/ and val/<class>/; decoded as it is used).
        root: folder with the files. None looks in /usr/share/datasets/<name>, ./data and
            ./data/<name>; "imagefolder" needs it.
        image_size: side of the square images of "imagefolder"; the others have their own size.

    Returns:
        A Dataset of uint8 images [N, C, H, W] and int64 labels [N] (lazily decoded: no `images`).

    Raises:
        MissingDataError: no files; says where it looked and how to get them.
        DataError: a file is damaged or not what it should be; names it.
    """
    _check_name(name)
    if image_size < 1:
        raise DataError(f"image_size must be at least 1; got {image_size}")
    if name == "digits":
        return _load_digits()
    places = _places(name, root)
    mean, std = _STATISTICS[name]
    if name == "imagefolder":
        for place in places:
            found = folder.find_folders(place)
            if found is not None:
                lazy_train, lazy_test, classes = folder.load_folders(*found, image_size)
                return Dataset(name, lazy_train, lazy_test, classes, mean, std)
        raise _missing(name, places)
    if name in _IDX_CLASSES:
        train, test = _load_idx(name, places)
        return Dataset(name, train, test, _IDX_CLASSES[name], mean, std)
    source = cifar.find_source(name, places)
    if source is None:
        raise _missing(name, places)
    train, test, classes = cifar.load_source(source)
    return Dataset(name, train, test, classes, mean, std)


def _load_digits() -> Dataset:
    train, test = digits.load_digits_splits()
    pixels = train.images.double() / 255.0
    mean, std = (float(pixels.mean()),), (float(pixels.std(correction=0)),)
    return Dataset("digits", train, test, _DIGITS, mean, std)


def _load_idx(name: str, places: list[Path]) -> tuple[TensorSplit, TensorSplit]:
    for place in places:
        files = idx.idx_files(place)
        if not files:
            continue
        for split in ("train", "test"):
            for kind in ("images", "labels"):
                if (split, kind) not in files:
                    raise MissingDataError(
                        f"{name}: {place} has no {split} {kind} file; {_HOW_TO_GET[name]}"
                    )
        return (
            idx.read_split(files["train", "images"], files["train", "labels"], 10),
            idx.read_split(files["test", "images"], files["test", "labels"], 10),
        )
    raise _missing(name, places)
