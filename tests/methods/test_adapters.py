"""Other packages' explainers beside our own methods of the same name: the real packages."""

import sys
import warnings
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from networks import Net
from polynomials import trace
from tiny import noise, seeded
from tiny import trace as tiny_trace
from torch import Tensor, nn

import camkit.methods  # noqa: F401  (fills the registry)
from camkit.entries import METHODS, UTILITIES
from camkit.errors import PluginError, UsageError
from camkit.methods.saliency import min_max, to_saliency
from camkit.network.trace import PixelView
from camkit.results.columns import is_value
from camkit.runs.cells import what_is_lacking
from camkit.runs.guard import make_maps

pytestmark = pytest.mark.peers


@pytest.fixture
def traced():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().eval()
    for parameter in model.parameters():
        parameter.data *= 3  # the logits then differ from image to image
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return trace(model, images, "block", utility="rest")


def maps(name: str, traced) -> Tensor:
    return make_maps(METHODS[name], traced)[0]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("captum:LayerGradCam", "gradcam"),
        ("torchcam:GradCAM", "gradcam"),
        ("torchcam:LayerCAM", "layercam"),
    ],
)
def test_maps_agree_with_our_own(traced, theirs, ours):
    pytest.importorskip(theirs.partition(":")[0])
    expected = maps(ours, traced)
    found = maps(theirs, traced)
    if theirs.startswith("torchcam"):
        expected = expected.relu()
    # each package scales in its own way
    scale = (expected * found).sum() / found.square().sum()
    torch.testing.assert_close(scale * found, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(("theirs", "ours"), [("GradCAM", "gradcam"), ("HiResCAM", "hirescam")])
def test_grad_cams_saliency_maps_agree_with_our_own(traced, theirs, ours):
    pytest.importorskip("pytorch_grad_cam")
    saliency = make_maps(METHODS[f"grad_cam:{theirs}"], traced)[1]
    torch.testing.assert_close(saliency, make_maps(METHODS[ours], traced)[1], rtol=0, atol=1e-3)


def test_grad_cams_score_cam_runs_in_our_layouts(traced):
    pytest.importorskip("pytorch_grad_cam")
    saliency = maps("grad_cam:ScoreCAM", traced)
    assert saliency.shape == (2, 8, 8)
    assert saliency.amin() >= 0
    assert saliency.amax() <= 1


def test_pixel_attributions_are_absolute_values_summed_over_colours(traced):
    pytest.importorskip("captum")
    leaf = traced.images.clone().requires_grad_()
    utility = traced.utility(traced.network.model(leaf), traced.target)
    (gradient,) = torch.autograd.grad(utility.sum(), leaf)
    expected = min_max(gradient.abs().sum(dim=1))
    torch.testing.assert_close(maps("captum:Saliency", traced), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        maps("captum:InputXGradient", traced), min_max((gradient * leaf.detach()).abs().sum(dim=1))
    )


def test_integrated_gradients_explain_each_images_own_class(traced):
    pytest.importorskip("captum")
    steps = (torch.arange(400) + 0.5) / 400
    total = torch.zeros_like(traced.images)
    for step in steps:
        leaf = (step * traced.images).requires_grad_()
        utility = traced.utility(traced.network.model(leaf), traced.target)
        total += torch.autograd.grad(utility.sum(), leaf)[0] / 400
    expected = min_max((total * traced.images).abs().sum(dim=1))
    assert (maps("captum:IntegratedGradients", traced) - expected).abs().max() < 0.02


def test_what_hooks_the_models_modules_and_takes_a_layer(traced):
    captum = pytest.importorskip("captum.attr")
    traced.utility = UTILITIES["logit"].function
    model, target = traced.network.model, traced.target
    # DeepLIFT divides the whole difference to its baseline, a black image.
    black = trace(model, torch.zeros_like(traced.images), "block")
    logits = torch.stack([traced.logits, black.logits]).gather(2, target.expand(2, -1)[..., None])[..., 0]
    torch.testing.assert_close(maps("captum:LayerDeepLift", traced).sum(dim=(1, 2)), logits[0] - logits[1])

    guided = captum.GuidedBackprop(model).attribute(traced.images.requires_grad_(), target)
    grad_cam = captum.LayerGradCam(model, model.block).attribute(
        traced.images, target, relu_attributions=True
    )
    enlarged = captum.LayerAttribution.interpolate(grad_cam, traced.images.shape[2:])
    expected = min_max((guided * enlarged).abs().sum(dim=1)).detach()
    torch.testing.assert_close(maps("captum:GuidedGradCam", traced), expected)


@pytest.mark.parametrize("utility", ["rest", "logit"])
def test_torchcams_score_cam_weighs_channels_by_the_utility(traced, utility):
    pytest.importorskip("torchcam")
    traced.utility = UTILITIES[utility].function
    activation = traced.activation
    weights = []
    for channel in activation.unbind(1):
        mask = channel - channel.amin(dim=(1, 2), keepdim=True)
        mask = mask / (mask.amax(dim=(1, 2), keepdim=True) + 1e-8)
        masked = traced.network.model(traced.images * mask[:, None])
        weights.append(traced.utility(masked, traced.target) - traced.utility(traced.logits, traced.target))
    weights = torch.stack(weights, dim=1).softmax(dim=1)
    expected = torch.einsum("bc,bchw->bhw", weights, activation).relu()
    torch.testing.assert_close(maps("torchcam:ScoreCAM", traced), expected, rtol=1e-4, atol=1e-5)


def test_torchcams_cam_finds_the_weights_of_the_class(traced):
    pytest.importorskip("torchcam")
    model = traced.network.model
    deep = trace(model, traced.images, "act", utility=traced.utility)
    expected = torch.einsum("bc,bchw->bhw", model.classify.weight[deep.target], deep.activation)
    torch.testing.assert_close(maps("torchcam:CAM", deep), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["captum:Lime", "captum:KernelShap"])
def test_what_fits_a_model_to_an_image_takes_each_image_alone(traced, name):
    pytest.importorskip("captum")
    pytest.importorskip("sklearn")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        both = maps(name, traced)
        torch.manual_seed(0)
        first = maps(name, trace(traced.network.model, traced.images[:1], "block", utility=traced.utility))
    assert both.shape == (2, 8, 8)
    torch.testing.assert_close(both[:1], first, rtol=1e-4, atol=1e-5)


def test_an_unknown_class_gets_the_nearest():
    pytest.importorskip("captum")
    with pytest.raises(UsageError, match="Did you mean 'Saliency'"):
        METHODS["captum:Saliensy"]


def test_the_list_of_classes_has_those_that_can_run():
    pytest.importorskip("captum")
    with pytest.raises(UsageError, match=r"^unknown captum class 'GradientAttribution'") as error:
        METHODS["captum:GradientAttribution"]  # the base of others
    heading, _, names = str(error.value).splitlines()[1].partition(": ")
    assert heading == "captum classes"
    assert {"Saliency", "LayerGradCam", "KernelShap"} <= set(names.split(", "))
    assert not set(names.split(", ")) & {"Occlusion", "LayerAttribution", "NoiseTunnel", "NeuronGradient"}
    for name, lacking in (("GradientShap", "baselines"), ("NoiseTunnel", "attribution_method")):
        with pytest.raises(UsageError, match=f"captum:{name} needs more than a model and a layer: {lacking}"):
            METHODS[f"captum:{name}"]


class Tokens(nn.Module):
    """A tiny transformer's layouts: tokens behind a class token, or channels last."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, stride=2)
        self.cls_token = nn.Parameter(torch.randn(1, prefix, 6))
        self.block = nn.Linear(6, 6)
        self.classify = nn.Linear(6, 5)

    def forward(self, images):
        positions = self.embed(images)
        if self.cls_token.shape[1]:
            positions = positions.flatten(2).transpose(1, 2)
            tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), positions], dim=1)
            return self.classify(self.block(tokens).relu().mean(dim=1))
        return self.classify(self.block(positions.permute(0, 2, 3, 1)).relu().mean(dim=(1, 2)))


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("captum:LayerGradCam", "gradcam"),
        ("captum:LayerGradientXActivation", "hirescam"),
        ("torchcam:GradCAM", "gradcam"),
        ("torchcam:LayerCAM", "layercam"),
    ],
)
def test_layers_of_transformers_are_explained_as_our_own_methods_do(theirs, ours, prefix):
    pytest.importorskip(theirs.partition(":")[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tokens(prefix).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    traced = trace(model, images, "block", utility="rest")
    expected, found = maps(ours, traced), maps(theirs, traced)
    assert found.shape == (2, 4, 4)
    if theirs.startswith("torchcam"):
        expected = expected.relu()
    scale = (expected * found).sum() / found.square().sum()
    torch.testing.assert_close(scale * found, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 1e-3
    assert not model.block._forward_hooks


def all_of(prefix: str) -> list[str]:
    """The classes that an adapter offers."""
    with pytest.raises(UsageError) as error:
        METHODS[f"{prefix}:nothing"]
    return str(error.value).splitlines()[1].partition(": ")[2].split(", ")


def swin() -> nn.Module:
    return strong(
        timm.models.SwinTransformer(
            img_size=32, patch_size=4, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(2, 4),
            num_classes=7,
        )
    )  # fmt: skip


def torchvision_vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=7
    )
    nn.init.normal_(model.heads.head.weight)  # the library starts it at zero
    return strong(model)


def strong(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    return model


NETS = {
    "convolutions": (Net, 8, "block"),
    "channels last": (swin, 32, "layers[-1].blocks[-1].norm1"),
    "tokens": (torchvision_vit, 32, "encoder.layers.encoder_layer_1.ln_1"),
}


def traced_net(name: str, layer: str | None = None, utility: str = "rest"):
    build, side, own = NETS[name]
    return tiny_trace(seeded(build), noise(2, 3, side, side), layer or own, utility)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("prefix", ["grad_cam", "torchcam"])
def test_every_class_that_is_offered_works_or_says_why_not(prefix: str, net: str) -> None:
    pytest.importorskip("pytorch_grad_cam")
    pytest.importorskip("torchcam")
    traced = traced_net(net, utility="logit")
    refused = {}
    for one in all_of(prefix):
        method = METHODS[f"{prefix}:{one}"]
        why = what_is_lacking(method, traced.network, traced.layer)
        if why:
            refused[one] = why
            continue
        saliency = make_maps(method, traced)[1]
        assert saliency.isfinite().all(), one
        if one not in ("RefineCAM", "RandomCAM"):  # a product, and a draw, either of which may vanish
            assert saliency.amax() > 0.9, one
    alone = "torchcam reads the attention of torchvision's VisionTransformer alone"
    expected = {} if prefix == "grad_cam" or net == "tokens" else {"LeGrad": alone}
    if prefix == "torchcam":
        expected["CAM"] = what_is_lacking(METHODS["cam"], traced.network, traced.layer)
    assert refused == expected
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in traced.network.model.modules())


def test_grad_cams_finer_cam_weighs_the_nearest_classes_by_their_probability() -> None:
    pytest.importorskip("pytorch_grad_cam")
    traced = traced_net("channels last", utility="logit")

    def contrast(logits: Tensor) -> Tensor:
        own = logits.gather(1, traced.target[:, None])
        nearest = (logits - own).abs().argsort(dim=1)[:, 1:4]
        weights = logits.softmax(dim=1).gather(1, nearest)
        return (weights * (own - logits.gather(1, nearest))).sum(dim=1) / weights.sum(dim=1)

    weights = traced.gradient_of(contrast).mean(dim=(2, 3), keepdim=True)
    expected = to_saliency((weights * traced.activation).sum(dim=1), (32, 32))
    found = make_maps(METHODS["grad_cam:FinerCAM"], traced)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    plain = make_maps(METHODS["grad_cam:GradCAM"], traced)[1]
    assert (found - plain).abs().max() > 0.05


@pytest.mark.parametrize("utility", ["logit", "rest"])
def test_grad_cams_shapley_cam_runs_where_the_gradient_is_constant(traced, utility: str) -> None:
    """Behind `act` are a mean and a linear map: the logit's gradient does not depend on A, ReST's does."""
    pytest.importorskip("pytorch_grad_cam")
    deep = trace(traced.network.model, traced.images, "act", utility=utility)
    found = make_maps(METHODS["grad_cam:ShapleyCAM"], deep)[1]
    torch.testing.assert_close(found, make_maps(METHODS["shapleycam"], deep)[1], rtol=0, atol=2e-3)
    assert bool(deep.hvp.any()) == (utility == "rest")
    assert found.amax() > 0.9


@pytest.mark.parametrize("utility", ["logit", "rest"])
def test_torchcams_finer_cam_takes_the_mean_of_the_nearest_classes(utility: str) -> None:
    pytest.importorskip("torchcam")
    traced = traced_net("channels last", utility=utility)

    def contrast(logits: Tensor) -> Tensor:
        classes = torch.arange(7).expand(2, 7)
        utilities = torch.stack([traced.utility(logits, one) for one in classes.unbind(1)], dim=1)
        own = utilities.gather(1, traced.target[:, None])
        nearest = (utilities - own).abs().argsort(dim=1)[:, 1:4]
        return own[:, 0] - 0.6 * utilities.gather(1, nearest).mean(dim=1)

    weights = traced.gradient_of(contrast).mean(dim=(2, 3), keepdim=True)
    expected = (weights * traced.activation).sum(dim=1).relu()
    torch.testing.assert_close(maps("torchcam:FinerCAM", traced), expected, rtol=1e-4, atol=1e-5)
    assert expected.amax() > 1e-3


@pytest.mark.parametrize("base", ["grad_cam:GradCAMPlusPlus", "torchcam:GradCAMpp"])
def test_refine_cam_is_the_product_over_the_stages(base: str) -> None:
    package = base.partition(":")[0]
    pytest.importorskip("pytorch_grad_cam" if package == "grad_cam" else package)
    traced = traced_net("channels last")
    stages = [stage.layer for stage in traced.stages]
    assert len(stages) == 2
    product = torch.ones(2, 32, 32)
    for stage in stages:
        product *= make_maps(METHODS[base], traced_net("channels last", stage))[1]
    found = make_maps(METHODS[f"{package}:RefineCAM"], traced)[1]
    torch.testing.assert_close(found, min_max(product), rtol=0, atol=5e-3)
    assert (product > 0.01).float().mean() > 0.02


def test_torchcams_legrad_is_our_own() -> None:
    """Both average ReLU of the gradient of every block's own utility, of the mean of its tokens."""
    pytest.importorskip("torchcam")
    build, side, layer = NETS["tokens"]
    traced = tiny_trace(seeded(build), noise(2, 3, side, side), layer)
    network = traced.network
    traced = replace(traced, passed=network.trace(traced.images, [layer], attention=True))
    expected, found = maps("legrad", traced), maps("torchcam:LeGrad", traced)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=expected.amax().item() * 1e-4)
    assert expected.std() > 0


