"""The architectures of the `transformers` library for the zoo: small random configurations, one row per family.

Texts are token ids with a mask, one of them padded; the gradient is compared at the embedding. Pictures, spectrograms and
waveforms are compared at the input. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from zoo_sources import ATTENTION, Architecture, Case

VOCABULARY, LENGTH, CLASSES = 99, 8, 5
ALL = (*ATTENTION, "cp-lrp")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {
    **SIZES,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
PICTURE = {**SIZES, "image_size": 32, "patch_size": 8}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
LONG = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}

# name: (its configuration, its class, what it is configured with)
Table = Mapping[str, tuple[str, str, Mapping[str, Any]]]
ENCODERS: Table = {
    "bert": ("BertConfig", "BertForSequenceClassification", TEXT),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", {**TEXT, "pad_token_id": 1}),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 32,
        },
    ),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", {**TEXT, "embedding_size": 16}),
    "electra": ("ElectraConfig", "ElectraForSequenceClassification", {**TEXT, "embedding_size": 16}),
    "mpnet": ("MPNetConfig", "MPNetForSequenceClassification", {**TEXT, "pad_token_id": 1}),
    "deberta-v2": (
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        {
            **TEXT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "position_buckets": 8,
        },
    ),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaForSequenceClassification", {**TEXT, "pad_token_id": 1}),
    "mobilebert": (
        "MobileBertConfig",
        "MobileBertForSequenceClassification",
        {**TEXT, "embedding_size": 16, "intra_bottleneck_size": 32},
    ),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertForSequenceClassification",
        {**TEXT, "global_attn_every_n_layers": 2, "local_attention": 4},
    ),
    "t5-encoder": (
        "T5Config",
        "T5EncoderModel",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "clip-text": ("CLIPTextConfig", "CLIPTextModel", {**TEXT, "projection_dim": 16}),
}
DECODERS: Table = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**LONG, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", TEXT),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            **LONG,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 32,
        },
    ),
    "bloom": ("BloomConfig", "BloomForCausalLM", {**LONG, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", GROUPED),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi": ("PhiConfig", "PhiForCausalLM", TEXT),
    "falcon": (
        "FalconConfig",
        "FalconForCausalLM",
        {**LONG, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "gpt-j": (
        "GPTJConfig",
        "GPTJForCausalLM",
        {**LONG, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    ),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", GROUPED),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", GROUPED),
}
PICTURES: Table = {
    "vit": ("ViTConfig", "ViTForImageClassification", PICTURE),
    "deit": ("DeiTConfig", "DeiTForImageClassification", PICTURE),
    "beit": ("BeitConfig", "BeitForImageClassification", {**PICTURE, "use_relative_position_bias": True}),
    "swin": ("SwinConfig", "SwinForImageClassification", WINDOWS),
    "swinv2": ("Swinv2Config", "Swinv2ForImageClassification", WINDOWS),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", PICTURE),
    "dinov2-registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", PICTURE),
    "clip-vision": ("CLIPVisionConfig", "CLIPVisionModel", PICTURE),
    "siglip-vision": ("SiglipVisionConfig", "SiglipVisionModel", PICTURE),
    "segformer": (
        "SegformerConfig",
        "SegformerForImageClassification",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
    ),
    "convnext": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    ),
    "poolformer": (
        "PoolFormerConfig",
        "PoolFormerForImageClassification",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    ),
}
SOUND: Table = {
    "whisper-encoder": (
        "WhisperConfig",
        "WhisperEncoder",
        {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 8, "max_source_positions": 20},
    ),
    "wav2vec2": (
        "Wav2Vec2Config",
        "Wav2Vec2ForSequenceClassification",
        {**SIZES, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16},
    ),
    "audio-spectrogram": ("ASTConfig", "ASTForAudioClassification", {**SIZES, "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16}),
}  # fmt: skip
KEYS = {
    "whisper-encoder": ("input_features", (2, 8, 40)),
    "wav2vec2": ("input_values", (2, 400)),
    "audio-spectrogram": ("input_values", (2, 32, 16)),
}


def rows(whole: bool) -> list[Architecture]:
    """Every family; `whole` makes no difference."""
    found = []
    for task, table, load in (
        ("text", ENCODERS, partial(_text, cache=False)),
        ("language", DECODERS, partial(_text, cache=True)),
        ("picture", PICTURES, _picture),
        ("sound", SOUND, _sound),
    ):
        for name in table:
            found.append(Architecture("transformers", name, name, task, partial(load, name, table), ALL))
    return found


def _made(name: str, table: Table) -> Any:
    import transformers
    from transformers.models.whisper import modeling_whisper

    configured, kind, options = table[name]
    labels = {"num_labels": CLASSES} if kind.endswith("Classification") else {}
    made = getattr(transformers, kind, None) or getattr(modeling_whisper, kind)
    return made(getattr(transformers, configured)(**options, **labels)).eval()


def _wrapped(model: Any, key: str, **options: Any) -> Any:
    """A module of tensors: the logits, or the mean of what the last layer makes."""
    import torch

    class Scores(torch.nn.Module):
        """One tensor out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any, mask: Any = None) -> Any:
            masked = {} if mask is None else {"attention_mask": mask}
            found = self.model(**{key: x}, **masked, **options)
            return found.logits if hasattr(found, "logits") else found.last_hidden_state.mean(1)

    return Scores().eval()


def _text(name: str, table: Table, *, cache: bool) -> Case:
    import torch

    model = _made(name, table)
    ids = torch.randint(3, VOCABULARY, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    leaf = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings == VOCABULARY][-1]
    module = _wrapped(model, "input_ids", **({"use_cache": False} if cache else {}))
    names = {"input_ids": ids, "attention_mask": mask}
    return Case(module, names, batched=("input_ids", "attention_mask"), leaf=leaf)


def _picture(name: str, table: Table) -> Case:
    import torch

    return Case(_wrapped(_made(name, table), "pixel_values"), {"input": torch.randn(2, 3, 32, 32)})


def _sound(name: str, table: Table) -> Case:
    import torch

    key, shape = KEYS[name]
    return Case(_wrapped(_made(name, table), key), {"input": torch.randn(shape)})
