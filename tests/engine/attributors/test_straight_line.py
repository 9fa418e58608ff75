import cases
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustsigma import IDG, Classifier, CrediblePath, ExpectedGradients, IntegratedGradients, LeftIntegratedGradients
from robustsigma.engine.attributors.baselines import blur
from robustsigma.engine.attributors.path_methods import Line, rectangles
from robustsigma.engine.attributors.published import IDGRepositoryLeftIntegratedGradients


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 16, 1000])
@pytest.mark.parametrize(("count", "points"), [(1, 1), (1, 9), (3, 4), (16, 3), (5, 0)])
def test_rectangles_cover_every_point_once(count, points, chunk):
    at = torch.zeros(count, points)
    last = {}
    for rows, columns in rectangles(at, chunk):
        assert at[rows, columns].numel() <= chunk
        assert columns.start == last.get(rows.start, 0)  # a running state needs the points in order
        last[rows.start] = columns.stop
        at[rows, columns] += 1
    assert torch.equal(at, torch.ones(count, points))


def test_rectangles_fill_the_chunk():
    """16 images of 50 points in chunks of 340 need 3 passes, and get no more."""
    assert len(list(rectangles(torch.zeros(16, 50), 340))) == 3


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("own_start", [False, True])
def test_gradients_are_those_at_the_points(chunk, own_start):
    """On the quadratic network the gradient at p is b + a p, whatever the chunks."""
    net = cases.quadratic().double()
    clf = Classifier(net, chunk_size=chunk)
    x, target = cases.images(3, dtype=torch.float64), cases.labels(3)
    at = torch.rand(3, 5, generator=cases.generator(7), dtype=torch.float64)
    begin = cases.images(15 if own_start else 3, seed=3, dtype=torch.float64).unflatten(0, (3, -1))
    way = x[:, None] - begin
    points = begin + at[..., None, None, None] * way
    shape = (3, 1, *x.shape[1:])
    a, b = net.a[target].detach().reshape(shape), net.b[target].detach().reshape(shape)
    weights = torch.arange(15, dtype=torch.float64).reshape(3, 5)

    def start(rows, columns):
        return begin[rows, columns]

    total, scores = torch.zeros_like(x), torch.zeros_like(at)
    with clf.frozen():
        line = Line(clf, x, begin[:, 0], target, "logit", at[:, 0], at[:, 0], start if own_start else None)
        for block in line.gradients(at):
            expected = (b + a * points)[block.rows, block.columns]
            torch.testing.assert_close(block.gradients, expected)
            total[block.rows] += block.weighted(weights[block.rows, block.columns])
            scores[block.rows, block.columns] = block.scores
        along = line.scores(at)
    torch.testing.assert_close(total, (weights[..., None, None, None] * way * (b + a * points)).sum(1))
    torch.testing.assert_close(scores, (b * points + a * points.square() / 2).flatten(2).sum(2))
    torch.testing.assert_close(along, scores)


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that is made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


METHODS = {
    "IntegratedGradients": lambda steps: IntegratedGradients(steps),
    "LeftIntegratedGradients": lambda steps: LeftIntegratedGradients(steps),
    "IDGRepositoryLeftIntegratedGradients": lambda steps: IDGRepositoryLeftIntegratedGradients(steps),
    "IDG": lambda steps: IDG(steps),
    "ExpectedGradients": lambda steps: ExpectedGradients(steps, cases.images(2, size=16, seed=1)),
    "CrediblePath": lambda steps: CrediblePath(steps, blurs=(0.1,), max_search=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_memory_grows_with_the_chunk_and_not_with_the_points(method):
    x = cases.images(16, size=16)

    def largest(steps, chunk):
        with Largest() as record:
            method(steps)(Classifier(cases.linear(size=16), chunk_size=chunk), x)
        return record.elements

    image = x[0].numel()
    assert largest(200, 64) == 64 * image
    assert largest(200, 16) < 64 * image  # 16 images, or padded for a blur
    assert largest(50, 16) == largest(200, 16)


def test_blur_is_a_gaussian_and_continues_borders():
    x = torch.zeros(1, 2, 21, 21, dtype=torch.float64)
    x[0, 1, 10, 10] = 1
    out = blur(x, 2.0)
    assert not out[0, 0].any()
    assert out.sum().item() == pytest.approx(1)
    at = torch.arange(-6, 7, dtype=torch.float64)
    expected = torch.exp(-(at[:, None].square() + at.square()) / 8)
    torch.testing.assert_close(out[0, 1, 4:17, 4:17], expected / expected.sum())
    constant = torch.full((1, 3, 4, 9), 0.3)
    torch.testing.assert_close(blur(constant, 5.0), constant)
