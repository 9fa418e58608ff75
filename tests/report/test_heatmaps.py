"""`overlay`: what it draws, where, and what it refuses."""

from __future__ import annotations

import cases
import matplotlib as mpl
import numpy as np
import pytest
import torch
from cases import generator
from PIL import Image
from scipy.ndimage import gaussian_filter

from robustsigma import IntegratedGradients, overlay
from robustsigma.report import panels
from robustsigma.report.heatmaps import _TABLES, color_bar, levels, side_of
from robustsigma.report.panels import Panel, draw_panels

GRAY = torch.full((3, 40, 60), 0.5)


def pixels(*args, **options):
    return np.asarray(overlay(*args, **options), float)


def spot(height=40, width=60, at=(10, 20), value=1.0):
    heat = torch.zeros(height, width)
    heat[at[0] - 2 : at[0] + 3, at[1] - 2 : at[1] + 3] = value
    return heat


def colored(picture):
    return np.ptp(picture, axis=-1) > 12


@pytest.mark.parametrize("value", [1.0, -3.0])
@pytest.mark.parametrize("side", [None, 80, 33])
def test_the_strongest_pixels_are_colored_and_the_others_are_the_image_in_gray(value, side):
    found = pixels(GRAY, spot(value=value), side=side)
    scale = (side or 40) / 40
    assert found.shape == (round(40 * scale), round(60 * scale), 3)
    rows, columns = np.nonzero(colored(found))
    assert abs(rows.mean() / scale - 10) < 1
    assert abs(columns.mean() / scale - 20) < 1
    assert 0 < colored(found).mean() < 0.1
    assert np.allclose(found[-1, -1], 25 + 190 / 2, atol=1)


def test_it_smooths_clips_and_scales_as_its_arguments_say():
    values = torch.randn(3, 40, 60, generator=generator(0), dtype=torch.float64).numpy()
    heat = gaussian_filter(np.abs(values).sum(0), 2.0)
    low, high = np.percentile(heat, (30, 90))
    np.testing.assert_allclose(levels(values, smooth=2, clip=(30, 90)), np.clip((heat - low) / (high - low), 0, 1))
    np.testing.assert_allclose(levels(values), levels(values, smooth=40 / 50, clip=(50, 99.5)))
    signed = gaussian_filter(values.sum(0), 2.0)
    found = levels(values, smooth=2, clip=(0, 100), signed=True)
    assert (np.sign(found) == np.sign(signed)).mean() > 0.99
    assert np.abs(found).max() == 1
    np.testing.assert_array_equal(pixels(GRAY, values), pixels(GRAY, 1e-9 * values))  # each map has its own scale


@pytest.mark.parametrize("shape", [(28, 28), (64, 64), (8, 8)])
def test_smoothing_hides_nothing_of_small_images(shape):
    level = levels(spot(*shape, at=(4, 4))[None].numpy())
    assert level[4, 4] > 0.9
    assert level[-1, -1] == 0


@pytest.mark.parametrize("heat", [torch.zeros(40, 60), torch.ones(40, 60)])
@pytest.mark.parametrize("signed", [False, True])
def test_a_constant_map_has_no_color(heat, signed):
    assert not colored(pixels(GRAY, heat, signed=signed, outline=10)).any()


def test_signs_have_two_colors():
    heat = spot(at=(10, 10)) - spot(at=(30, 40))
    found = pixels(GRAY, heat, signed=True)
    assert found[10, 10, 0] > found[10, 10, 2] + 50
    assert found[30, 40, 2] > found[30, 40, 0] + 50
    with pytest.raises(ValueError, match="signed: expected True or False"):
        overlay(GRAY, heat, signed="no")


