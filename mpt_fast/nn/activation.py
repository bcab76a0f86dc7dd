"""The binary activations as modules."""

from torch import Tensor, nn

from mpt_fast.kernels.binary_activation import binary_activation


class BinaryActivation(nn.Module):
    """+1 where x >= 0, else -1; gradient 2 (1 - abs(x)) inside [-1, 1] and 0 outside."""

    def forward(self, x: Tensor) -> Tensor:
        return binary_activation(x)


class SignActivation(nn.Module):
    """torch.sign, so that 0 stays 0, with BinaryActivation's gradient: biprop's activation.

    Ternary where an input is exactly 0: networks with it run packed only as far as the packer can
    show that no input is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        # binary_activation differs from the sign at 0 only, where both have slope 2
        return binary_activation(x) - (x.detach() == 0).to(x.dtype)
