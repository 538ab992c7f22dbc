"""The networks of the miniature: Stable Diffusion's classes at a fraction of its size.

Everything is a stock ``diffusers`` or ``transformers`` class; ``saving`` writes them.
"""

import json
from collections.abc import Iterable, Sequence

from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

VOCABULARY = 2048  # tokens, the two special ones included
LATENT = 32  # side of a latent
TEXT_WIDTH = 192  # of a token's hidden state, and of CLIP's joint space


def train_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """Learn a byte-level BPE tokenizer that can encode any text.

    Args:
        texts: the training text.

    Returns:
        A ``CLIPTokenizer`` of ``VOCABULARY`` tokens in CLIP's order: 256 bytes, the
        same 256 at the end of a word, the merges, start and end of text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges_wanted = VOCABULARY - 2 * len(alphabet) - 2
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # CLIP's rules of splitting text into words.
    bpe.pre_tokenizer = _clip_tokenizer(alphabet, []).backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=merges_wanted + 2 * len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"][:merges_wanted]
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    return _clip_tokenizer(alphabet, pairs)


def _clip_tokenizer(
    alphabet: Sequence[str], merges: list[tuple[str, ...]]
) -> CLIPTokenizer:
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of 5 M parameters for 128 px images, randomly initialised."""
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
    """An autoencoder of 2.7 M parameters, 128 px to 32 x 32 x 4."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=128,
    )


def new_unet() -> UNet2DConditionModel:
    """A U-Net of 11 M parameters for 32 x 32 x 4 latents, predicting noise.

    Attention begins at 16 x 16: at 32 x 32 it would cost as much as all the rest.
    """
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4, 6),  # the number of heads, as in SD 1.5's config
        norm_num_groups=16,
    )
