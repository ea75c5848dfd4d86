"""VM-UNet as the network of nnU-Net's configuration 2d: planning, patches, augmentation and inference stay nnU-Net's.

    pip install nnunetv2 .                                   # in a clone; nnunetv2 2.8 or later
    export nnUNet_extTrainer=$PWD/integrations/nnunet
    nnUNetv2_train DATASET 2d FOLD -tr nnUNetTrainerVMUNet

nnUNetv2_predict takes the same -tr.
"""

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from vmunet import VMUNet


class nnUNetTrainerVMUNet(nnUNetTrainer):  # noqa: N801, nnU-Net finds trainers by names of this form
    """nnU-Net's trainer with VM-UNet, AdamW at the rate of the recipe `stable`, and the loss on one output."""

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device):
        super().__init__(plans, configuration, fold, dataset_json, device)  # nnU-Net reads the names of the parameters
        self.enable_deep_supervision = False
        self.initial_lr = 5e-4
        self.weight_decay = 0.01

    @staticmethod
    def build_network_architecture(
        plans_manager,
        configuration_manager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """Return the network. Raises ValueError for a configuration of three-dimensional patches."""
        patch = list(configuration_manager.patch_size)
        if len(patch) != 2:
            raise ValueError(f"nnUNetTrainerVMUNet: found patches of {patch} voxels, expected the configuration 2d")
        return VMUNet(num_output_channels, num_input_channels)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """VM-UNet has one output."""
