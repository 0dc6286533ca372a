"""A student as a file that works without autokd: .onnx, .pt2 (torch.export) or .safetensors with .json beside it.

The batch axis stays free, and no file is handed over before its outputs, for batches of 1 and 3, were found equal to
the module's. The checks run on the CPU in float32.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autokd.errors import ExportError, nearest

Array = NDArray[np.float32]
Forward = Callable[[Array], Array]
Metadata = Mapping[str, Any]

TOLERANCE = 1e-4  # largest difference of an output, relative to the largest output where that is above 1
BATCHES = (1, 3)  # 1 finds a batch axis taken for a constant, 3 differs from the 2 rows that were traced
CHATTY = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir", "onnxruntime")


def export_student(
    module: nn.Module, example: Array, path: str | Path, *, metadata: Metadata, overwrite: bool = False
) -> Path:
    """Write `module` in the format named by the suffix of `path`, check the file against the module, return its path.

    `example` (1, *input_shape) float32 fixes the shape of one input. `metadata` (classes, normalisation, recipe, …;
    JSON values) travels inside the file. The module itself is left as it was.
    Raises ExportError; nothing is written then.
    """
    path = Path(path)
    write = _writer(path)
    targets = [path, path.with_suffix(".json")] if path.suffix == ".safetensors" else [path]
    for target in targets:
        if target.exists() and not overwrite:
            raise ExportError(
                f"an export must not replace a file, {target} exists; choose another name or overwrite=True"
            )
    example = _checked_example(example)
    plain = _on_cpu(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder, _quiet():
        draft = Path(folder) / path.name
        forward = write(plain, example, draft, metadata)
        _check(plain, forward, example, path.suffix)
        if path.suffix == ".safetensors":
            draft.with_suffix(".json").write_text(json.dumps(dict(metadata), indent=2) + "\n", encoding="utf-8")
        for target in targets:
            (draft.parent / target.name).replace(target)
    return path


def _writer(path: Path) -> Callable[[nn.Module, Array, Path, Metadata], Forward]:
    if path.suffix not in WRITERS:
        remedy = nearest(path.suffix, WRITERS)
        raise ExportError(f"an export's suffix must name its format, got '{path.name}'; {remedy}")
    return WRITERS[path.suffix]


def _checked_example(example: Array) -> Array:
    example = np.ascontiguousarray(example, dtype=np.float32)
    if example.ndim < 2 or example.shape[0] != 1:
        raise ExportError(f"the example must be one input, (1, *input_shape), got shape {example.shape}; pass x[:1]")
    return example


def _on_cpu(module: nn.Module) -> nn.Module:
    """A float32 copy in eval mode, so that the caller's module is left alone."""
    return copy.deepcopy(module).to(device="cpu", dtype=torch.float32).eval()


# ---- one writer per format: writes the draft, returns what the written file computes


def _write_onnx(module: nn.Module, example: Array, path: Path, metadata: Metadata) -> Forward:
    with _needs("onnx", "onnxscript"):
        import onnx
        import onnxscript  # noqa: F401  torch.onnx asks for it, with a less helpful message
    batch = torch.export.Dim("batch")
    with _explained(".onnx"):
        torch.onnx.export(
            module,
            (_two_rows(example),),
            path,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    for name, text in _texts(metadata).items():
        model.metadata_props.add(key=name, value=text)
    onnx.save(model, path)
    return _onnx_forward(path)


def _onnx_forward(path: Path) -> Forward:
    """By onnxruntime, or where that is not installed, by ONNX's own slow reference."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        reference: Any = ReferenceEvaluator(str(path))
        return lambda x: np.asarray(reference.run(None, {"input": x})[0])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: np.asarray(session.run(None, {"input": x})[0])


def _write_pt2(module: nn.Module, example: Array, path: Path, metadata: Metadata) -> Forward:
    with _explained(".pt2"):
        program = torch.export.export(
            module, (_two_rows(example),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(dict(metadata))})
        loaded = torch.export.load(path).module()
    return lambda x: _numpy(loaded(torch.from_numpy(x)))


def _write_safetensors(module: nn.Module, example: Array, path: Path, metadata: Metadata) -> Forward:
    with _needs("safetensors"):
        from safetensors.torch import load_file, save_file
    # copies, because tensors that share storage are refused
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items()}, path, _texts(metadata)
    )
    loaded = copy.deepcopy(module)
    for tensor in (*loaded.parameters(), *loaded.buffers()):
        tensor.data.zero_()  # whatever the file lacks shows up in the check
    with _explained(".safetensors"):
        loaded.load_state_dict(load_file(path))
    return lambda x: _numpy(loaded(torch.from_numpy(x)))


WRITERS: dict[str, Callable[[nn.Module, Array, Path, Metadata], Forward]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_pt2,
    ".safetensors": _write_safetensors,
}


def _texts(metadata: Metadata) -> dict[str, str]:
    """For formats whose metadata are words only: words as they are, everything else as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


# ---- checking


@torch.no_grad()
def _check(module: nn.Module, forward: Forward, example: Array, suffix: str) -> None:
    """Raise ExportError unless the file computes what the module does, on the example and on random inputs."""
    generator = np.random.default_rng(0)
    noise = [generator.standard_normal((batch, *example.shape[1:]), dtype=np.float32) for batch in BATCHES]
    for x in (example, *noise):
        expected = _numpy(module(torch.from_numpy(x)))
        with _explained(suffix):
            got = forward(x)
        if got.shape != expected.shape:
            raise ExportError(
                f"the {suffix} file must compute what the module does, got shape {got.shape} for {expected.shape}; "
                f"try another format of {', '.join(WRITERS)}"
            )
        worst = float(np.max(np.abs(got - expected), initial=0.0))
        allowed = TOLERANCE * max(1.0, float(np.max(np.abs(expected), initial=0.0)))
        if not worst <= allowed:  # also true for NaN
            raise ExportError(
                f"the {suffix} file must compute what the module does within {allowed:.1e}, they differ by {worst:.3g} "
                f"(batch {len(x)}); try another format of {', '.join(WRITERS)}"
            )


def _numpy(outputs: torch.Tensor) -> Array:
    return np.asarray(outputs.detach().numpy(), dtype=np.float32)


def _two_rows(example: Array) -> torch.Tensor:
    """Tracing with one row would take the batch axis for the constant 1."""
    return torch.from_numpy(np.repeat(example, 2, axis=0))


@contextmanager
def _needs(*packages: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        install = " ".join(packages)
        raise ExportError(f"this export needs {install}, missing: {error.name}; pip install {install}") from error


@contextmanager
def _explained(suffix: str) -> Iterator[None]:
    """What torch and ONNX say about a module they cannot take, as one line."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, KeyError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        others = ", ".join(name for name in WRITERS if name != suffix)
        raise ExportError(f"the module must be traceable for {suffix}, got: {said[:200]}; try {others}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print progress, warn and log; a user sees none of it."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
