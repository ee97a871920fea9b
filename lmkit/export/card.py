"""The model card of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEASURED = {
    "best/val/perplexity": "validation",
    "test/perplexity": "test",
}


def card(facts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Markdown of what a model is, what it was trained on and how well it predicts.

    facts: run, its name and id; checkpoint and step; protocol; tokenizer, its class; data, the name
    of its source and by split num_documents and num_tokens; measured, values of summary.json by
    name; num_parameters. config: the exported config.
    """
    data = facts["data"]
    lines = [
        *("---", "library_name: transformers", "pipeline_tag: text-generation"),
        *("tags:", "- lmkit", f"- {config['cell']}", "---", ""),
        f"# {facts['run']}",
        "",
        f"A recurrent language model ({_shape(config)}, {facts['num_parameters']:,} parameters), "
        f"trained with lmkit. Checkpoint: {facts['checkpoint']}, step {facts['step']}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("DIR", trust_remote_code=True)',
        'tokenizer = AutoTokenizer.from_pretrained("DIR", trust_remote_code=True)',
        "```",
        "",
        "## How it reads a text",
        "A text begins after `<eos>`, from the zero state: the first token is predicted from that. "
        "The tokenizer adds nothing; where a text does not begin with `tokenizer.bos_token`, the "
        "model reads it first. The state has no length: a text of any length is read as a whole.",
        "",
        f"In training the state became zero {_WHEN[facts['protocol']]} (protocol "
        f"`{facts['protocol']}`). Tokens: {facts['tokenizer']}, {config['vocab_size']:,} of them.",
        "",
        "## Data",
        data["source"],
        "",
        "| split | documents | tokens |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {split['num_documents']:,} | {split['num_tokens']:,} |"
            for name, split in data["splits"].items()
        ),
        "",
    ]
    if measured := [(MEASURED[k], v) for k, v in facts["measured"].items() if k in MEASURED]:
        lines += [
            "## Perplexity",
            f"Of the run's best checkpoint, under the protocol `{facts['protocol']}`, every token "
            "counted once.",
            "",
            *("| split | perplexity |", "| --- | --- |"),
            *(f"| {split} | {value:,.2f} |" for split, value in measured),
            "",
        ]
    return "\n".join(lines)


_WHEN = {
    "document": "before each document",
    "sentence": "before each line",
    "stream": "never: all documents were one text",
}


def _shape(config: Mapping[str, Any]) -> str:
    sizes = config["layer_sizes"]
    if config["cell"] == "window":
        return f"a window of {config['context']} tokens, hidden size {sizes[0]}"
    layers = f"{len(sizes)} layer{'s' if len(sizes) > 1 else ''} of {', '.join(map(str, sizes))}"
    tied = ", tied" if config["tie_word_embeddings"] else ""
    return f"{config['cell']}, {layers}, embeddings of {config['embedding_size']}{tied}"
