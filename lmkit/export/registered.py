"""Makes transformers know exported models: after `import lmkit.export.registered`,
`AutoModelForCausalLM.from_pretrained(DIR)` opens them without remote code."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from lmkit.export.modeling_lmkit import LmkitConfig, LmkitForCausalLM, LmkitModel

AutoConfig.register(LmkitConfig.model_type, LmkitConfig, exist_ok=True)
AutoModel.register(LmkitConfig, LmkitModel, exist_ok=True)
AutoModelForCausalLM.register(LmkitConfig, LmkitForCausalLM, exist_ok=True)
