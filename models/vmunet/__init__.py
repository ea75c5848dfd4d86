from .vmunet import VMUNet

__all__ = ["VMUNet"]
