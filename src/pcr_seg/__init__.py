"""Semi-supervised semantic segmentation with prototype-based consistency regularization (PCR), and its baselines.

What Python needs of it; each name is imported when it is first used.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcr_seg.checkpoint import load
    from pcr_seg.method import PCR, Consistency, FixMatch, Supervised, UniMatch, UniMatchV2, UnlabeledViews
    from pcr_seg.models.backbones import TimmBackbone
    from pcr_seg.models.deeplab import DeepLab
    from pcr_seg.models.dpt import DPT
    from pcr_seg.models.mlp import MLP
    from pcr_seg.models.output import SegmentorOutput
    from pcr_seg.models.smp import SMP
    from pcr_seg.module import Segmentation
    from pcr_seg.predictor import Prediction, Predictor

HOMES = {
    "load": "checkpoint",
    "PCR": "method", "Consistency": "method", "FixMatch": "method", "Supervised": "method", "UniMatch": "method",
    "UniMatchV2": "method", "UnlabeledViews": "method",
    "DPT": "models.dpt", "DeepLab": "models.deeplab", "MLP": "models.mlp", "SMP": "models.smp",
    "SegmentorOutput": "models.output",
    "TimmBackbone": "models.backbones",
    "Segmentation": "module",
    "Prediction": "predictor", "Predictor": "predictor",
}  # fmt: skip

__all__ = [
    "DPT", "MLP", "PCR", "SMP", "Consistency", "DeepLab", "FixMatch", "Prediction", "Predictor", "Segmentation",
    "SegmentorOutput", "Supervised", "TimmBackbone", "UniMatch", "UniMatchV2", "UnlabeledViews", "load",
]  # fmt: skip

try:
    __version__ = version("pcr-seg")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0"


def __getattr__(name: str) -> object:
    """Import a public name."""
    if name not in HOMES:
        raise AttributeError(f"module 'pcr_seg' has no attribute '{name}'")
    return getattr(importlib.import_module(f"pcr_seg.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
