"""Where data come from: the built-in digits, .npz files, saved folders, torchvision names, torch Datasets.

A reader takes an origin (a dict fit for JSON) and gives the keywords of `Data`, with notes. Nothing is downloaded.
"""

from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autokd.arrays import Array, stratified
from autokd.errors import DataError, nearest

Read = tuple[dict[str, Any], list[str]]  # keywords of Data, notes
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val", "class_names")
BUILTIN = ("digits",)
FORMS = "or a path to .npz, a saved folder, torchvision:NAME"
DIGITS_SEED = 0  # of the built-in test split, the same for every search


def origin_of(source: str | Path, root: str | Path | None) -> dict[str, Any]:
    """What a name or path means. Raises DataError for names and files there are not."""
    text = str(source)
    if text in BUILTIN:
        return {"kind": "builtin", "name": text}
    if text.startswith("torchvision:"):
        name = text.partition(":")[2]
        if root is None:
            raise DataError(f"{text} needs root=, the folder that holds its files; got none")
        return {"kind": "torchvision", "name": name, "root": str(Path(root).resolve())}
    path = Path(source).expanduser()
    if path.is_dir():
        return {"kind": "folder", "path": str(path.resolve())}
    if path.suffix == ".npz":
        return {"kind": "npz", "path": str(path.resolve())}
    if path.exists() or path.suffix or len(path.parts) > 1:
        state = "is none of them" if path.exists() else "does not exist"
        raise DataError(f"data must be a name, an .npz file or a saved folder, {text} {state}; see Data.load")
    raise DataError(f"unknown data '{text}'; {nearest(text, BUILTIN)}; {FORMS}")


# ---- one reader per kind of origin


def _builtin(origin: Mapping[str, Any]) -> Read:
    """Scikit-learn's 1,797 digits, 8x8, 0..16 stretched to 0..255; a fifth of each class is the test split."""
    if origin["name"] not in BUILTIN:
        raise DataError(f"unknown data '{origin['name']}'; {nearest(origin['name'], BUILTIN)}; {FORMS}")
    from sklearn.datasets import load_digits  # late: 1.4 s

    digits = load_digits()
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)
    y = digits.target.astype(np.int64)
    test = stratified(y, 0.2, DIGITS_SEED)
    arrays = {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}
    return {**arrays, "class_names": [str(digit) for digit in range(10)]}, []


def _npz(origin: Mapping[str, Any]) -> Read:
    path = Path(origin["path"])
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the path of an .npz file with x_train and y_train")
    arrays: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array; write numpy.savez(path, x_train=…, y_train=…)")
            found = list(file.files)
            for key in ("x_train", "y_train"):
                if key not in found:
                    raise DataError(f"{path} must hold '{key}'; {nearest(key, set(found) - set(NPZ_KEYS) or found)}")
            for key in NPZ_KEYS:
                if key in found:
                    arrays[key] = file[key]
    except DataError:
        raise
    except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
        text = str(error).split("\n")[0]
        raise DataError(
            f"{path} must be an .npz file of plain arrays, but: {text}; write it with numpy.savez"
        ) from None
    ignored = sorted(set(found) - set(NPZ_KEYS))
    return arrays, [f"{path.name}: '{key}' is not read; known: {', '.join(NPZ_KEYS)}" for key in ignored]


def _torchvision(origin: Mapping[str, Any]) -> Read:
    name, root = origin["name"], origin["root"]
    try:
        from torchvision import datasets
    except ImportError:
        raise DataError(f"torchvision:{name} needs the package torchvision; pip install torchvision") from None
    known = [n for n in dir(datasets) if inspect.isclass(getattr(datasets, n))]
    if name not in known:
        raise DataError(f"torchvision has no dataset '{name}'; {nearest(name, known)}")
    maker = getattr(datasets, name)
    parameters = inspect.signature(maker).parameters
    choices: tuple[dict[str, Any], dict[str, Any]]
    if "train" in parameters:
        choices = ({"train": True}, {"train": False})
    elif "split" in parameters:
        choices = ({"split": "train"}, {"split": "test"})
    else:
        raise DataError(f"torchvision:{name} has no train and test split; use Data.from_datasets(train, test)")
    offline = {"download": False} if "download" in parameters else {}
    try:
        train, test = (maker(root, **choice, **offline) for choice in choices)
    except (RuntimeError, OSError, ValueError) as error:
        text = str(error).split("\n")[0]
        remedy = f"run torchvision.datasets.{name}({root!r}, download=True) once"
        raise DataError(f"torchvision:{name} must lie under root={root}, but: {text}; {remedy}") from None
    arrays = _whole(train, "train") | _whole(test, "test")
    names = getattr(train, "classes", None)
    return arrays | ({"class_names": list(names)} if isinstance(names, list) else {}), []


def _whole(dataset: Any, split: str) -> dict[str, Any]:
    """Arrays that a torchvision dataset without transforms holds in memory; item by item where it holds none."""
    x: Any = getattr(dataset, "data", None)
    y = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if hasattr(x, "shape") and y is not None and len(x) == len(y):
        return {f"x_{split}": x, f"y_{split}": np.asarray(y)}
    return materialise(dataset, split)


def materialise(dataset: Any, split: str) -> dict[str, Any]:
    """All items of a dataset of (x, y) as two stacked arrays. Raises DataError."""
    items = (dataset[i] for i in range(len(dataset))) if hasattr(dataset, "__len__") else iter(dataset)
    xs: list[Array] = []
    ys: list[Any] = []
    for item in items:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"items of the {split} dataset must be pairs (x, label), got {type(item).__name__}")
        x = np.asarray(item[0])
        if xs and x.shape != xs[0].shape:
            raise DataError(
                f"the {split} dataset must give one shape, got {xs[0].shape} and {x.shape}; resize its images"
            )
        xs.append(x)
        ys.append(item[1].item() if hasattr(item[1], "item") else item[1])
    if not xs:
        raise DataError(f"the {split} dataset must hold at least one item, got none")
    return {f"x_{split}": np.stack(xs), f"y_{split}": np.asarray(ys)}


READERS: dict[str, Callable[[Mapping[str, Any]], Read]] = {
    "builtin": _builtin,
    "npz": _npz,
    "torchvision": _torchvision,
}


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the head that `Data.save` wrote. Raises DataError."""
    try:
        head = json.loads((folder / "data.json").read_text())
        names = [f"{letter}_{split}" for split in ("train", "val", "test") for letter in "xy"]
        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names}
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{folder} must be a folder written by data.save: {error}") from None
    return arrays, head
