"""`explain`: several methods, contrasts, walks, samples, resuming from maps, and what it says about bad files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustsigma.cli import main
from robustsigma.cli.explained_folder import ExplainedFolder
from robustsigma.cli.method_names import DEFAULT, by_alias, split_methods
from robustsigma.data import Baggage
from robustsigma.engine import attributors, noise
from robustsigma.engine.attributors import Gradient, IntegratedGradients, Sigma
from robustsigma.models import Architecture, ModelCard, load_model, save_model

SOURCE = Baggage(size=16, train=12, val=5, test=5)
WALK = Sigma(objective="logit", alpha=0.01, beta=0.1, max_steps=4, paths=2)
SIGMA = ["--method=Sigma", "--method.objective=logit", "--method.alpha=.01", "--method.beta=.1",
         "--method.max_steps=4", "--method.paths=2"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    architecture = Architecture("small_cnn", {"width": 4})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = architecture.build(3, 5)
    save_model(folder / "model.safetensors", net, ModelCard(architecture, SOURCE.classes, SOURCE.shape, (0.5,), (0.5,)))
    images, _ = SOURCE.split("test").batch(range(2))
    (folder / "photos").mkdir()
    for place, image in enumerate(images):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "photos" / f"{place}.png")
    return folder


@pytest.fixture
def explain(made, tmp_path):
    def run(*arguments, images=None, status=0):
        given = images or f"{made}/photos"
        folders = [f"--model={made}/model.safetensors", f"--out={tmp_path}/out"]
        assert main(["explain", given, *folders, *arguments]) == status
        manifest = tmp_path / "out" / "manifest.json"
        return json.loads(manifest.read_text("utf-8"))["images"] if manifest.is_file() else None

    return run


def read(made, place):
    with Image.open(made / "photos" / f"{place}.png") as file:
        return torch.from_numpy(np.array(file)).permute(2, 0, 1)[None].float() / 255


def pixels(path):
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"), float)


def test_several_methods_stand_side_by_side(explain, made, tmp_path):
    entries = explain(*SIGMA, "--method", "ig", "--method.steps=3", "--method=gradient", "--method", "ig", "--seed=3")
    classifier, _ = load_model(made / "model.safetensors")
    methods = [WALK, IntegratedGradients(steps=3), Gradient(), IntegratedGradients()]
    for place, entry in enumerate(entries):
        x = read(made, place)
        assert [record["method"] for record in entry["maps"]] == [type(method).__name__ for method in methods]
        assert len({record["files"]["map"] for record in entry["maps"]}) == len(methods)
        for record, method in zip(entry["maps"], methods, strict=True):
            expected = method(classifier, x, seed=3)
            found = np.load(tmp_path / "out" / record["files"]["map"])
            np.testing.assert_allclose(found, expected.values[0], rtol=1e-4, atol=1e-6)
            assert record["steps"] == expected.steps[0].tolist()
            assert record["converged"] == bool(expected.all_converged()[0])
        sample = pixels(tmp_path / "out" / entry["maps"][0]["files"]["sample"]) / 255
        end = WALK(classifier, x, seed=3).endpoint
        np.testing.assert_allclose(sample, end[0].permute(1, 2, 0), atol=0.51 / 255)
        with torch.no_grad():
            p = classifier.logits(end).softmax(1)[0]
        known = entry["maps"][0]
        assert known["sample_predicted"]["confidence"] == pytest.approx(float(p.max()), abs=1e-5)
        assert known["sample_explained"]["confidence"] == pytest.approx(float(p[entry["explained"]["index"]]), abs=1e-5)
        assert known["relative_stderr"] > 0
        side = 16 * 10
        assert pixels(tmp_path / "out" / entry["picture"]).shape[1] > (len(methods) + 2) * side


def test_other_colors_are_drawn_from_the_saved_maps(explain, tmp_path, monkeypatch, capsys):
    (first, *_) = explain(*SIGMA)
    picture = pixels(tmp_path / "out" / first["picture"])
    monkeypatch.setattr(Sigma, "attribute", None)  # nothing is computed again
    explain(*SIGMA, "--outline=20", "--clip=[10, 90]", "--smooth=1")
    other = pixels(tmp_path / "out" / first["picture"])
    assert picture.shape != other.shape or (picture != other).any()
    capsys.readouterr()
    explain(*SIGMA, "--outline=20", "--clip=[10, 90]", "--smooth=1")
    assert "2 of 2 images were explained before" in capsys.readouterr().out
    explain(*SIGMA)
    np.testing.assert_array_equal(pixels(tmp_path / "out" / first["picture"]), picture)


def test_a_contrast_explains_the_difference_of_two_logits(explain, made, tmp_path):
    entries = explain("--method=Gradient", "--target=0", f"--contrast={SOURCE.classes[2]}")
    classifier, _ = load_model(made / "model.safetensors")
    for place, entry in enumerate(entries):
        x = read(made, place).requires_grad_()
        logits = classifier(x)
        (expected,) = torch.autograd.grad(logits[0, 0] - logits[0, 2], x)
        found = np.load(tmp_path / "out" / entry["maps"][0]["files"]["map"])
        scale = float((expected[0] * torch.from_numpy(found)).sum() / expected.square().sum())
        np.testing.assert_allclose(found, scale * expected[0], rtol=1e-3, atol=1e-6)  # up to the score's own slope
        assert entry["contrast"] == SOURCE.classes[2]
    (entry, _) = explain("--method=Gradient", f"--contrast={entries[0]['predicted'][0]['class']}")
    assert entry["contrast"] is None, "the predicted class itself"


@pytest.mark.parametrize("kind", ["strip", "gif"])
def test_the_walk_leads_from_the_image_to_the_sample(kind, explain, made, tmp_path):
    (entry, _) = explain(*SIGMA, f"--path={kind}")
    files = entry["maps"][0]["files"]
    with Image.open(tmp_path / "out" / files["path"]) as picture:
        picture.load()
        steps = entry["maps"][0]["steps"][0]
        frames = getattr(picture, "n_frames", 1)
        assert frames == (steps + 1 if kind == "gif" else 1)
        assert picture.width > (1 if kind == "gif" else steps + 1) * 16 * 10
    classifier, _ = load_model(made / "model.safetensors")
    x = read(made, 0)
    target = torch.tensor([entry["explained"]["index"]])
    with classifier.frozen():
        points, curve = WALK.path(classifier, x, target, noise.seeds(0, x))
    whole = WALK(classifier, x, target, seed=0)
    assert len(points) == len(curve) == steps + 1
    torch.testing.assert_close(points[0], x[0])
    torch.testing.assert_close(points[-1], whole.endpoint[0])
    torch.testing.assert_close(curve, whole.confidence[0, 0, : steps + 1])


def test_a_broken_image_stops_no_other(explain, made, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"not an image")
    Image.new("RGB", (20, 20), "red").save(folder / "b.png")
    (entry,) = explain("--method=Gradient", images=str(folder), status=2)
    assert Path(entry["file"]).name == "b.png"
    told = capsys.readouterr().err
    assert "a.png" in told
    assert "1 other image explained" in told


def test_pictures_of_an_earlier_run_are_no_photographs(explain, made, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    assert len(explain("--method=Gradient", images=str(tmp_path))) == 1
    assert len(explain("--method=Gradient", "--seed=1", images=str(tmp_path))) == 1
    (entry,) = explain("--method=Gradient", images=str(tmp_path))
    assert len(explain("--method=Gradient", images=str(tmp_path / "out" / entry["picture"]))) == 2


def test_images_with_one_name_are_several_files_and_keep_their_names(tmp_path):
    files = ("a/cat.png", "b/Cat.jpg", "c/cat-2.png", "d/dog.png", "d/dog.Sigma.sample.png")
    paths = [tmp_path / name for name in files]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    folder = ExplainedFolder(tmp_path, paths, {}, {})
    names = [folder._names[str(path)] for path in paths]
    assert len({name.lower() for name in names}) == 5
    assert names[0] == "cat"
    assert not any("." in name for name in names)


def test_a_folder_of_another_schema_is_refused(explain, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text('{"schema": 99}')
    assert main(["explain", str(tmp_path / "none.png"), "--model=x", f"--out={tmp_path}/out"]) == 2
    with pytest.raises(ValueError, match="schema 1"):
        ExplainedFolder(tmp_path / "out", [], {}, {})


WRONG = {
    "no such contrast": (["--contrast=banana"], "contrast: expected one of"),
    "near contrast": ([f"--contrast={SOURCE.classes[2][:-1]}"], f"did you mean {SOURCE.classes[2]!r}"),
    "contrast with itself": (["--target=1", "--contrast=1"], "contrast: expected another class than the target"),
    "no walk": (["--method=ig", "--path=gif"], "path: expected a SIGMA method"),
    "another kind of walk": (["--path=film"], "path: expected one of"),
    "percentiles": (["--clip=[90, 10]"], "clip: expected a lower percentile first"),
    "colors": (["--colors=infernal"], "inferno"),
    "second method": (["--method=ig", "--method=Sgma"], "Sigma"),
    "option of the second": (["--method=ig", "--method=Sigma", "--method.alfa=1"], "alpha"),
    "code": (["--method=ig", "--method=os.system"], "add --allow os.system if you trust it"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_name_the_option(wrong, explain, capsys):
    arguments, told = WRONG[wrong]
    explain(*arguments, status=2)
    assert told in capsys.readouterr().err


def test_every_method_has_a_short_name():
    names = [name for name in attributors.__all__ if name not in ("Attribution", "Attributor")]
    for name in names:
        for given in (name, name.lower(), name.upper()):
            expected = json.dumps(DEFAULT) if given in ("sigma", "SIGMA") else name
            assert by_alias(["x.png", f"--method={given}"]) == ["x.png", f"--method={expected}"]
            assert by_alias(["--method", given]) == ["--method", expected]
    assert by_alias(["--method", "gig"]) == ["--method", "GuidedIntegratedGradients"]
    assert by_alias(["ig.png", "--target", "ig"]) == ["ig.png", "--target", "ig"]


def test_short_sigma_is_the_default_and_its_options_change_it(explain, capsys):
    shorter = "--method.max_steps=1"
    (first, _), (again, _) = explain(shorter), explain("--method", "sigma", shorter)
    assert first["maps"] == again["maps"]
    assert "not converged: Sigma (--method.max_steps 200 takes more steps)" in capsys.readouterr().out


def test_options_belong_to_the_method_before_them():
    before, after = ["a.png", "--method", "ig", "--method.steps", "4", "--seed", "1"], ["--model", "m"]
    first, *others = split_methods([*before, "--method=sigma", "--method.paths=2", *after, "--method", "x"])
    assert first == [*before, *after]
    assert others == [["--method=sigma", "--method.paths=2"], ["--method", "x"]]
