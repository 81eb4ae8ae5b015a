"""How encoded media (an image file, a text, a sound file) become rows of a bundle's input tensor. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

TOKENIZER = "tokenizer.json"


class ImageMedia(BaseModel):
    """Images: turned upright (EXIF), put on white where transparent, RGB, resized to the tensor's `[height, width, 3]`.

    `crop` scales the shorter side to `resize` and cuts out the middle, `stretch` ignores the proportions, `pad` keeps
    all of the image on white. Normalisation is the graph's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["image"] = "image"
    fit: Literal["crop", "stretch", "pad"] = "crop"
    resize: int = Field(ge=1, description="pixels of the shorter side before the middle is cut out, for `crop`")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    max_pixels: int = Field(50_000_000, ge=1, description="an image of more is refused before it is decoded")


class TextMedia(BaseModel):
    """Texts: token ids by the tokenizer in the bundle's file `tokenizer`; what goes beyond `max_tokens` is cut off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["text"] = "text"
    tokenizer: str = TOKENIZER
    max_tokens: int = Field(ge=2)
    max_characters: int = Field(100_000, ge=1, description="a longer text is refused")


class AudioMedia(BaseModel):
    """Sounds: channels averaged, resampled to the input's rate, cut or filled with silence to the tensor's samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["audio"] = "audio"
    max_seconds: float = Field(60.0, gt=0, description="a longer clip is refused")


Media = Annotated[ImageMedia | TextMedia | AudioMedia, Field(discriminator="kind")]
