import dataclasses

import folders
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from robustsigma.data.image_files import area_average
from robustsigma.data.image_folder import ImageFolder
from robustsigma.data.loading import load_batch, load_masks

SPLITS = ("train", "val", "test")


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _twins(root, size=(20, 14), count=10):
    """Write gray images and masks that hold the same pixels."""
    for c, name in enumerate(("ant", "bee")):
        for i in range(count):
            pixels = np.random.default_rng((c, i)).integers(0, 256, size[::-1]).astype(np.uint8)
            _save(root / "images" / name / f"{i}.png", pixels)
            _save(root / "masks" / name / f"{i}.bmp", pixels)
    return ImageFolder(str(root / "images"), size=8, channels=1, masks=str(root / "masks"))


@pytest.mark.parametrize("size", [(20, 14), (14, 20), (8, 8), (5, 6), (31, 8)])
def test_a_mask_goes_through_what_its_image_goes_through(tmp_path, size):
    source = _twins(tmp_path, size)
    for split in SPLITS:
        dataset = source.split(split)
        images, _ = load_batch(dataset, range(len(dataset)))
        masks = load_masks(dataset, range(len(dataset)))
        assert masks.std() > 0.05
        assert (images[:, 0] - masks).abs().max() <= 1.01 / 255  # images are rounded to 8 bits once more


def test_masks_follow_exif(tmp_path):
    dataset = dataclasses.replace(_twins(tmp_path), test_fraction=1).split("test")
    path = tmp_path / "images" / "ant" / "3.png"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        turned = image.transpose(Image.Transpose.ROTATE_90)  # 6 says: show it turned by 90 degrees clockwise
    turned.save(path, exif=exif)
    at = dataset.paths.index(path)
    assert (dataset[at][0][0] - dataset.mask(at)).abs().max() <= 1.01 / 255


def test_an_image_without_a_mask_is_one_that_nobody_marked(tmp_path):
    images = folders.class_folders(tmp_path / "images", 10)
    masks = folders.masks_of(tmp_path / "masks", images)
    source = ImageFolder(str(images), size=14, masks=str(masks))
    empty = 0
    for split in SPLITS:
        dataset = source.split(split)
        for i, path in enumerate(dataset.paths):
            marked = (masks / path.relative_to(images)).is_file()
            assert dataset.mask(i).any() == marked
            empty += not marked
            if marked:  # 20 x 14 is cropped by 3 on each side: columns 3 to 5 are left of the six that were marked
                assert torch.equal(dataset.mask(i), (torch.arange(14) < 3).float().expand(14, 14))
    assert empty == 10


def test_masks_of_a_folder_with_its_own_splits(tmp_path):
    for split in ("train", "test"):
        folders.class_folders(tmp_path / "data" / split, 10)
        folders.masks_of(tmp_path / "data" / "masks" / split, tmp_path / "data" / split)
    source = ImageFolder(str(tmp_path / "data"), size=14, masks=str(tmp_path / "data" / "masks"))
    assert [len(source.split(split)) for split in SPLITS] == [18, 2, 20]
    assert load_masks(source.split("test"), range(20)).flatten(1).any(1).sum() == 10
    (tmp_path / "data" / "masks").rename(tmp_path / "masks")
    inside = ImageFolder(str(tmp_path / "data"), masks=str(tmp_path / "data" / "train"))
    with pytest.raises(ValueError, match="masks: expected a folder that is not among the images, got"):
        inside.split("val")


@pytest.mark.parametrize(
    ("mode", "value"),
    [
        ("1", 1),
        ("L", 255),
        ("RGB", (255, 255, 255)),
        ("RGBA", (255, 255, 255, 255)),
        ("I;16", 65535),
    ],
)
def test_white_is_marked_in_any_mode(tmp_path, mode, value):
    images = folders.class_folders(tmp_path / "images", 10)
    for path in images.rglob("*.png"):
        folders.picture(tmp_path / "masks" / path.relative_to(images), value, mode=mode)
    dataset = ImageFolder(str(images), size=6, masks=str(tmp_path / "masks")).split("val")
    masks = load_masks(dataset, range(len(dataset)))
    assert torch.equal(masks, torch.ones(len(dataset), 6, 6))


@pytest.mark.parametrize(("suffix", "depth", "quality"), [("png", 8, None), ("png", 16, None), ("jpg", 8, 20)])
def test_soft_edges_are_shares(tmp_path, suffix, depth, quality):
    images = folders.class_folders(tmp_path / "images", 10)
    share = np.clip((np.hypot(*np.mgrid[-7:7, -10:10]) - 7) / -3, 0, 1)  # a disk
    for path in images.rglob("*.png"):
        target = (tmp_path / "masks" / path.relative_to(images)).with_suffix(f".{suffix}")
        target.parent.mkdir(parents=True, exist_ok=True)
        values = (share * (2**depth - 1)).round().astype(f"uint{depth}")
        Image.fromarray(values).save(target, **({"quality": quality} if quality else {}))
    source = ImageFolder(str(images), size=14, masks=str(tmp_path / "masks"))
    found = source.split("val").mask(0)
    assert (found - torch.from_numpy(share[:, 3:-3]).float()).abs().max() < (0.3 if quality else 0.003)


