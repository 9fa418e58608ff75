"""The plain gradient against closed forms."""

import cases
import pytest
import torch

from robustsigma import Classifier, Gradient, InputXGradient


def test_linear_net_gives_its_weights():
    net = cases.linear()
    result = Gradient()(Classifier(net), cases.images(), cases.labels())
    expected = net[1].weight.detach()[cases.labels()].reshape(4, 3, 8, 8)
    assert torch.equal(result.values, expected)


def test_normalization_divides_the_gradient():
    net = cases.linear()
    result = Gradient()(cases.classifier(net), cases.images(), 1)
    std = torch.tensor([0.5, 0.6, 0.7]).reshape(3, 1, 1)
    torch.testing.assert_close(result.values, (net[1].weight.detach()[1].reshape(3, 8, 8) / std).expand(4, -1, -1, -1))


def test_quadratic_net():
    net, x = cases.quadratic().double(), cases.images(dtype=torch.float64)
    result = InputXGradient()(Classifier(net), x, 2)
    a, b = (p.detach()[2].reshape(3, 8, 8) for p in (net.a, net.b))
    torch.testing.assert_close(result.values, x * (b + a * x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("score", ["prob", "log_prob"])
def test_scores_follow_the_chain_rule(score):
    net, x = cases.linear(gain=1.0).double(), cases.images(dtype=torch.float64)
    result = Gradient(score=score)(Classifier(net), x, 0)
    weight, p = net[1].weight.detach(), net(x).softmax(1).detach()
    of_log = weight[0] - p @ weight
    expected = of_log if score == "log_prob" else p[:, :1] * of_log
    torch.testing.assert_close(result.values.flatten(1), expected, rtol=1e-10, atol=1e-12)
    reported = p[:, 0].log() if score == "log_prob" else p[:, 0]
    torch.testing.assert_close(result.confidence[:, 0, 0], reported)


def test_input_x_gradient_sums_to_the_score_of_a_homogeneous_net():
    net, x = cases.linear(), cases.images()
    net[1].bias.data.zero_()
    result = InputXGradient()(Classifier(net), x, 1)
    torch.testing.assert_close(result.values.flatten(1).sum(1), net(x).detach()[:, 1])


def test_one_pass_each_way_after_the_prediction():
    counter = cases.PassCounter(cases.mlp())
    result = Gradient()(Classifier(counter), cases.images())
    assert (counter.forwards, counter.backwards) == (8, 4)
    assert result.forwards.tolist() == [2] * 4
    assert result.backwards.tolist() == [1] * 4
    assert result.endpoint.equal(cases.images())
    assert not result.drop.any()


def test_bad_settings():
    with pytest.raises(ValueError, match=r"^score: expected"):
        InputXGradient(score="loss")