@pytest.mark.parametrize("prefix", [0, 1])
def test_grad_cams_ablation_cam_explains_tokens_and_channels_last(prefix: int) -> None:
    """Where A has no negative values it sets a channel to 0, as the paper and our own do."""
    pytest.importorskip("pytorch_grad_cam")
    model = seeded(lambda: Tokens(prefix))
    model.block = nn.Sequential(model.block, nn.ReLU())
    traced = trace(model, noise(2, 3, 8, 8), "block", utility="logit")
    ours = maps("ablationcam", traced)
    worth = traced.utility(traced.logits, traced.target)[:, None, None]
    expected = to_saliency(ours / worth, (8, 8))  # it divides by u(A)
    found = make_maps(METHODS["grad_cam:AblationCAM"], traced)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert expected.amax() > 0.9


def test_a_model_is_whole_after_a_package_has_failed_in_it(traced) -> None:
    """AblationCAM puts a layer of its own in the place of the explained one."""
    pytest.importorskip("pytorch_grad_cam")
    model = traced.network.model
    before, modules = model(traced.images), dict(model.named_modules())
    calls = []

    def failing(logits: Tensor, target: Tensor) -> Tensor:
        calls.append(len(logits))
        if len(calls) > 4:
            raise ValueError("no more")
        return logits.gather(1, target[:, None])[:, 0]

    traced.utility = failing
    with pytest.raises(PluginError, match="ValueError: no more"):
        maps("grad_cam:AblationCAM", traced)
    assert dict(model.named_modules()) == modules
    torch.testing.assert_close(model(traced.images), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["captum:Saliency", "grad_cam:FullGrad"])