def test_a_mask_of_classes_with_a_border_of_white_is_refused(tmp_path):
    images = folders.class_folders(tmp_path / "images", 10)
    classes = np.zeros((14, 20), np.uint8)
    classes[2:12, 3:17], classes[4:10, 5:15] = 255, 7
    for path in images.rglob("*.png"):
        _save(tmp_path / "masks" / path.relative_to(images), classes)
    source = ImageFolder(str(images), size=6, masks=str(tmp_path / "masks"))
    with pytest.raises(ValueError, match=r"masks: expected a gray image .* got numbers such as 0, 7, 255, which"):
        source.split("val").mask(0)


@pytest.mark.parametrize(
    ("mode", "value", "size", "says"),
    [
        ("L", 1, (20, 14), "the numbers 0 and 1 only; 255 is white"),
        ("L", 9, (20, 14), "numbers such as 9, which look like classes; save 0 and 255 for one of them"),
        ("RGB", (200, 200, 200), (20, 14), "numbers such as 200, which look like classes"),
        ("I;16", 26001, (20, 14), "numbers such as 26001, which look like classes; save 0 and 65535 for one of them"),
        ("I;16", 1, (20, 14), "the numbers 0 and 1 only; 65535 is white"),
        ("RGB", (255, 0, 0), (20, 14), "colors"),
        ("RGBA", (255, 255, 255, 9), (20, 14), "transparency"),
        ("L", 255, (14, 20), "14 x 20 pixels instead of 20 x 14"),
        ("L", 255, (40, 28), "40 x 28 pixels instead of 20 x 14"),
        (None, b"no image", None, "cannot identify image file"),
    ],
)
def test_a_mask_that_says_something_else_is_refused(tmp_path, mode, value, size, says):
    images = folders.class_folders(tmp_path / "images", 10)
    masks = folders.masks_of(tmp_path / "masks", images)
    bad = masks / "bee" / "03.png"
    if mode is None:
        bad.write_bytes(value)
    else:
        folders.picture(bad, value, size, mode)
    source = ImageFolder(str(images), size=6, masks=str(masks), skip_broken=True)
    clean = ImageFolder(str(images), size=6)
    for split in SPLITS:
        if images / "bee" / "03.png" in clean.split(split).paths:
            with pytest.raises(ValueError, match=rf"masks: expected a gray image .*bee.03\.png, got .*{says}"):
                folders.read_everything(source.split(split))
        else:
            folders.read_everything(source.split(split))


def test_masks_must_be_of_one_image_each(tmp_path):
    images = folders.class_folders(tmp_path / "images", 10)
    source = ImageFolder(str(images), masks=str(tmp_path / "masks"))
    with pytest.raises(ValueError, match=r"masks: expected an existing folder, got .*masks"):
        source.split("test")
    folders.picture(tmp_path / "masks" / "03.png", 255, mode="L")
    with pytest.raises(ValueError, match=r"masks: expected masks in .*, got 1 masks and none of them an image's"):
        source.split("test")
    folders.masks_of(tmp_path / "masks", images)
    (tmp_path / "masks" / "._03.png").write_bytes(b"\0")
    (tmp_path / "masks" / "03.npy").write_bytes(b"\0")
    with pytest.warns(UserWarning, match=r"1 of 11 masks are of no image, the first is .*03\.png; .*1 \.npy file"):
        source.split("test")
    (tmp_path / "masks" / "03.png").unlink()
    (tmp_path / "masks" / "03.npy").unlink()
    folders.picture(images / "ant" / "02.jpg", 0, mode="L")
    source = ImageFolder(str(images), masks=str(tmp_path / "masks"))
    with pytest.raises(ValueError, match=r"masks: expected one image for the mask .*02\.png, got .*02\.jpg and .*02"):
        source.split("test")
    folders.picture(tmp_path / "masks" / "ant" / "02.gif", 0, mode="L")
    with pytest.raises(ValueError, match=r"masks: expected one mask for an image, got .*02\.gif and .*02\.png"):
        source.split("test")


@pytest.mark.parametrize("shape", [(12, 12), (7, 13), (1, 1), (30, 4), (64, 64)])
@pytest.mark.parametrize("size", [1, 5, 12, 64])
def test_area_average(shape, size):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    # Each old pixel cut into size x size equal ones, of which every new pixel then holds a whole number.
    fine = values.double().repeat_interleave(size, 0).repeat_interleave(size, 1)[None, None]
    expected = F.avg_pool2d(fine, shape)[0, 0]
    got = area_average(values, size)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert torch.allclose(got.mean(), values.double().mean(), rtol=0, atol=1e-12)
    if shape == (size, size):
        assert torch.equal(got, values.double())
