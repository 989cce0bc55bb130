"""Compare the cost of a training step of ViT-S with DPT with that of the paper's ResNet-101 with DeepLab.

python benchmarks/decoders.py [SIDE]    one image of about SIDE pixels, forward and backward, in one process

It measures processor seconds, and the bytes that autograd keeps for the backward pass (each storage once, without
weights). Read the ratios; absolute figures depend on the machine.
"""

import gc
import sys
import time

import torch
from torch import nn

from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.deeplab import DeepLab
from pcr_seg.models.dpt import DPT


def kept_bytes(network: nn.Module, images: torch.Tensor) -> int:
    """Return the bytes of activations that the backward pass of these images needs."""
    weights, kept = {p.untyped_storage().data_ptr() for p in network.parameters()}, {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = network(images)
    del output
    return sum(kept.values())


def measure(network: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """Return the processor seconds of a step, the faster one of two, and the MiB that it keeps for backward."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        network(images).logits.square().mean().backward()
        seconds.append(time.process_time() - start)
    return min(seconds), kept_bytes(network, images) / 2**20


def main(side: int = 518) -> None:
    """Measure the networks one after the other and print their ratios to the paper's network."""
    paper = {"output_stride": 8, "multi_grid": [4, 8, 16], "ceil_mode": True}
    vit, images = "vit_small_patch14_dinov2", torch.randn(1, 3, side // 14 * 14, side // 14 * 14)
    networks = {
        "ResNet-101, DeepLab (the paper's)": lambda: DeepLab(
            TimmBackbone("resnet101s", **paper), 21, pooled_norm=False
        ),
        "ViT-S/14, DPT": lambda: DPT(TimmBackbone(vit), 21),
        "ViT-S/14, DPT, checkpointing": lambda: DPT(TimmBackbone(vit, checkpointing=True), 21),
    }
    first = None
    for name, make in networks.items():
        found = measure(make().train(), images)
        first = first or found
        seconds, mib = (mine / paper for mine, paper in zip(found, first, strict=True))
        print(
            f"{name}: {found[0]:.1f} s, {found[1]:.0f} MiB; {seconds:.2f} of the time, {mib:.2f} of the memory",
            flush=True,
        )
        gc.collect()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
