"""A trained model as a directory that Hugging Face transformers opens without lmkit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lmkit.export.card import card
from lmkit.export.directory import new_directory, write_json
from lmkit.export.fast_tokenizer import eos_token, fast_tokenizer, unk_token
from lmkit.export.plain import cell_of, check_head
from lmkit.export.source import SOURCE, source
from lmkit.inference import TrainedModel
from lmkit.model import Recurrent, Window

MODELING = "modeling_lmkit.py"
# How much of a document lm-evaluation-harness gives to the model at once.
MAX_POSITIONS = 32_768


def write_huggingface(trained: TrainedModel, facts: Mapping[str, Any], path: Path) -> None:
    """Write the directory `path`, whole or not at all.

    facts: what the model card says of the run, see `card`, and its nodes `model` and `head`. Raises
    UserError if something is at `path` or if a part of the model is a class of the user's own.
    """
    config, weights = _config(trained), _weights(trained)
    library = fast_tokenizer(trained.tokenizer)
    with new_directory(path) as directory:
        write_json(directory / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(directory / "generation_config.json", {**ids, "do_sample": True})
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(Path(__file__).with_name(MODELING), directory / MODELING)
        library.save(str(directory / "tokenizer.json"))
        write_json(directory / "tokenizer_config.json", _tokenizer_config(trained))
        write_json(directory / SOURCE, source(trained, facts))
        (directory / "README.md").write_text(card(facts, config), encoding="utf-8")


def _config(trained: TrainedModel) -> dict[str, Any]:
    model, head, cell = trained.model, check_head(trained), cell_of(trained.model)
    layers = list(model.layers) if isinstance(model, Recurrent) else []
    sizes = [layer.hidden_size for layer in layers] or [model.hidden_size]
    eos = trained.tokenizer.eos_id
    return {
        "architectures": ["LmkitForCausalLM"],
        "model_type": "lmkit",
        "auto_map": {
            "AutoConfig": "modeling_lmkit.LmkitConfig",
            "AutoModel": "modeling_lmkit.LmkitModel",
            "AutoModelForCausalLM": "modeling_lmkit.LmkitForCausalLM",
        },
        "cell": cell,
        "vocab_size": model.vocabulary_size,
        "embedding_size": model.embedding.weight.shape[1],
        "layer_sizes": sizes,
        "hidden_size": sizes[-1],
        "num_hidden_layers": len(sizes),
        "context": model.context if isinstance(model, Window) else 0,
        "output_bias": head.bias is not None,
        "tie_word_embeddings": model.tie_weights,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "max_position_embeddings": MAX_POSITIONS,
        "dtype": "float32",
    }


def _weights(trained: TrainedModel) -> dict[str, Tensor]:
    """The parameters under the names of the modeling file; tied ones once."""
    named = {}
    for name, value in trained.model.state_dict().items():
        is_layer = name.startswith("layers.")
        named[f"model.{name}_l0" if is_layer else f"model.{name}"] = value
    for name, value in trained.head.state_dict().items():
        if name != "weight" or not trained.model.tie_weights:
            named[f"lm_head.{name}"] = value
    return {name: value.detach().cpu().contiguous() for name, value in named.items()}


def _tokenizer_config(trained: TrainedModel) -> dict[str, Any]:
    eos, unk = eos_token(trained.tokenizer), unk_token(trained.tokenizer)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eos,
        "eos_token": eos,
        "pad_token": eos,
        **({"unk_token": unk} if unk else {}),
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
    }
