"""GPU kernels of an encoder over packed tokens, one text for Metal and CUDA. They know no model."""

from fletcher_kernels.registry import KERNELS

__all__ = ["KERNELS"]
