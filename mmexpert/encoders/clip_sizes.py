"""What a CLIP is made of, without weights: the names of OpenAI's models, sizes read from stored files, modules built from sizes.

ViT and text towers are transformers' modules, ResNet image towers timm's, whatever form the weights come in: a saved model needs no
other library. Activation: OpenAI's weights need QuickGELU x * sigmoid(1.702 x); GELU computes something else with the same weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmexpert.types import ConfigError

VOCABULARY, POSITIONS = 49_408, 77
QUICK_GELU = "quick_gelu"


@dataclass(frozen=True)
class ImageSizes:
    """layers: of a ViT (one number) or of the four stages of a ResNet. width: of a ViT's tokens, or of a ResNet's stem.

    patch: pixels, 0 for a ResNet. side: pixels that the positions are made for. joint: width of CLIP's own projection.
    """

    layers: tuple[int, ...]
    width: int
    heads: int
    feedforward: int
    patch: int
    side: int
    joint: int
    activation: str
    epsilon: float

    @property
    def is_resnet(self) -> bool:
        """Whether the tower is a ResNet with attention pooling."""
        return len(self.layers) == 4

    @property
    def pooled(self) -> int:
        """Width of the pooled vector before the projection."""
        return 32 * self.width if self.is_resnet else self.width


@dataclass(frozen=True)
class TextSizes:
    """positions: most tokens of a text. vocabulary: rows of the embedding. joint: width of CLIP's own projection."""

    layers: int
    width: int
    heads: int
    feedforward: int
    positions: int
    vocabulary: int
    joint: int
    activation: str
    epsilon: float


@dataclass(frozen=True)
class ClipName:
    """One of OpenAI's models. hub: its weights in transformers' form, None where there are none. open_clip: in open_clip's form.

    tag_name: what open_clip calls it. openai_sha256: of OpenAI's own file, a TorchScript archive.
    """

    hub: str | None
    open_clip: str
    tag_name: str
    image: ImageSizes
    text: TextSizes
    openai_sha256: str


