"""Labels of SIGMA samples, BatchNorm in mixed batches, and ramps."""

import copy
import math
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from trainers import quiet_trainer

from robustsigma import FGSM, NFGSM, PGD, Classifier, GaussianNoise, Mixture, Sigma, SigmaSample
from robustsigma.data import Baggage
from robustsigma.lightning import LitClassifier, Ramp, RobustDataModule, SampleLabels
from robustsigma.lightning.batch_norm import AuxiliaryNorms, split_forward
from robustsigma.models import SmallCNN

SOURCE = Baggage(size=16, train=40, val=4, test=4)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Labels

LOGITS, LABELS = 3 * drawn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
SAMPLED = torch.tensor([True, False, True, False, False, False])


def _targets(spread):
    return torch.stack([(1 - s) * F.one_hot(y, 4) + s / 4 for s, y in zip(spread, LABELS, strict=True)])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, None),
        ({"weight": 0.5}, None),
        ({"labels": "smoothed", "smoothing": 0.7}, 0.7),
        ({"labels": "smoothed", "smoothing": 0.3, "weight": 2.0}, 0.3),
        ({"labels": "uniform", "weight": 0.5}, 1.0),
    ],
)
def test_the_loss_is_the_weighted_cross_entropy_with_soft_labels(options, own, smoothing):
    rule = SampleLabels(**options)
    spread = [own if s and own is not None else smoothing for s in SAMPLED.tolist()]
    losses = -(_targets(spread) * LOGITS.softmax(1).log()).sum(1)
    weights = torch.where(SAMPLED, rule.weight, 1.0)
    assert torch.allclose(rule.loss(LOGITS, LABELS, SAMPLED, smoothing), (weights * losses).mean(), atol=1e-6)


@pytest.mark.parametrize("rule", [SampleLabels(), SampleLabels("uniform", weight=0.5)])
def test_the_loss_of_no_images_is_zero_and_so_is_its_gradient(rule):
    logits = LOGITS.clone().requires_grad_(True)
    loss = rule.loss(logits[:0], LABELS[:0], SAMPLED[:0], 0.1)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_weight_zero_leaves_samples_out_and_uniform_labels_ask_for_no_confidence():
    logits = LOGITS.clone().requires_grad_(True)
    SampleLabels(weight=0.0).loss(logits, LABELS, SAMPLED).backward()
    assert (logits.grad[SAMPLED] == 0).all()
    assert (logits.grad[~SAMPLED] != 0).any(1).all()
    flat = torch.zeros(6, 4, requires_grad=True)
    SampleLabels("uniform").loss(flat, LABELS, SAMPLED).backward()
    assert (flat.grad[SAMPLED].abs() < 1e-7).all()


@pytest.mark.third_party_rng  # weights
def test_training_uses_the_labels_for_samples_alone():
    """With weight 0 and every image a sample nothing is learned; with half of them samples, something is."""
    walk = SigmaSample(Sigma(alpha=0.1, beta=0.1, objective="logit", paths=1, max_steps=3))
    for perturbation, moves in ((walk, False), (Mixture({walk: 0.5}), True), (FGSM(0.1), True)):
        torch.default_generator.manual_seed(0)
        model = LitClassifier(
            SmallCNN(3, 5, width=4), sample_labels=SampleLabels(weight=0.0), schedule="constant",
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        )  # fmt: skip
        before = copy.deepcopy(model.classifier.net.head)
        _train(model, RobustDataModule(SOURCE, train_perturbation=perturbation, batch_size=20))
        weights = [head[-1].weight for head in (before, model.classifier.net.head)]
        assert torch.equal(*weights) != moves


def _train(model, data, epochs=1, callbacks=()):
    trainer = quiet_trainer(*callbacks, epochs=epochs, limit_val_batches=0)
    trainer.fit(model, data)
    return trainer


# BatchNorm


def norm_net():
    net = nn.Sequential(nn.utils.skip_init(nn.Conv2d, 1, 3, 1), nn.BatchNorm2d(3), nn.Flatten())
    with torch.no_grad():
        net[0].weight.copy_(drawn(3, 1, 1, 1))
        net[0].bias.zero_()
        net[1].weight.copy_(1 + 0.3 * drawn(3))
        net[1].bias.copy_(drawn(3, seed=2))
    return Classifier(net).train()


