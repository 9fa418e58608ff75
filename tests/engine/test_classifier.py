"""Classifier: normalization, scores, gradients, chunking, memory and `frozen()`."""

from __future__ import annotations

import copy
import pickle
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cases
import pytest
import torch
from torch import nn

import robustsigma
from robustsigma import FGSM, PGD, Classifier
from robustsigma.engine.scores import SCORES, target_score

CONTEXTS = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
NETS = {
    "linear": cases.linear,
    "quadratic": cases.quadratic,
    "mlp": cases.mlp,
    "cnn": cases.cnn_bn_dropout,
}


class Recorder(nn.Module):
    """Keeps what it was given, answers as a linear net."""

    def __init__(self, wrap=lambda logits: logits):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        self.seen = x
        return self.wrap(x.flatten(1)[:, :3])


def test_normalization():
    net, x = Recorder(), cases.images()
    Classifier(net, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))(x)
    for channel, (mean, std) in enumerate([(0.5, 0.5), (0.4, 0.6), (0.3, 0.7)]):
        assert torch.allclose(net.seen[:, channel], (x[:, channel] - mean) / std)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_number_stands_for_every_channel(channels):
    net, x = Recorder(), cases.images(channels=channels)
    Classifier(net, mean=(0.5,), std=(0.25,))(x)
    assert torch.allclose(net.seen, (x - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mean": ()}, "mean: expected finite numbers"),
        ({"mean": (float("nan"),)}, "mean: expected finite numbers"),
        ({"std": (0.0,)}, "std: expected positive numbers"),
        ({"std": (1.0, -1.0, 1.0)}, "std: expected positive numbers"),
        ({"std": (float("inf"),)}, "std: expected positive numbers"),
        ({"chunk_size": 0}, "chunk_size: expected an integer of at least 1, got 0"),
        ({"chunk_size": 2.5}, "chunk_size: expected an integer"),
        ({"net": torch.relu}, "net: expected a torch.nn.Module"),
        ({"gradient_dtype": "int8"}, "gradient_dtype: expected bfloat16, float16, tf32 or None, got 'int8'"),
        ({"gradient_dtype": torch.float64}, "gradient_dtype: expected .*, got torch.float64"),
    ],
)
def test_bad_constructor_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**{"net": cases.linear(), **kwargs})


class TakesBatches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = cases.linear()

    def forward(self, batch):
        return self.backbone(batch["image"])


def test_a_network_of_whole_batches_names_its_parts():
    with pytest.raises(ValueError, match=r"net: expected .* TakesBatches, which raised .*its parts 'backbone'$"):
        Classifier(TakesBatches())(cases.images())


def test_channel_mismatch_names_the_statistic():
    with pytest.raises(ValueError, match="mean: expected 1 or 4 numbers, one per channel of the images, got 3"):
        cases.classifier()(cases.images(channels=4))


@pytest.mark.parametrize(
    ("wrap", "got"),
    [
        (lambda z: z[0], r"shape \(3,\)"),
        (lambda z: z[:, :1], r"K >= 2, got shape \(4, 1\); wrap .*: torch.cat\(\[torch.zeros_like\(z\), z\], 1\)"),
        (lambda z: z[:, 0], r"shape \(4,\); wrap .*: torch.stack\(\[torch.zeros_like\(z\), z\], 1\)"),
        (lambda z: z[:2], r"shape \(2, 3\)"),
        (lambda z: z[..., None], r"shape \(4, 3, 1\)"),
        (lambda z: (z[0], z), r"tuple of length 2; wrap .*, such as net\(images\)\[1\]"),
        (lambda z: {"aux": z, "logits": z}, r"dict of keys \['aux', 'logits'\]; wrap .* net\(images\)\['logits'\]"),
        (lambda z: {}, r"dict of keys \[\]$"),
        (lambda z: None, "NoneType"),
    ],
)
def test_wrong_outputs(wrap, got):
    with pytest.raises(ValueError, match=f"net: expected logits.*{got}"):
        Classifier(Recorder(wrap))(cases.images())


def test_output_with_logits_attribute():
    x = cases.images()
    hugging_face = Classifier(Recorder(lambda z: SimpleNamespace(logits=z, loss=None)))
    assert torch.equal(hugging_face(x), Classifier(Recorder())(x))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 7, 100, None])