def test_attributions_to_pixels_are_made_without_a_layer(traced, name: str) -> None:
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    fields = (
        "images",
        "image_ids",
        "pixels",
        "target",
        "seed",
        "draw",
        "network",
        "regions",
        "options",
        "utility",
    )
    view = PixelView(**{field: getattr(traced, field) for field in fields})
    assert METHODS[name].of_pixels
    torch.testing.assert_close(make_maps(METHODS[name], view)[0], maps(name, traced))


def test_what_no_utility_can_reach_is_refused() -> None:
    pytest.importorskip("pytorch_grad_cam")
    with pytest.raises(UsageError, match=r"^grad_cam:SESS weighs crops of the image by the softmax"):
        METHODS["grad_cam:SESS"]
    assert "SESS" not in all_of("grad_cam")


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("captum:Saliency", "captum.attr", "captum"),
        ("grad_cam:GradCAM", "pytorch_grad_cam", "grad-cam"),
        ("torchcam:GradCAM", "torchcam.methods", "torchcam"),
    ],
)
def test_an_absent_package_is_named_with_its_install_line(monkeypatch, name, module, install):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(METHODS, "_members", {})
    with pytest.raises(UsageError, match=f"pip install {install}$"):
        METHODS[name]


def test_results_of_an_absent_package_can_be_read(monkeypatch):
    for module in ("captum.attr", "pytorch_grad_cam", "torchcam.methods"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(METHODS, "_members", {})
    assert not any(map(is_value, ("captum:Saliency", "grad_cam:ScoreCAM", "torchcam:GradCAM", "nowhere")))
    assert is_value("aumann-7")
    assert not is_value("aumann-7-e")