X = drawn(6, 1, 1, 1).sigmoid()
CHANGED = torch.tensor([False, True, True, False, False, True])


def test_separate_passes_have_batch_statistics_of_their_own_and_common_running_ones():
    clf, twin = norm_net(), norm_net()
    logits = split_forward(clf, X, CHANGED, None)
    expected = torch.zeros(6, 3)
    expected[~CHANGED] = twin(X[~CHANGED])
    expected[CHANGED] = twin(X[CHANGED])
    assert torch.equal(logits, expected)
    assert not torch.allclose(logits, norm_net()(X), atol=1e-3)
    assert clf.net[1].num_batches_tracked == 2
    assert torch.equal(clf.net[1].running_mean, twin.net[1].running_mean)


def test_auxiliary_layers_see_the_perturbed_images_and_the_own_ones_only_clean_images():
    clf, clean, perturbed = norm_net(), norm_net(), norm_net()
    auxiliary = AuxiliaryNorms(clf)
    logits = split_forward(clf, X, CHANGED, auxiliary)
    expected = torch.zeros(6, 3)
    expected[~CHANGED] = clean(X[~CHANGED])
    expected[CHANGED] = perturbed(X[CHANGED])
    assert torch.equal(logits, expected)
    for mine, theirs in ((clf.net[1], clean.net[1]), (auxiliary.layers[0], perturbed.net[1])):
        assert all(torch.equal(a, b) for a, b in zip(mine.buffers(), theirs.buffers(), strict=True))
    logits[CHANGED].sum().backward()
    assert (clf.net[1].bias.grad == 0).all()
    assert (auxiliary.layers[0].bias.grad == 3).all()
    assert (clf.net[0].weight.grad != 0).any()  # all else is common


@pytest.mark.parametrize("kind", [True, False])
def test_a_batch_of_one_kind_is_one_pass(kind):
    clf, twin = norm_net(), norm_net()
    assert torch.equal(split_forward(clf, X, torch.full((6,), kind), None), twin(X))
    assert clf.net[1].num_batches_tracked == 1


@pytest.mark.parametrize("kind", [True, False])
def test_layers_that_no_image_went_through_get_gradients_of_zeros_where_processes_wait_for_them(kind):
    clf = norm_net()
    auxiliary = AuxiliaryNorms(clf)
    changed = torch.full((6,), kind)
    twin = norm_net()
    whole = split_forward(clf, X, changed, auxiliary, whole=True)
    assert torch.equal(whole, split_forward(twin, X, changed, AuxiliaryNorms(twin)))
    whole.square().sum().backward()
    assert all(p.grad is not None for p in (*clf.parameters(), *auxiliary.parameters()))
    unused = clf.net[1] if kind else auxiliary.layers[0]
    assert (unused.weight.grad == 0).all()


@pytest.mark.third_party_rng  # weights
@pytest.mark.parametrize("policy", ["joint", "separate", "auxiliary"])
def test_passes_that_would_wait_for_each_other_are_refused(policy):
    model = LitClassifier(SmallCNN(3, 5, width=4), batch_norm=policy)
    model.on_fit_start()
    shared = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with nullcontext() if policy == "joint" else pytest.raises(ValueError, match="batch_norm: expected 'joint' with"):
        shared.on_fit_start()


@pytest.mark.parametrize("policy", ["joint", "separate", "auxiliary"])
@pytest.mark.third_party_rng  # weights
def test_trainings_under_each_policy(policy):
    torch.default_generator.manual_seed(0)
    model = LitClassifier(SmallCNN(3, 5, width=4), batch_norm=policy)
    start = copy.deepcopy(model.classifier.net.features[0][1])
    data = RobustDataModule(SOURCE, train_perturbation=Mixture({GaussianNoise(0.3): 0.5}), batch_size=20)
    _train(model, data, 2)
    own = model.classifier.net.features[0][1]
    assert own.num_batches_tracked == (8 if policy == "separate" else 4)
    if policy == "auxiliary":
        second = model.auxiliary.layers[0]
        assert second.num_batches_tracked == 4
        assert not torch.equal(second.running_var, own.running_var)
        assert not torch.equal(second.weight, start.weight)  # it is trained
    names = set(model.classifier.net.state_dict())
    assert names == set(SmallCNN(3, 5, width=4).state_dict())


