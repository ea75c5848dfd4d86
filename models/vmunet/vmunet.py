"""VM-UNet (arXiv 2402.02491): the network as users call it."""

from models.network import SegmentationNetwork

from .vmamba import VSSM


class VMUNet(SegmentationNetwork):
    """Vision-Mamba U-Net. The defaults are the released configuration: 27.43 M parameters.

    Args:
        num_classes: channels of the output; 1 for a binary mask
        input_channels: channels of the images; a grey image is repeated to fill them
        depths, depths_decoder: VSS blocks in each encoder and decoder stage, in the order they run
        drop_path_rate: highest rate of stochastic depth
        dims: channels of the four encoder stages, or of the first one, which then double; the decoder mirrors them
        d_state: states of the scan
        scan_backend: see `models.cross_scan.cross_selective_scan`
        use_checkpoint: compute the blocks' activations again in the backward pass instead of keeping them
        skip_at_quarter: also add the skip at a quarter of the image's size (not in the published model)
    """

    def __init__(
        self,
        num_classes=1,
        input_channels=3,
        depths=(2, 2, 2, 2),
        depths_decoder=(2, 2, 2, 1),
        drop_path_rate=0.2,
        dims=(96, 192, 384, 768),
        d_state=16,
        scan_backend="auto",
        use_checkpoint=False,
        skip_at_quarter=False,
    ):
        super().__init__(num_classes, input_channels)
        dims = [dims * 2**i for i in range(4)] if isinstance(dims, int) else list(dims)
        if len(depths) != 4 or len(depths_decoder) != 4 or [dims[0] * 2**i for i in range(4)] != dims or dims[0] % 4:
            raise ValueError(
                f"VMUNet: found depths {list(depths)}, depths_decoder {list(depths_decoder)}, dims {dims}; "
                "expected four of each, dims doubling from stage to stage and the first a multiple of 4"
            )
        self.vmunet = VSSM(
            num_classes, input_channels, list(depths), list(depths_decoder), dims, d_state, drop_path_rate,
            scan_backend, use_checkpoint, skip_at_quarter,
        )  # fmt: skip

    def logits(self, x):
        return self.vmunet(x)
