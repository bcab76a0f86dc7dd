"""What else a user might run a dense network with: printed beside a ratio, never part of it.

PyTorch in bfloat16, torch.compile, ONNX Runtime in fp32 and in static int8 with calibration. Each
is optional: one that is not installed or does not work here is named with its reason.
"""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mpt_fast.measure.baseline import first_line


@dataclass(frozen=True)
class Engine:
    """A dense network on another engine: call it for one forward pass, or read why it cannot."""

    name: str
    run: Callable[[], Any] | None
    reason: str = ""


def engines(model: nn.Module, example: Tensor, *, compiled: bool = True) -> list[Engine]:
    """`model` in eval mode on `example`, float32 [N, C, H, W], once per engine.

    All use torch's number of threads. `compiled=False` leaves torch.compile out, which may take
    a minute to compile.
    """
    plain = copy.deepcopy(model).eval()
    makers: dict[str, Callable[[nn.Module, Tensor], Callable[[], Any]]] = {"torch bf16": _bfloat16}
    if compiled:
        makers["torch.compile"] = _compiled
    makers["ONNX Runtime fp32"] = _onnx_fp32
    makers["ONNX Runtime int8"] = _onnx_int8
    found = []
    for name, make in makers.items():
        try:
            with _quiet():
                run = make(plain, example)
                run()
        except ImportError as error:
            found.append(Engine(name, None, f"not installed ({error.name})"))
        except Exception as error:  # compilers and exporters raise anything
            found.append(Engine(name, None, first_line(error)))
        else:
            found.append(Engine(name, run))
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of exporters and quantisers, which are not the user's to act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _inference(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    def run() -> Tensor:
        with torch.inference_mode():
            return model(example)

    return run


def _channels_last(model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last
    return (
        # torch's stub lacks this overload.
        copy.deepcopy(model).to(memory_format=layout),  # type: ignore[call-overload]
        example.contiguous(memory_format=layout),
    )


def _bfloat16(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    network, images = _channels_last(model, example)
    return _inference(network.to(torch.bfloat16), images.to(torch.bfloat16))


def _compiled(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    network, images = _channels_last(model, example)
    # Of a module torch.compile gives a module, which its stub calls a callable.
    return _inference(torch.compile(network), images)  # type: ignore[arg-type]


def _onnx_fp32(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    return _session(_exported(model, example), example)


def _onnx_int8(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, Any]] = iter(
                [{"x": example[:64].contiguous().numpy()}]
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with TemporaryDirectory() as folder:
        source, ready, target = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        source.write_bytes(_exported(model, example))
        quantization.quant_pre_process(str(source), str(ready))
        # QInt8 activations and weights per channel: what ONNX Runtime recommends for x86 and ARM.
        quantization.quantize_static(str(ready), str(target), Reader(), per_channel=True)
        return _session(target.read_bytes(), example)


def _exported(model: nn.Module, example: Tensor) -> bytes:
    import onnx  # noqa: F401 - the exporter's own error does not say what to install

    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (example,),
        buffer,  # type: ignore[arg-type]  # the older exporter takes files too
        input_names=["x"],
        output_names=["y"],
        dynamo=False,
    )
    return buffer.getvalue()


def _session(network: bytes, example: Tensor) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    images = example.contiguous().numpy()
    return lambda: session.run(None, {"x": images})
