"""JPEG and PNG files to `uint8 [height, width, 3]`, by Pillow."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.input_spec import InputSpec
from exporters.media_spec import ImageMedia
from models.data.media.reader import MediaError, MediaUnavailable

__all__ = ["ImageReader"]

FORMATS = ("JPEG", "PNG")
WHITE = (255, 255, 255)


class ImageReader:
    """Reads image files as `ImageMedia` says; rows `(n, height, width, 3)` uint8."""

    def __init__(self, spec: InputSpec, media: ImageMedia) -> None:
        try:
            from PIL import Image, ImageOps
        except ImportError as e:
            raise MediaUnavailable("images need Pillow: pip install 'headway[image]'") from e
        self._image, self._ops, self._media = Image, ImageOps, media
        self._height, self._width = spec.shape[1], spec.shape[2]
        resampling = Image.Resampling
        self._resampling = resampling.BICUBIC if media.interpolation == "bicubic" else resampling.BILINEAR

    def read(self, items: Sequence[bytes | str]) -> NDArray[np.uint8]:
        """Decode and resize.

        Raises:
            MediaError: not a JPEG or PNG, damaged, or of more pixels than the model takes.
        """
        rows = np.empty((len(items), self._height, self._width, 3), np.uint8)
        for i, item in enumerate(items):
            rows[i] = np.asarray(self._one(item.encode() if isinstance(item, str) else item, i))
        return rows

    def _one(self, data: bytes, number: int) -> Any:
        try:
            with warnings.catch_warnings():
                # Our own limit comes first, and damaged metadata is no reason to refuse an image.
                warnings.simplefilter("ignore")
                image = self._image.open(io.BytesIO(data), formats=FORMATS)
                width, height = image.size
                if width * height > self._media.max_pixels:
                    raise MediaError(
                        f"image {number} has {width} x {height} pixels; at most {self._media.max_pixels:,} are taken"
                    )
                image.load()
                return self._fitted(self._upright_rgb(image))
        except MediaError:
            raise
        except self._image.UnidentifiedImageError as e:
            raise MediaError(f"image {number} is neither a JPEG nor a PNG file") from e
        except self._image.DecompressionBombError as e:
            raise MediaError(f"image {number} has far too many pixels; at most {self._media.max_pixels:,}") from e
        except Exception as e:  # Pillow's decoders raise whatever a damaged file leads them to
            raise MediaError(f"image {number} is damaged: {e}") from e

    def _upright_rgb(self, image: Any) -> Any:
        image = self._ops.exif_transpose(image)
        if image.mode.startswith(("I", "F")):  # 16 bits a pixel: the upper eight
            return self._image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            ground = self._image.new("RGBA", image.size, (*WHITE, 255))
            return self._image.alpha_composite(ground, image).convert("RGB")
        return image.convert("RGB")

    def _fitted(self, image: Any) -> Any:
        height, width, media = self._height, self._width, self._media
        if media.fit == "stretch":
            return image.resize((width, height), self._resampling)
        if media.fit == "pad":
            return self._ops.pad(image, (width, height), self._resampling, color=WHITE)
        # As torchvision and timm do it: the shorter side to `resize`, then the middle.
        scale = media.resize / min(image.size)
        w, h = (max(media.resize, int(side * scale)) for side in image.size)
        if w * h > media.max_pixels:
            raise MediaError(f"an image of {image.size[0]} x {image.size[1]} pixels is too long for its width")
        image = image.resize((w, h), self._resampling)
        left, top = round((w - width) / 2), round((h - height) / 2)
        return image.crop((left, top, left + width, top + height))
