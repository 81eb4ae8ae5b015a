"""Images, texts and sounds into rows: what training and serving both see."""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporters.input_spec import InputSpec, Padding
from exporters.media_spec import AudioMedia, ImageMedia, TextMedia
from models.data.media import MediaError, reader_of
from models.data.media.audio import resampled
from tests import tiny_media

PIL = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
tokenizers = pytest.importorskip("tokenizers")


def images(fit="crop", side=32, resize=40, **media):
    media = ImageMedia(fit=fit, resize=resize, **media)
    spec = InputSpec(datatype="UINT8", shape=(-1, side, side, 3), unit="pixels", modality="image", media=media)
    return reader_of(spec, {})


def encoded(array, form="PNG", **options):
    buffer = io.BytesIO()
    PIL.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


def photo(height=60, width=80, seed=0):
    """A smooth random picture: noise would tell more about filters than about what is done with pictures."""
    rng = np.random.default_rng(seed)
    small = PIL.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(small.resize((width, height), PIL.Resampling.BICUBIC))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_and_cutting_is_what_torch_does(mode):
    array = photo()
    found = images(interpolation=mode).read([encoded(array)])[0]
    x = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float()
    height, width = 40, int(80 * (40 / 60))
    y = torch.nn.functional.interpolate(x, (height, width), mode=mode, antialias=True, align_corners=False)
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    y = y[0, :, top : top + 32, left : left + 32].round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(float) - y).max() <= 2
    assert np.abs(found.astype(float) - y).mean() < 0.5


def test_an_image_is_turned_upright_by_its_orientation():
    array = photo(40, 40)
    exif = PIL.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = images("stretch", 40, 40).read([encoded(array, exif=exif)])[0]
    assert np.array_equal(turned, np.rot90(array, -1))


def test_what_is_transparent_is_white_and_every_mode_becomes_rgb():
    clear = np.zeros((40, 40, 4), np.uint8)
    assert (images().read([encoded(clear)]) == 255).all()
    grey = np.full((40, 40), 77, np.uint8)
    assert (images().read([encoded(grey)]) == 77).all()
    deep = np.full((40, 40), 77 << 8, np.uint16)
    assert (images().read([encoded(deep)]) == 77).all()
    buffer = io.BytesIO()
    PIL.new("CMYK", (40, 40), (0, 0, 0, 0)).save(buffer, "JPEG")
    assert images().read([buffer.getvalue()]).min() > 250


def test_padding_keeps_all_of_an_image():
    row = images("pad", 32, 32).read([encoded(np.zeros((20, 40, 3), np.uint8))])[0]
    assert (row[:8] == 255).all()
    assert (row[8:24] == 0).all()
    assert (row[24:] == 255).all()