def _vit(layers: int, width: int, patch: int, joint: int) -> ImageSizes:
    return ImageSizes((layers,), width, width // 64, 4 * width, patch, 224, joint, QUICK_GELU, 1e-5)


def _resnet(layers: tuple[int, ...], width: int, side: int, joint: int) -> ImageSizes:
    return ImageSizes(layers, width, width // 2, 0, 0, side, joint, "relu", 1e-5)


def _text(width: int, joint: int) -> TextSizes:
    return TextSizes(12, width, width // 64, 4 * width, POSITIONS, VOCABULARY, joint, QUICK_GELU, 1e-5)


NAMES = {
    "ViT-B/32": ClipName(
        "openai/clip-vit-base-patch32", "timm/vit_base_patch32_clip_224.openai", "ViT-B-32-quickgelu",
        _vit(12, 768, 32, 512), _text(512, 512), "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    "ViT-B/16": ClipName(
        "openai/clip-vit-base-patch16", "timm/vit_base_patch16_clip_224.openai", "ViT-B-16-quickgelu",
        _vit(12, 768, 16, 512), _text(512, 512), "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    ),
    "ViT-L/14": ClipName(
        "openai/clip-vit-large-patch14", "timm/vit_large_patch14_clip_224.openai", "ViT-L-14-quickgelu",
        _vit(24, 1024, 14, 768), _text(768, 768), "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    ),
    "RN50": ClipName(
        None, "timm/resnet50_clip.openai", "RN50-quickgelu",
        _resnet((3, 4, 6, 3), 64, 224, 1024), _text(512, 1024), "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    ),
    "RN101": ClipName(
        None, "timm/resnet101_clip.openai", "RN101-quickgelu",
        _resnet((3, 4, 23, 3), 64, 224, 512), _text(512, 512), "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    ),
    "RN50x4": ClipName(
        None, "timm/resnet50x4_clip.openai", "RN50x4-quickgelu",
        _resnet((4, 6, 10, 6), 80, 288, 640), _text(640, 640), "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    ),
}  # fmt: skip


def known(name: str, key: str) -> ClipName:
    """A row of NAMES. Raises ConfigError that lists them."""
    if name not in NAMES:
        raise ConfigError(f"{key}={name}: choose {', '.join(NAMES)}; another CLIP is named by weights=FOLDER or weights=owner/model")
    return NAMES[name]


def image_module(sizes: ImageSizes, side: int) -> tuple[nn.Module, nn.Linear]:
    """(tower without projection, projection), random. side: pixels of the pictures, multiples of patch or 32."""
    step = 32 if sizes.is_resnet else sizes.patch
    if side < step or (side % step and not sizes.is_resnet):
        raise ConfigError(f"encoder.image.side={side}: a multiple of the patch, {step} pixels")
    if sizes.is_resnet:
        return _resnet_module(sizes)
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.feedforward,
        num_hidden_layers=sizes.layers[0],
        num_attention_heads=sizes.heads,
        image_size=sizes.side,
        patch_size=sizes.patch,
        hidden_act=sizes.activation,
        layer_norm_eps=sizes.epsilon,
        attn_implementation="sdpa",
    )
    model = CLIPVisionModel(config)
    return getattr(model, "vision_model", model), _projection(sizes.width, sizes.joint)  # older versions have one more shell


def text_module(sizes: TextSizes) -> tuple[nn.Module, nn.Linear]:
    """(tower without projection, projection), random."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.feedforward,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.positions,
        hidden_act=sizes.activation,
        layer_norm_eps=sizes.epsilon,
        bos_token_id=0,  # of no account: the tower is told where a text ends; the defaults would lie beyond a small vocabulary
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    model = CLIPTextModel(config)
    return getattr(model, "text_model", model), _projection(sizes.width, sizes.joint)


def _resnet_module(sizes: ImageSizes) -> tuple[nn.Module, nn.Linear]:
    import timm
    from timm.models.byobnet import ByoBlockCfg

    stages = tuple(
        ByoBlockCfg(type="bottle", d=depth, c=4 * sizes.width * 2**stage, s=1 if stage == 0 else 2, br=0.25)
        for stage, depth in enumerate(sizes.layers)
    )
    stem = (sizes.width // 2, sizes.width // 2, sizes.width)
    model = timm.create_model("resnet50_clip", pretrained=False, blocks=stages, stem_chs=stem, num_classes=sizes.joint, img_size=sizes.side)
    projection, model.head.proj = model.head.proj, nn.Identity()  # the one layer that a frozen tower keeps learning
    return model, projection


def _projection(width: int, joint: int) -> nn.Linear:
    projection = nn.Linear(width, joint, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)  # as CLIP begins
    return projection


def sizes_of_config(content: dict[str, Any], vocabulary: int) -> tuple[ImageSizes, TextSizes]:
    """Sizes from a config.json in transformers' form, whose absent keys mean the values of ViT-B/32. vocabulary: rows stored."""
    given_image = {**(content.get("vision_config_dict") or {}), **(content.get("vision_config") or {})}
    given_text = {**(content.get("text_config_dict") or {}), **(content.get("text_config") or {})}
    joint = content.get("projection_dim", 512)
    image = ImageSizes(
        (given_image.get("num_hidden_layers", 12),),
        given_image.get("hidden_size", 768),
        given_image.get("num_attention_heads", 12),
        given_image.get("intermediate_size", 3072),
        given_image.get("patch_size", 32),
        given_image.get("image_size", 224),
        joint,
        given_image.get("hidden_act", QUICK_GELU),
        given_image.get("layer_norm_eps", 1e-5),
    )
    text = TextSizes(
        given_text.get("num_hidden_layers", 12),
        given_text.get("hidden_size", 512),
        given_text.get("num_attention_heads", 8),
        given_text.get("intermediate_size", 2048),
        given_text.get("max_position_embeddings", POSITIONS),
        vocabulary,
        joint,
        given_text.get("hidden_act", QUICK_GELU),
        given_text.get("layer_norm_eps", 1e-5),
    )
    return image, text


def sizes_of_tensors(tensors: dict[str, Tensor], quick_gelu: bool) -> tuple[ImageSizes, TextSizes]:
    """Sizes from the shapes of a file in OpenAI's and open_clip's form; heads are 64 wide in all of these models."""
    count = lambda prefix: len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})  # noqa: E731
    activation = QUICK_GELU if quick_gelu else "gelu"
    vocabulary, width = tensors["token_embedding.weight"].shape
    joint = tensors["text_projection"].shape[1]
    layers = count("transformer.resblocks.")
    feedforward = len(tensors["transformer.resblocks.0.mlp.c_fc.weight"])
    positions = len(tensors["positional_embedding"])
    text = TextSizes(layers, width, max(1, width // 64), feedforward, positions, vocabulary, joint, activation, 1e-5)
    if "visual.layer1.0.conv1.weight" in tensors:
        width, cells = len(tensors["visual.layer1.0.conv1.weight"]), len(tensors["visual.attnpool.positional_embedding"]) - 1
        stages = tuple(count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        return ImageSizes(stages, width, width // 2, 0, 0, 32 * round(cells**0.5), joint, "relu", 1e-5), text
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    cells = len(tensors["visual.positional_embedding"]) - 1
    feedforward = len(tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"])
    layers = count("visual.transformer.resblocks.")
    side = patch * round(cells**0.5)
    return ImageSizes((layers,), width, max(1, width // 64), feedforward, patch, side, joint, activation, 1e-5), text


def shallower(layers: Sequence[int], most: int | None) -> tuple[int, ...]:
    """Layers of each stage, at most so many."""
    if most is not None and most < 1:
        raise ConfigError(f"layers={most}: 1 or more, or null")
    return tuple(layers) if most is None else tuple(min(depth, most) for depth in layers)
