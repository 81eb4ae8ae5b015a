"""torchvision on the CPU build of torch: its wheel has operators for CUDA only, whose names an import asks for."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "torchvision"
"""Where `make install` puts torchvision and timm: there only tests find them, which declare the operators first."""

OPERATORS = (
    "nms", "qnms", "roi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward", "roi_pool",
    "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "qroi_align", "deform_conv2d",
    "_deform_conv2d_backward",
)  # fmt: skip
_KEPT = []


def prepare() -> bool:
    """Make torchvision importable where it is installed; no model that is tested calls one of the operators."""
    # For as long as it is imported only: processes that a test starts take over the path, but not what is declared.
    apart = str(FOLDER)
    if FOLDER.is_dir():
        sys.path.append(apart)
        importlib.invalidate_caches()
    try:
        return _imported()
    finally:
        if apart in sys.path:
            sys.path.remove(apart)


def _imported() -> bool:
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision
    except RuntimeError:
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(f"{name}(Tensor x) -> Tensor")
        _KEPT.append(library)  # the declarations go with it
        import torchvision  # noqa: F401
    if importlib.util.find_spec("timm") is not None:
        import timm  # noqa: F401
    return True
