"""The networks of the miniature: Stable Diffusion's classes at a fraction of its size.

Everything is a stock ``diffusers`` or ``transformers`` class; ``saving`` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTokenizer

VOCABULARY = 2048  # tokens, the two special ones included
TEXT_WIDTH = 192  # of a token's hidden state, and of CLIP's joint space


def train_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """Learn a byte-level BPE tokenizer that can encode any text.

    Args:
        texts: the training text.

    Returns:
        A ``CLIPTokenizer`` of ``VOCABULARY`` tokens in CLIP's order: 256 bytes, the
        same 256 at the end of a word, the merges, start and end of text.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges_wanted = VOCABULARY - 2 * len(alphabet) - 2
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    reference = _empty_tokenizer(alphabet).backend_tokenizer
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = reference.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=merges_wanted + 2 * len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"][:merges_wanted]
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += [first + second for first, second in pairs]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def _empty_tokenizer(alphabet: list[str]) -> CLIPTokenizer:
    """A tokenizer without merges, for its rules of splitting text into words."""
    from transformers import CLIPTokenizer

    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of 5 M parameters for 128 px pictures, randomly initialised."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": TEXT_WIDTH,
    }
    vision = {
        "hidden_size": 224,
        "intermediate_size": 896,
        "num_hidden_layers": 4,
        "num_attention_heads": 7,
        "image_size": 128,
        "patch_size": 16,
        "projection_dim": TEXT_WIDTH,
    }
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH)
    )


def new_vae() -> AutoencoderKL:
    """An autoencoder of 4 M parameters, 128 px to 16 x 16 x 4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=128,
    )


def new_critic() -> nn.Module:
    """A patch critic: (B, 3, 128, 128) to (B, 1, 14, 14) scores, one for 34 pixels.

    Spectral norms bound its slope, so that it cannot outrun the decoder.
    """
    from torch.nn.utils.parametrizations import spectral_norm

    def conv(width: int, out: int, stride: int) -> nn.Module:
        return spectral_norm(nn.Conv2d(width, out, 4, stride, padding=1))

    return nn.Sequential(
        conv(3, 64, 2),
        nn.LeakyReLU(0.2),
        conv(64, 128, 2),
        nn.LeakyReLU(0.2),
        conv(128, 128, 2),
        nn.LeakyReLU(0.2),
        conv(128, 1, 1),
    )


def new_unet() -> UNet2DConditionModel:
    """A U-Net of 8 M parameters for 16 x 16 x 4 latents, predicting noise."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(96, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, as in SD 1.5's config
        norm_num_groups=16,
    )


def parameters(model: nn.Module) -> float:
    """Number of parameters, in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6