@pytest.mark.third_party_rng  # weights
def test_auxiliary_layers_start_where_the_classifier_is_when_the_training_starts():
    model = LitClassifier(SmallCNN(3, 5, width=4), batch_norm="auxiliary")
    model.classifier.net.features[0][1].running_mean.fill_(7.0)
    model.setup("fit")
    assert (model.auxiliary.layers[0].running_mean == 7).all()
    assert (
        AuxiliaryNorms(model.classifier).layers[0].running_mean is not model.classifier.net.features[0][1].running_mean
    )


@pytest.mark.third_party_rng  # weights
def test_bad_policies_are_named():
    with pytest.raises(ValueError, match="batch_norm: expected one of"):
        LitClassifier(SmallCNN(3, 5), batch_norm="both")
    with pytest.raises(ValueError, match="net: expected BatchNorm layers"):
        LitClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), batch_norm="auxiliary")
    for options, message in (
        ({"labels": "hard"}, "labels"),
        ({"smoothing": 2}, "smoothing"),
        ({"weight": -1}, "weight"),
    ):
        with pytest.raises(ValueError, match=f"{message}: expected"):
            SampleLabels(**options)


# Ramps


def test_eps_and_shares_grow_and_arrive():
    full = Mixture({FGSM(0.1): 0.3, PGD(0.2, step_size=0.05): 0.2, GaussianNoise(0.5): 0.1})
    ramp = Ramp(eps=4, share=2)
    for epoch, (eps, share) in enumerate([(0.25, 0.5), (0.5, 1), (0.75, 1), (1, 1), (1, 1)]):
        parts = ramp.at(full, epoch).parts
        assert [p.share for p in parts] == pytest.approx([0.3 * share, 0.2 * share, 0.1 * share])
        assert parts[0].perturbation.eps == pytest.approx(0.1 * eps)
        assert parts[1].perturbation.eps == pytest.approx(0.2 * eps)
        assert parts[1].perturbation.step_size == pytest.approx(0.05 * eps)
        assert parts[2].perturbation == GaussianNoise(0.5)
    assert ramp.at(full, 3) is full
    assert Ramp(eps=2).at(NFGSM(0.1), 0).eps == pytest.approx(0.05)


@pytest.mark.third_party_rng  # weights
def test_a_training_ramps_up():
    biggest = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            moved = (batch.images - batch.info.clean).abs().amax()
            biggest.append((float(moved), float(batch.changed.float().mean())))

    data = RobustDataModule(
        SOURCE, train_perturbation=Mixture({FGSM(0.1): 1.0}), ramp=Ramp(eps=4, share=2), batch_size=40
    )
    _train(LitClassifier(SmallCNN(3, 5, width=4)), data, 5, callbacks=[Spy()])
    assert [m for m, _ in biggest] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1], abs=1e-6)
    assert 0.2 < biggest[0][1] < 0.8
    assert [s for _, s in biggest[1:]] == [1] * 4
    assert math.isfinite(biggest[0][0])


@pytest.mark.parametrize(
    ("ramp", "perturbation", "message"),
    [
        ({"share": 2}, FGSM(0.1), "train_perturbation: expected a Mixture"),
        ({"eps": 2}, GaussianNoise(0.1), "train_perturbation: expected FGSM"),
        ({"eps": 2}, None, "train_perturbation: expected FGSM"),
        ({"eps": 0}, FGSM(0.1), "eps: expected"),
        ({"share": 1.5}, FGSM(0.1), "share: expected"),
    ],
)
def test_bad_ramps_are_named(ramp, perturbation, message):
    with pytest.raises(ValueError, match=message):
        RobustDataModule(SOURCE, train_perturbation=perturbation, ramp=Ramp(**ramp))
