"""CUDA graphs of a function of one tensor, one for each shape and dtype, captured at first use."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
# Each graph keeps the buffers of a whole network.
MOST_GRAPHS = 8


class Captured:
    """`run` on tensors like `example`, as one graph with an input and buffers of its own."""

    def __init__(self, run: Callable[[Tensor], Tensor], example: Tensor) -> None:
        with torch.cuda.device(example.device):
            self._input = example.clone()
            # Kernels compile and weights are laid out here: a capture may not wait for the device.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    run(self._input)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = run(self._input)

    def __call__(self, x: Tensor) -> Tensor:
        with torch.cuda.device(x.device):
            self._input.copy_(x)
            self._graph.replay()
            return self._output.clone()


class Graphs:
    """`run` under graphs; the ones longest unused make room beyond MOST_GRAPHS."""

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        capture: Callable[[Callable[[Tensor], Tensor], Tensor], Callable[[Tensor], Tensor]],
    ) -> None:
        self._run = run
        self._capture = capture
        self._captured: OrderedDict[tuple[object, ...], Callable[[Tensor], Tensor]] = OrderedDict()

    def __call__(self, x: Tensor) -> Tensor:
        key = (tuple(x.shape), x.dtype)
        if key not in self._captured:
            while len(self._captured) >= MOST_GRAPHS:
                self._captured.popitem(last=False)
            self._captured[key] = self._capture(self._run, x)
        self._captured.move_to_end(key)
        return self._captured[key](x)