def test_what_is_no_image_is_refused_with_its_number():
    good = encoded(photo())
    for bad, words in (
        (b"", "image 1 is neither a JPEG nor a PNG"),
        (b"GIF89a" + bytes(20), "image 1 is neither a JPEG nor a PNG"),
        (good[: len(good) // 2], "image 1 is damaged"),
        (encoded(np.zeros((90, 90, 3), np.uint8)), "image 1 has 90 x 90 pixels; at most 5,000"),
    ):
        with pytest.raises(MediaError, match=words):
            images(max_pixels=5000).read([good, bad])


def test_a_bomb_is_refused_by_its_header_alone():
    """A PNG of 60,000 x 60,000 pixels in a few bytes: nothing of it is decoded."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10)))
    with pytest.raises(MediaError, match="pixels"):
        images().read([bomb])


def test_an_image_that_would_become_huge_is_refused():
    long = encoded(np.zeros((50_000, 1, 3), np.uint8))  # 5 KB, and 200 million pixels once it is 40 wide
    with pytest.raises(MediaError, match="too long for its width"):
        images().read([long])


@given(st.binary(max_size=300), st.integers(0, 200))
def test_damaged_files_never_do_more_than_be_refused(junk, at):
    data = bytearray(encoded(photo(20, 20)))
    data[at : at + len(junk)] = junk
    with contextlib.suppress(MediaError):
        assert images().read([bytes(data)]).shape == (1, 32, 32, 3)


def texts(most=8):
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "soup": 4, "sea": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=64)  # a tokenizer's own habits must not come through
    tokenizer.enable_truncation(3)
    spec = InputSpec(
        datatype="INT64",
        shape=(-1, -1),
        unit="token ids",
        modality="text",
        padding=Padding(axis=1, multiple_of=8, value=0, maximum=most),
        media=TextMedia(max_tokens=most, max_characters=100),
    )
    return reader_of(spec, {"tokenizer.json": tokenizer.to_str().encode()})


def test_texts_become_ids_filled_up_and_cut_off():
    rows = texts().read(["soup sea", b"sea", "soup " * 20])
    assert rows.dtype == np.int64
    assert rows.tolist() == [[2, 4, 5, 3, 0, 0, 0, 0], [2, 5, 3, 0, 0, 0, 0, 0], [2, 4, 4, 4, 4, 4, 4, 3]]


@pytest.mark.parametrize(
    ("bad", "words"),
    [(b"\xff\xfe", "text 0 is not UTF-8"), ("  ", "text 0 is empty"), ("a" * 101, "text 0 has 101 characters")],
)
def test_texts_that_cannot_be_read_are_refused(bad, words):
    with pytest.raises(MediaError, match=words):
        texts().read([bad])


def test_a_damaged_or_missing_tokenizer_is_said():
    spec = InputSpec(
        datatype="INT64", shape=(-1, -1), unit="ids", padding=Padding(axis=1, maximum=8), media=TextMedia(max_tokens=8)
    )
    with pytest.raises(MediaError, match="cannot be read"):
        reader_of(spec, {"tokenizer.json": b"{}"})
    with pytest.raises(MediaError, match="is not there"):
        reader_of(spec, {})


def sounds(seconds=2.0):
    media = AudioMedia(max_seconds=seconds)
    spec = InputSpec(shape=(-1, 800), unit="full scale", sample_rate=8000.0, modality="audio", media=media)
    return reader_of(spec, {})


def test_sounds_are_mixed_down_resampled_and_filled_up():
    rng = np.random.default_rng(0)
    data = tiny_media.sound(500.0, rng, rate=16_000, channels=2)
    row = sounds().read([data])[0]
    assert row.shape == (800,)
    assert row.dtype == np.float32
    power = np.abs(np.fft.rfft(row))
    assert abs(np.argmax(power) * 10 - 500) < 40
    short = io.BytesIO()
    soundfile.write(short, np.full(100, 0.5), 8000, format="WAV")
    row = sounds().read([short.getvalue()])[0]
    assert np.allclose(row[:100], 0.5, atol=1e-3)
    assert not row[100:].any()


def test_resampling_keeps_what_both_rates_hold_and_drops_the_rest():
    t = np.arange(4800) / 48_000
    low, high = np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 20_000 * t)
    wanted = np.sin(2 * np.pi * 440 * np.arange(1600) / 16_000)
    found = resampled((low + high).astype(np.float32), 48_000, 16_000)
    assert np.abs(found - wanted).max() < 1e-3
    assert resampled(low.astype(np.float32), 48_000, 48_000) is not None


FORMS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("RF64", "PCM_24"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def stored(samples, rate=8000, form="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def tone(samples=800, seed=0):
    t = np.arange(samples) / 8000
    return 0.5 * np.sin(2 * np.pi * 440 * t) + np.random.default_rng(seed).normal(0, 0.005, samples)


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_each_format_gives_the_sound_that_was_stored(form, subtype):
    row = sounds().read([stored(tone(), form=form, subtype=subtype)])[0]
    away = np.abs(row[100:700] - tone()[100:700]).max()
    assert away < (0.1 if form == "OGG" else 1e-4), "lossy at the most"


def test_sounds_that_cannot_be_read_are_refused():
    flac, ogg = stored(tone(), form="FLAC"), stored(tone(80_000), form="OGG")
    hole = ogg[: len(ogg) // 2] + bytes(100) + ogg[len(ogg) // 2 + 100 :]
    endless = flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]  # as an encoder that could not go back
    for bad, words in (
        (b"", "sound 0 is not a WAV, FLAC or OGG file"),
        (b"nothing", "sound 0 is not a WAV, FLAC or OGG file"),
        (stored(tone(), form="AIFF"), "sound 0 is not a WAV, FLAC or OGG file"),
        (b"RIFF", "sound 0 is damaged"),
        (flac[: len(flac) // 2], "sound 0 is damaged: Error : flac decoder lost sync"),
        (ogg[:60], "sound 0 is damaged: Supported file format but file is malformed"),
        (hole, r"sound 0 is damaged: [\d,]+ of its 80,000 samples can be read"),
        (endless, "sound 0 does not say how long it is"),
        (stored([]), "sound 0 has no samples"),
        (stored([0.0, np.nan], subtype="FLOAT"), "some that are not finite"),
    ):
        with pytest.raises(MediaError, match=words) as raised:
            sounds(12.0).read([bad])
        assert "0x" not in str(raised.value), "no addresses of the machine"


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_long_sounds_are_refused_by_their_header(form):
    with pytest.raises(MediaError, match=r"sound 1 is 3\.0 s long; at most 2 s are taken"):
        sounds().read([stored(tone()), stored(tone(24_000), form=form)])


def test_a_bomb_of_silence_is_refused_by_its_header():
    """Eight channels of a minute at 192 kHz in 100 KB: 370 MB were they decoded."""
    flac = bytearray(stored(np.zeros((100, 8), np.int16), 192_000, "FLAC"))
    flac[22:26] = (60 * 192_000).to_bytes(4, "big")
    with pytest.raises(MediaError, match="11,520,000 samples in each of 8 channels; at most 24,000,000 in all"):
        sounds(60.0).read([bytes(flac)])


@pytest.mark.parametrize(("form", "subtype"), FORMS)
@given(junk=st.binary(max_size=60), at=st.floats(0, 1), cut=st.floats(0, 1))
def test_damaged_sounds_never_do_more_than_be_refused(form, subtype, junk, at, cut):
    data = bytearray(stored(tone(), form=form, subtype=subtype))
    where = int(at * len(data))
    data[where : where + len(junk)] = junk
    with contextlib.suppress(MediaError):
        row = sounds().read([bytes(data[: int(len(data) * (1 - cut / 2))])])
        assert row.shape == (1, 800)
        assert np.isfinite(row).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"datatype": "FP32", "shape": (-1, 8, 8, 3), "media": ImageMedia(resize=8)},
        {"datatype": "INT64", "shape": (-1, 8), "media": TextMedia(max_tokens=8)},
        {"datatype": "FP32", "shape": (-1, 8), "media": AudioMedia()},
    ],
)
def test_media_and_tensor_must_fit(fields):
    with pytest.raises(ValueError, match="needs an input"):
        InputSpec(unit="x", **fields)