def test_chunking_equals_the_whole_batch(name, chunk_size):
    counter = cases.PassCounter(NETS[name]().double())
    x, y = cases.images(7, dtype=torch.float64), cases.labels(7)
    clf = cases.classifier(counter, chunk_size=chunk_size)
    whole = cases.classifier(NETS[name]().double(), chunk_size=7)
    with clf.frozen(), whole.frozen():
        assert torch.allclose(clf.logits(x), whole.logits(x), rtol=1e-12)
        assert counter.largest <= (chunk_size or 7)
        for ours, theirs in zip(clf.score_and_gradient(x, y), whole.score_and_gradient(x, y), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12)
        for ours, theirs in zip(clf.loss_gradient(x, y), whole.loss_gradient(x, y), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12)
    assert counter.forwards == 21
    assert counter.backwards == 14


def test_automatic_chunk_shrinks_with_the_image():
    clf = cases.classifier()
    sizes = [clf.chunk_size_for(torch.empty(1, 4, side, side)) for side in (32, 64, 512)]
    assert sizes[0] == 4 * sizes[1] == 256 * sizes[2] > 256
    assert clf.chunk_size_for(torch.empty(1, 3, 4096, 4096)) == 1


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", NETS)
def test_gradients_equal_autograd(name, score):
    net = NETS[name]().double()
    clf = cases.classifier(net)
    x, y = cases.images(5, dtype=torch.float64), cases.labels(5)
    with clf.frozen():
        logits, gradient = clf.score_and_gradient(x, y, score)
        _, loss_gradient = clf.loss_gradient(x, y)
        value = clf.score(x, y, score)
    net.eval()
    at = x.clone().requires_grad_()
    z = net((at - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[:, None, None])
    wanted = {"logit": z, "log_prob": z.log_softmax(1), "prob": z.softmax(1)}[score].gather(1, y[:, None])[:, 0]
    (direct,) = torch.autograd.grad(wanted.sum(), at, retain_graph=True)
    (loss,) = torch.autograd.grad(nn.functional.cross_entropy(z, y, reduction="sum"), at)
    assert torch.allclose(logits, z, rtol=1e-6)
    assert torch.allclose(value, wanted, rtol=1e-6)
    assert torch.allclose(gradient, direct, rtol=1e-5, atol=1e-7 * direct.abs().max().item())
    assert torch.allclose(loss_gradient, loss, rtol=1e-5, atol=1e-7 * loss.abs().max().item())


def test_linear_gradient_is_the_weight():
    net = cases.linear().double()
    clf, x = Classifier(net), cases.images(3, dtype=torch.float64)
    with clf.frozen():
        _, gradient = clf.score_and_gradient(x, torch.tensor([2, 0, 1]))
    assert torch.equal(gradient.flatten(1), net[1].weight.detach()[[2, 0, 1]])


def test_quadratic_gradient_in_closed_form():
    net = cases.quadratic().double()
    clf, x = Classifier(net), cases.images(3, dtype=torch.float64)
    with clf.frozen():
        _, gradient = clf.score_and_gradient(x, torch.tensor([2, 0, 1]))
    rows = [2, 0, 1]
    assert torch.allclose(gradient.flatten(1), (net.b[rows] + net.a[rows] * x.flatten(1)).detach())


@pytest.mark.parametrize("classes", [2, 3, 50])
@pytest.mark.parametrize("margin", [0.0, 1.0, 15.0, 20.0, 40.0, 80.0, -40.0, -80.0])
def test_scores_keep_their_digits_at_saturation(classes, margin):
    logits = torch.zeros(1, classes)
    logits[0, 0] = margin
    wide, target = logits.double(), torch.tensor([0])
    others = torch.tensor(classes - 1.0).double().log()
    exact = -torch.nn.functional.softplus(others - margin)  # log p, to the last digit
    assert target_score(logits, target, "log_prob").double().item() == pytest.approx(exact.item(), rel=1e-5)
    assert target_score(logits, target, "prob").double().item() == pytest.approx(exact.exp().item(), rel=1e-5)
    assert target_score(logits, target, "logit").item() == margin
    assert target_score(wide, target, "log_prob").item() == pytest.approx(exact.item(), rel=1e-12)


def test_scores_of_infinite_logits():
    """A class masked by -inf has probability 0, and does not spoil the others."""
    logits = torch.tensor([[0.0, -torch.inf, 0.0]]).expand(2, -1)
    assert target_score(logits, torch.tensor([0, 1]), "prob").tolist() == [0.5, 0.0]


def test_unknown_score():
    with pytest.raises(ValueError, match="score: expected one of 'logit', 'log_prob', 'prob', got 'loss'"):
        target_score(torch.zeros(1, 2), torch.tensor([0]), "loss")


def test_half_precision_net_is_scored_in_single_precision():
    clf = cases.classifier(cases.mlp().bfloat16())
    x, y = cases.images(), cases.labels()
    with clf.frozen():
        assert clf.logits(x).dtype == torch.float32
        logits, gradient = clf.score_and_gradient(x, y)
        assert (logits.dtype, gradient.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_other_precision(dtype):
    clf, x, y = cases.classifier(), cases.images(), cases.labels()
    with clf.frozen():
        logits, gradient = clf.score_and_gradient(x.to(dtype), y)
        assert logits.dtype == torch.float32
        assert gradient.dtype == dtype
        assert torch.allclose(logits, clf.logits(x.to(dtype).float()))


def test_what_rounding_left_outside_is_clamped():
    clf, x = cases.classifier(), cases.images()
    x[0, 0, 0, :2] = torch.tensor([1 + 1e-6, -1e-6])
    with clf.frozen():
        admitted = clf.prepare_input(x)
    assert torch.equal(admitted, x.clamp(0, 1))


def test_channels_last():
    clf, x, y = cases.classifier(cases.cnn_bn_dropout()), cases.images(), cases.labels()
    with clf.frozen():
        plain = clf.score_and_gradient(x, y)
        last = clf.score_and_gradient(x.to(memory_format=torch.channels_last), y)
    for a, b in zip(plain, last, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradient_dtype_casts_gradient_passes_alone():
    x, y = cases.images(), cases.labels()
    exact, cast = cases.classifier(), cases.classifier(gradient_dtype=torch.bfloat16)
    with exact.frozen(), cast.frozen():
        assert torch.equal(exact.logits(x), cast.logits(x))
        wanted, got = exact.score_and_gradient(x, y)[1], cast.score_and_gradient(x, y)[1]
    assert got.dtype == torch.float32
    assert not torch.equal(got, wanted)
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_dtype_by_its_name(dtype):
    assert cases.classifier(gradient_dtype=str(dtype).removeprefix("torch.")).gradient_dtype == dtype


def test_gradient_dtype_takes_float64_images():
    clf = cases.classifier(gradient_dtype=torch.bfloat16)
    with clf.frozen():
        assert clf.loss_gradient(cases.images(dtype=torch.float64), cases.labels())[1].dtype == torch.float64


@pytest.mark.parametrize("requires_grad", [True, False])
def test_constant_net_has_zero_gradients(requires_grad):
    clf = cases.classifier(cases.constant().requires_grad_(requires_grad))
    x, y = cases.images(), cases.labels()
    with clf.frozen():
        for logits, gradient in (clf.score_and_gradient(x, y), clf.loss_gradient(x, y)):
            assert torch.equal(gradient, torch.zeros_like(x))
            assert logits.tolist() == [[1, 0, -1]] * 4


def test_net_without_parameters():
    clf, x = Classifier(Recorder()), cases.images()
    with clf.frozen():
        assert torch.equal(clf.logits(x), x.flatten(1)[:, :3])


# frozen()


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("raises", [False, True])
def test_frozen_leaves_everything_as_it_was(context, raises):
    net = cases.cnn_bn_dropout()
    clf = cases.classifier(net)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = cases.state_of(clf)
    with CONTEXTS[context](), pytest.raises(RuntimeError, match="inside") if raises else nullcontext(), clf.frozen():
        assert not any(module.training for module in clf.modules())
        assert not any(parameter.requires_grad for parameter in clf.parameters())
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        x = cases.images()
        clf.logits(x)
        clf.score_and_gradient(x, cases.labels())
        clf.loss_gradient(x, cases.labels())
        if raises:
            raise RuntimeError("inside")
    assert cases.state_of(clf) == before
    assert before["modes"]["net"]
    assert not before["modes"]["net.4"]
    assert not before["flags"]["net.4.0.weight"]


@pytest.mark.parametrize("context", CONTEXTS)
def test_any_context_gives_the_same_numbers(context):
    clf, x, y = cases.classifier(cases.cnn_bn_dropout()), cases.images(), cases.labels()
    with clf.frozen():
        wanted = (clf.logits(x), *clf.score_and_gradient(x, y, "prob"), clf.score(x, y))
    with CONTEXTS[context](), clf.frozen():
        got = (clf.logits(x), *clf.score_and_gradient(x, y, "prob"), clf.score(x, y))
    for a, b in zip(wanted, got, strict=True):
        assert torch.equal(a, b)
        assert not b.is_inference()
        assert not b.requires_grad


def test_frozen_can_be_nested():
    clf = cases.classifier(cases.cnn_bn_dropout())
    before = cases.state_of(clf)
    with clf.frozen():
        with clf.frozen():
            pass
        assert not clf.net.training
    assert cases.state_of(clf) == before


def test_a_graph_built_before_survives():
    """Inside a training step, between forward and backward."""
    clf, x = cases.classifier(), cases.images()
    loss = clf(x).square().sum()
    with clf.frozen():
        clf.loss_gradient(x, cases.labels())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in clf.parameters())


# Memory


@pytest.mark.parametrize(("largest", "failures"), [(8, 0), (4, 1), (3, 2), (2, 2), (1, 3)])
def test_halves_until_the_pass_fits(largest, failures):
    net = cases.OutOfMemory(cases.mlp(), largest)
    clf, x, y = cases.classifier(net), cases.images(8), cases.labels(8)
    with clf.frozen():
        got = clf.logits(x)
        assert net.failures == failures
        _, gradient = clf.score_and_gradient(x, y)
    whole = cases.classifier()
    with whole.frozen():
        assert torch.allclose(got, whole.logits(x), atol=1e-6)
        assert torch.allclose(gradient, whole.score_and_gradient(x, y)[1], atol=1e-6)


def test_what_did_not_fit_is_not_tried_again_in_the_same_call():
    net = cases.OutOfMemory(cases.mlp(), 2)
    clf, x = cases.classifier(net, chunk_size=8), cases.images(8)
    whole = PGD(steps=20)(cases.classifier(), x, cases.labels(8), seed=1)
    for failures in (2, 4):  # the next call may find more room
        torch.testing.assert_close(PGD(steps=20)(clf, x, cases.labels(8), seed=1), whole)
        assert net.failures == failures
    with clf.frozen():
        with clf.frozen():
            clf.logits(x)
        assert clf.chunk_size_for(x) == 2
        assert clf.chunk_size_for(x[..., :4, :4]) > 2
    assert clf.chunk_size_for(x) == 8


def test_single_images_that_do_not_fit_raise():
    clf = cases.classifier(cases.OutOfMemory(cases.mlp(), 0))
    with clf.frozen(), pytest.raises(torch.OutOfMemoryError):
        clf.logits(cases.images())


# Labels


def test_check_target_knows_the_classes():
    counter = cases.PassCounter(cases.mlp())
    clf, x = cases.classifier(counter), cases.images()
    with clf.frozen():
        clf.check_target(torch.tensor([0, 2]), x)
        clf.check_target(torch.tensor([0, 2]), x)
        assert counter.forwards == len(x)
        with pytest.raises(ValueError, match=r"labels: expected class indices in \[0, 2\], got \[0, 3\]"):
            clf.check_target(torch.tensor([0, 3]), x, "labels")
        with pytest.raises(ValueError, match=r"\[-1, 0\]"):
            clf.check_target(torch.tensor([0, -1]), x)
        clf.net = cases.mlp(classes=5)  # a new head
        clf.check_target(torch.tensor([4]), x)


# Copies


def test_pickle_and_deepcopy():
    clf, x = cases.classifier(cases.cnn_bn_dropout(), chunk_size=3), cases.images()
    with clf.frozen():
        wanted = clf.logits(x)
    for copied in (pickle.loads(pickle.dumps(clf)), copy.deepcopy(clf)):
        assert copied.chunk_size == 3
        with copied.frozen():
            assert torch.equal(copied.logits(x), wanted)


def test_statistics_are_saved_with_the_weights():
    assert {"mean", "std"} <= set(cases.classifier().state_dict())


@pytest.mark.gpu
def test_statistics_follow_the_net_to_its_device():
    clf = cases.classifier(cases.mlp().cuda())
    with clf.frozen():
        assert clf.logits(cases.images().cuda()).is_cuda


def test_several_gradients_of_one_forward_pass():
    counter = cases.PassCounter(cases.mlp().double())
    clf, x = cases.classifier(counter, chunk_size=3), cases.images(5, dtype=torch.float64)
    first, second = (lambda z, at: z.gather(1, at[:, None]).sum()), (lambda z, at: z.square().sum())
    with clf.frozen():
        logits, *both = clf.gradients_of((first, second), x, cases.labels(5))
        assert (counter.forwards, counter.backwards) == (5, 10)
        for objective, found in zip((first, second), both, strict=True):
            expected = clf.gradient_of(objective, x, cases.labels(5))
            torch.testing.assert_close((logits, found), expected)


@pytest.mark.unsound_networks
def test_what_was_seen_of_another_network_is_forgotten():
    """The message about probabilities can be followed, and class indices are those of the network that is there."""
    layers = cases.linear()
    clf = Classifier(nn.Sequential(layers, nn.Softmax(1)))
    with pytest.warns(UserWarning, match=r"^net: .*returns probabilities"):
        FGSM()(clf, cases.images(), cases.labels(), seed=0)
    clf.net = layers
    FGSM()(clf, cases.images(), cases.labels(), seed=0)
    clf.net = cases.linear(classes=2)
    with pytest.raises(ValueError, match=r"^labels: expected"):
        FGSM()(clf, cases.images(), 2, seed=0)


def test_a_network_that_is_cast_after_its_first_pass_gets_images_of_its_new_dtype():
    clf = cases.classifier(cases.cnn_bn_dropout().double())
    images = cases.images(2)
    with clf.frozen():
        before = clf.logits(images)
    clf.net.float()  # in place: its parameters are the same objects
    with clf.frozen():
        after = clf.logits(images)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after.double(), before.double(), rtol=1e-4, atol=1e-5)


def test_passes_are_counted_whoever_makes_them():
    clf, x = cases.classifier(), cases.images().requires_grad_()
    torch.autograd.grad(clf(x).sum(), x)
    assert (clf.forwards, clf.backwards) == (0, 0)
    with clf.frozen():
        logits = clf(x)
        for _ in range(2):
            torch.autograd.grad(logits.sum(), x, retain_graph=True)
        clf.gradients_of(
            [lambda z, _: z.sum(), lambda z, y: z.gather(1, y[:, None]).sum()], x, torch.tensor([0, 1, 2, 0])
        )
    assert (clf.forwards, clf.backwards) == (2 * len(x), 4 * len(x))


def test_a_batch_takes_a_short_way_through_the_package():
    classifier, images, labels = cases.classifier(cases.cnn_bn_dropout()), cases.images(), cases.labels()
    package = str(Path(robustsigma.__file__).parent)
    attack, seeds, calls = FGSM(8 / 255), torch.arange(len(images)), []

    def record(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            calls.append(frame.f_code.co_filename)

    attack(classifier, images, labels, seed=seeds)  # the first batch also inspects the network
    before = sys.getprofile()
    sys.setprofile(record)
    try:
        attack(classifier, images, labels, seed=seeds)
    finally:
        sys.setprofile(before)
    assert 20 < len(calls) <= 60
    assert len(set(calls)) <= 8


def test_gradients_are_averaged_over_passes():
    class Cycle(nn.Module):  # scales its logits by 1, 2, 3, ...
        passes = 0

        def forward(self, x):
            self.passes += 1
            return self.passes * x.flatten(1)[:, :3]

    classifier, images = Classifier(Cycle()), cases.images()
    with classifier.frozen():
        logits, gradient = classifier.gradient_of(lambda z, _: z[:, 0], images, torch.zeros(len(images)), passes=3)
    expected = torch.zeros_like(images).flatten(1)
    expected[:, 0] = (1 + 2 + 3) / 3
    assert torch.equal(gradient.flatten(1), expected)
    assert torch.equal(logits, 3 * images.flatten(1)[:, :3])
    assert (classifier.forwards, classifier.backwards) == (3 * len(images), 3 * len(images))
