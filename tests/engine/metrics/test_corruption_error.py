"""The mean corruption error."""

from __future__ import annotations

import pytest

from robustsigma.engine.metrics.corruption_error import corruption_errors, mean_corruption_error

REFERENCE = {"fog": [0.5, 0.7, 0.8], "snow": [0.4, 0.4, 0.4]}


def test_by_hand():
    errors = {"snow": [0.1, 0.2, 0.3], "fog": [0.2, 0.3, 0.5]}
    assert corruption_errors(errors, REFERENCE) == pytest.approx({"fog": 1.0 / 2.0, "snow": 0.6 / 1.2})
    errors["fog"] = [1.0, 1.0, 1.0]
    assert mean_corruption_error(errors, REFERENCE) == pytest.approx((1.5 + 0.5) / 2)


def test_the_reference_has_an_error_of_one():
    assert mean_corruption_error(REFERENCE, REFERENCE) == 1
    assert mean_corruption_error({name: [0, 0, 0] for name in REFERENCE}, REFERENCE) == 0


def test_sums_and_not_ratios_are_averaged_over_severities():
    """Section 4 divides sums: an easy severity does not weigh as much as a hard one."""
    assert mean_corruption_error({"fog": [0.1, 0.8]}, {"fog": [0.2, 0.8]}) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("errors", "reference", "message"),
    [
        ({}, {}, "reference: expected the corruptions"),
        ({"fog": [0.1]}, {"snow": [0.1]}, "reference: expected the corruptions fog, got snow"),
        ({"fog": [0.1]}, {"fog": [0.1, 0.2]}, "reference: expected 1 severities of fog, got 2"),
        ({"fog": [1.1]}, {"fog": [0.1]}, "errors: expected error rates"),
        ({"fog": [float("nan")]}, {"fog": [0.1]}, "errors: expected error rates"),
        ({"fog": []}, {"fog": []}, "errors: expected error rates"),
        ({"fog": [0.1]}, {"fog": [-0.1]}, "reference: expected error rates"),
        ({"fog": [0.1]}, {"fog": [0.0]}, "reference: expected an error above 0 on fog, got 0"),
    ],
)
def test_bad_arguments(errors, reference, message):
    with pytest.raises(ValueError, match=message):
        mean_corruption_error(errors, reference)
