"""Text as bytes, for character-level models: any file, no vocabulary to build."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mpt_fast.data.dataset import DataError

__all__ = ["TextBatches", "load_text"]


def load_text(path: str | Path, held_out: float = 0.1) -> tuple[Tensor, Tensor]:
    """(training, test): the file's bytes as int64, the last `held_out` of them for the test.

    Raises DataError naming the file if it cannot be read or is too short to split.
    """
    if not 0 < held_out < 1:
        raise DataError(f"held_out must lie in (0, 1), got {held_out!r}")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
    split = len(content) - int(held_out * len(content))
    if not 2 <= split <= len(content) - 2:
        raise DataError(f"{path}: {len(content)} bytes are too few; name a longer text")
    tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    return tokens[:split], tokens[split:]


class TextBatches:
    """Windows of a text: step(t) -> (inputs, targets), int64 [batch_size, length] each.

    Targets are the inputs one byte later. Which windows a step takes depends on (seed, t) only.
    Raises DataError if the text is shorter than length + 1.
    """

    def __init__(self, text: Tensor, batch_size: int, length: int, seed: int = 0) -> None:
        if batch_size < 1 or length < 1:
            raise DataError(f"batch_size and length must be at least 1, got {batch_size}, {length}")
        if len(text) < length + 1:
            raise DataError(f"a text of {len(text)} bytes has no window of {length} + 1")
        self.text, self.batch_size, self.length, self.seed = text, batch_size, length, seed

    def step(self, t: int) -> tuple[Tensor, Tensor]:
        """The batch of step t."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + t)
        starts = torch.randint(len(self.text) - self.length, (self.batch_size,), generator=draw)
        index = starts.unsqueeze(1) + torch.arange(self.length + 1)
        window = self.text[index]
        return window[:, :-1], window[:, 1:]

    def whole(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every window of the text once, in order, without overlap; the rest is left out."""
        windows = (len(self.text) - 1) // self.length
        size = windows * self.length
        inputs = self.text[:size].view(windows, self.length)
        targets = self.text[1 : size + 1].view(windows, self.length)
        yield from zip(inputs.split(self.batch_size), targets.split(self.batch_size), strict=True)