def test_the_outline_encloses_the_highest_pixels():
    plain, lined = (pixels(GRAY, spot(), smooth=0, outline=percent) for percent in (None, 100 * 25 / 2400))
    rows, columns = np.nonzero((plain != lined).any(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 13, 17, 23)
    assert (plain == lined)[9:12, 19:22].all()


@pytest.mark.parametrize("name", sorted(_TABLES))
def test_colors_are_those_of_matplotlib(name):
    bar = np.asarray(color_bar(1, 256, colors=name), float)[::-1, 0]
    alpha = np.linspace(0, 1, 256)[:, None] ** 0.85
    expected = (1 - alpha) * 190 + alpha * 255 * np.array(mpl.colormaps[name].colors)
    assert np.abs(bar - expected).max() < 9
    weights = (0.2126, 0.7152, 0.0722)
    assert (np.diff(np.array(mpl.colormaps[name].colors) @ weights) > -1e-3).all()


def test_results_values_and_maps_of_one_image_and_of_a_batch_look_alike():
    classifier, images = cases.classifier(), cases.images(2)
    result = IntegratedGradients(steps=2)(classifier, images, 0)
    whole = pixels(images, result)
    size = images.shape[3]
    assert whole.shape == (size, 2 * size, 3)
    for given in (result.values, result.heatmap(), result.values.numpy()):
        np.testing.assert_array_equal(pixels(images, given), whole)
    for given in (result.values[1], result.heatmap()[1]):
        np.testing.assert_array_equal(pixels(images[1], given), whole[:, size:])
    one = IntegratedGradients(steps=2)(classifier, images[:1], 0)
    np.testing.assert_array_equal(pixels(images[0], one), whole[:, :size])


def test_images_of_bytes_are_drawn_as_their_pixels():
    whole = (255 * cases.images(2)).round().to(torch.uint8)
    heat = torch.rand(2, *whole.shape[2:], generator=torch.Generator().manual_seed(0))
    for image in (whole, whole.numpy()):
        np.testing.assert_array_equal(pixels(image, heat), pixels(whole / 255, heat))


WRONG = {
    "image: expected shape": (GRAY[0], spot(), {}),
    "image: expected pixels in": (3 * GRAY, spot(), {}),
    "image: expected finite": (GRAY * torch.nan, spot(), {}),
    "attribution: expected finite": (GRAY, spot() * torch.nan, {}),
    "attribution: expected values or maps": (GRAY, spot(20, 30), {}),
    "clip: expected two percentiles": (GRAY, spot(), {"clip": 99}),
    "clip: expected a lower": (GRAY, spot(), {"clip": (90, 10)}),
    r"clip\[1\]": (GRAY, spot(), {"clip": (0, 101)}),
    "smooth": (GRAY, spot(), {"smooth": -1}),
    "opacity": (GRAY, spot(), {"opacity": 1.1}),
    "colors: expected one of 'inferno'": (GRAY, spot(), {"colors": "jet"}),
    "outline": (GRAY, spot(), {"outline": 0}),
    "side": (GRAY, spot(), {"side": 0}),
}


@pytest.mark.parametrize("told", WRONG)
def test_errors_name_the_argument(told):
    image, heat, options = WRONG[told]
    with pytest.raises(ValueError, match=told):
        overlay(image, heat, **options)


def test_small_images_are_enlarged_in_whole_pixels():
    assert (side_of((28, 28), 300), side_of((224, 300), 300), side_of((300, 300), 300)) == (308, 448, 300)
    digit = torch.rand(1, 7, 7, generator=generator(0))
    found = pixels(digit, torch.zeros(7, 7), side=28)
    expected = np.kron(25 + 190 * digit[0].numpy(), np.ones((4, 4)))
    np.testing.assert_allclose(found, expected[..., None].repeat(3, -1), atol=1)


@pytest.mark.parametrize("text", ["otter", "Löwe", "кошка", "γάτα", "žralok", "a long name…"])
def test_letters_of_a_panel_are_drawn(text):
    font = panels._font(20, text)
    missing = bytes(font.getmask("\uffff"))
    assert not [char for char in text if char != " " and bytes(font.getmask(char)) == missing]


def test_panels_stand_where_their_text_leaves_room_for_them():
    red, blue = (Image.new("RGB", (50, 40), color) for color in ("red", "blue"))
    rows = [[Panel(red, "a title that is far too long", ("one line", "another"))], [Panel(blue), Panel(blue)]]
    found = np.asarray(draw_panels(rows, ("first", "second\nrow"), (color_bar(5, 40), "strong", "weak")))
    for color, count in (([255, 0, 0], 1), ([0, 0, 255], 2)):
        assert abs((found == color).all(-1).sum() - count * 2000) < 10
    assert found[0].min() == found[-1].min() == found[:, 0].min() == 255
