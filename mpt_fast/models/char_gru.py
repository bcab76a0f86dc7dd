"""A character-level language model: embedding, one GRU, a readout (RigL, Sec. 4.2)."""

import torch
from torch import Tensor, nn

from mpt_fast.models.layers import check_count


class CharGRU(nn.Module):
    """Bytes to logits of the next byte: int64 [N, T] -> [N, T, vocabulary].

    forward(tokens, state) also returns the GRU's state [1, N, hidden], to go on from. The defaults
    are the paper's: embedding 128, GRU 512, a readout of two layers 256 and 128 with ReLU between
    the state and the vocabulary of 256 bytes.
    """

    def __init__(
        self,
        vocabulary: int = 256,
        embedding: int = 128,
        hidden: int = 512,
        readout: tuple[int, int] = (256, 128),
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(
            check_count("vocabulary", vocabulary), check_count("embedding", embedding)
        )
        self.gru = nn.GRU(embedding, check_count("hidden", hidden), batch_first=True)
        self.readout = nn.Sequential(
            nn.Linear(hidden, readout[0]),
            nn.ReLU(),
            nn.Linear(readout[0], readout[1]),
            nn.ReLU(),
            nn.Linear(readout[1], vocabulary),
        )

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ValueError(
                f"tokens must be int64 [N, T], got {tokens.dtype} {tuple(tokens.shape)}"
            )
        out, state = self.gru(self.embedding(tokens), state)
        return self.readout(out), state
