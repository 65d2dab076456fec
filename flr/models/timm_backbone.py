"""Any of timm's models as a regressor (https://github.com/huggingface/pytorch-image-models); an optional extra."""

from difflib import get_close_matches

import torch
from torch import Tensor, nn


class TimmBackbone(nn.Module):
    """Map images (B, channels, size, size) to points (B, 2 * points) by a model of timm with a classifier of 2K outputs.

    Args:
        points: K.
        channels: of the input.
        size: Side of the input, pixels; passed to models that are built for one size.
        name: as in ``timm.list_models()``.
        pretrained: whether to start from the weights that timm fetches, trained on pixels of mean 0 and deviation 1,
            which data.pixels=[-1,1] comes near.

    Raises:
        ValueError: timm cannot be imported, knows no such model, or the model does not take this input.
    """

    output = "points"

    def __init__(self, points: int, channels: int, size: int, name: str, pretrained: bool = False) -> None:
        super().__init__()
        try:
            import timm  # type: ignore[import-not-found, unused-ignore]  # the extra may be there or not
        except Exception as error:  # with a torchvision built for another torch, the import raises any kind
            raise ValueError(
                f"model=timm needs the extra flr[timm] and a torchvision built for torch {torch.__version__}: "
                f"pip install 'flr[timm]' ({type(error).__name__}: {error})"
            ) from error
        if not timm.is_model(name):  # nor is it an address: nothing is built from what lies elsewhere
            near = get_close_matches(name, timm.list_models(), n=1)
            raise ValueError(f"timm has no model.name={name}" + (f" (did you mean '{near[0]}'?)" if near else ""))
        try:
            given = timm.get_pretrained_cfg(name)
            sized = {"img_size": size} if given is not None and given.fixed_input_size else {}
            self.net = timm.create_model(
                name, pretrained=pretrained, in_chans=channels, num_classes=2 * points, **sized
            ).eval()
            with torch.no_grad():
                shape = tuple(self.net(torch.zeros(1, channels, size, size)).shape)
        except Exception as error:  # hundreds of models refuse in as many ways
            raise ValueError(
                f"timm's {name} cannot be built for {channels} x {size} x {size} with pretrained={pretrained}; set "
                f"another model.name or data.crop.size ({type(error).__name__}: {error})"
            ) from error
        if shape != (1, 2 * points):
            raise ValueError(f"timm's {name} puts out {shape}, not {(1, 2 * points)}; set another model.name")
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)
