"""Chunks cover the whole, are full, and leave no small one."""

import pytest

from robustsigma.engine.network_pass import split_sizes


@pytest.mark.parametrize("most", [1, 2, 3, 13, 256])
def test_parts_are_full_and_none_is_small(most):
    for count in range(1, 5 * most + 3):
        made = split_sizes(count, most)
        assert sum(made) == count
        assert len(made) == -(-count // most)
        assert max(made) <= most
        assert made[:-2] == [most] * len(made[:-2])
        assert len(made) == 1 or min(made) >= most // 2


def test_what_is_left_over_joins_the_last_full_part():
    assert split_sizes(448, 445) == [224, 224]
    assert split_sizes(896, 256) == [256, 256, 256, 128]
    assert split_sizes(1026, 256) == [256, 256, 256, 129, 129]
