"""VM-UNet (arXiv 2402.02491): the network as users call it."""

from collections.abc import Sequence

from torch import Tensor

from ..network import STAGE_OPTIONS, SegmentationNetwork
from ..option_ranges import check_options
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

    name = "vmunet"
    options = (*STAGE_OPTIONS, "depths_decoder", "skip_at_quarter")
    depths_published = (2, 2, 2, 2)
    classifier = ("final_conv.",)

    def __init__(
        self,
        num_classes: int = 1,
        input_channels: int = 3,
        depths: Sequence[int] = depths_published,
        depths_decoder: Sequence[int] = (2, 2, 2, 1),
        drop_path_rate: float = 0.2,
        dims: Sequence[int] | int = (96, 192, 384, 768),
        d_state: int = 16,
        scan_backend: str = "auto",
        use_checkpoint: bool = False,
        skip_at_quarter: bool = False,
    ):
        super().__init__(num_classes, input_channels)
        dims = [dims * 2**i for i in range(4)] if isinstance(dims, int) else dims
        counts: dict = dict(depths=depths, depths_decoder=depths_decoder, dims=dims, d_state=d_state)
        check_options(self.name, 4, **counts, drop_path_rate=drop_path_rate)
        dims = list(dims)
        if [dims[0] * 2**i for i in range(4)] != dims or dims[0] % 4:
            expected = "dims doubling from stage to stage and the first a multiple of 4"
            raise ValueError(f"{self.name}: found dims {dims}, expected {expected}")
        self.vmunet = VSSM(
            num_classes=num_classes,
            input_channels=input_channels,
            depths=list(depths),
            depths_decoder=list(depths_decoder),
            dims=dims,
            d_state=d_state,
            drop_path_rate=drop_path_rate,
            scan_backend=scan_backend,
            use_checkpoint=use_checkpoint,
            skip_at_quarter=skip_at_quarter,
        )

    def logits(self, x: Tensor) -> Tensor:
        return self.vmunet(x)
