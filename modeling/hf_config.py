"""gpt-oss as Hugging Face's config.json describes it, and the same in Megatron's terms. Nothing here imports NeMo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import ConfigurationError
from common.foreign import read_json
from common.values import one_line

CONFIGS = Path(__file__).parent / "configs"
MODEL_TYPE = "gpt_oss"
SWIGLU_ALPHA = 1.702
"""Of every published gpt-oss; transformers 5 writes it into config.json, Megatron has it in its code."""
SLIDING, FULL = "sliding_attention", "full_attention"
# Beyond what any model has, and what a plan or an import goes through in seconds: gpt-oss-120b has 36 layers of 128
# experts. A foreign config.json of more is refused before anything is made of it.
MOST_LAYERS, MOST_EXPERTS, MOST_HEADS, MOST_WIDE, MOST_POSITIONS = 1_000, 10_000, 10_000, 2**24, 2**32
LARGEST_NUMBER = 1e18


@dataclass(frozen=True)
class GptOssConfig:
    """Every shape and number of one gpt-oss model; `raw` is config.json as it was read."""

    num_layers: int
    num_experts: int
    hidden_size: int
    ffn_size: int
    vocab_size: int
    num_heads: int
    num_groups: int
    head_dim: int
    experts_per_token: int
    sliding_window: int
    layer_types: tuple[str, ...]
    rms_norm_eps: float
    rope_theta: float
    yarn_factor: float
    yarn_original_positions: int
    yarn_beta_fast: float
    yarn_beta_slow: float
    yarn_truncate: bool
    max_positions: int
    swiglu_limit: float
    raw: dict[str, Any]

    @property
    def has_mxfp4(self) -> bool:
        """Whether the experts are published as MXFP4, by config.json."""
        quantization = self.raw.get("quantization_config")
        return isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4"

    @classmethod
    def from_file(cls, path: Path) -> GptOssConfig:
        """Read `config.json`, or the one in the folder `path`.

        Raises:
            ConfigurationError: no such file, not JSON, another model type, or a field is missing or impossible.
        """
        file = path / "config.json" if path.is_dir() else path
        try:
            # a file that the caller names is meant, wherever its links lead
            raw = (
                read_json(path, "config.json")
                if path.is_dir()
                else read_json(path.resolve().parent, path.resolve().name)
            )
        except FileNotFoundError:
            raise ConfigurationError(f"{file} is missing: name a folder that holds a gpt-oss checkpoint.") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{file} cannot be read as JSON ({one_line(error)}): fetch the model again."
            ) from None
        if not isinstance(raw, dict):
            raise ConfigurationError(f"{file} holds no JSON object: fetch the model again.")
        return cls.from_dict(raw, str(file))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], name: str = "config.json") -> GptOssConfig:
        """Read a parsed config.json; `name` is what errors call it.

        Raises:
            ConfigurationError: another model type, or a field is missing or impossible.
        """
        if raw.get("model_type") != MODEL_TYPE:
            kind = one_line(repr(raw.get("model_type")))
            raise ConfigurationError(f"{name} has model_type {kind}: only {MODEL_TYPE!r} models are supported.")
        try:
            config = cls._read(raw)
        except KeyError as error:
            raise ConfigurationError(f"{name} has no field {error.args[0]!r}: fetch the model again.") from None
        except ValueError as error:
            raise ConfigurationError(f"{name} cannot be a gpt-oss model: {error}.") from None
        for problem in config._problems():
            raise ConfigurationError(f"{name} cannot be a gpt-oss model: {problem}.")
        return config

    @classmethod
    def _read(cls, raw: dict[str, Any]) -> GptOssConfig:
        # transformers 5 writes rope_parameters (rope_theta inside); before, rope_scaling with rope_theta beside it.
        rope = raw.get("rope_parameters") or raw["rope_scaling"]
        if not isinstance(rope, dict):
            raise ValueError("rope_scaling holds no fields")
        layers = size_in(raw, "num_hidden_layers", MOST_LAYERS)
        types = raw.get("layer_types") or [(SLIDING, FULL)[i % 2] for i in range(layers)]
        if not isinstance(types, list):
            raise ValueError("layer_types is no list")
        return cls(
            num_layers=layers,
            num_experts=size_in(raw, "num_local_experts", MOST_EXPERTS),
            hidden_size=size_in(raw, "hidden_size"),
            ffn_size=size_in(raw, "intermediate_size"),
            vocab_size=size_in(raw, "vocab_size"),
            num_heads=size_in(raw, "num_attention_heads", MOST_HEADS),
            num_groups=size_in(raw, "num_key_value_heads", MOST_HEADS),
            head_dim=size_in(raw, "head_dim"),
            experts_per_token=size_in(raw, "num_experts_per_tok", MOST_EXPERTS),
            sliding_window=size_in(raw, "sliding_window", MOST_POSITIONS),
            layer_types=tuple(types),
            rms_norm_eps=_number(raw, "rms_norm_eps"),
            rope_theta=_number(rope if "rope_theta" in rope else raw, "rope_theta"),
            yarn_factor=_number(rope, "factor"),
            yarn_original_positions=size_in(rope, "original_max_position_embeddings", MOST_POSITIONS),
            yarn_beta_fast=_number(rope, "beta_fast"),
            yarn_beta_slow=_number(rope, "beta_slow"),
            yarn_truncate=rope.get("truncate", True) is not False,
            max_positions=size_in(raw, "max_position_embeddings", MOST_POSITIONS),
            swiglu_limit=_number(raw, "swiglu_limit") if "swiglu_limit" in raw else 7.0,
            raw=raw,
        )

    def _problems(self) -> list[str]:
        problems = []
        if self.num_heads % self.num_groups:
            problems.append(f"{self.num_heads} heads do not divide into {self.num_groups} groups")
        if self.experts_per_token > self.num_experts:
            problems.append(f"{self.experts_per_token} experts a token of {self.num_experts} experts")
        if len(self.layer_types) != self.num_layers or any(kind not in (SLIDING, FULL) for kind in self.layer_types):
            problems.append(f"layer_types must name {SLIDING} or {FULL} for each of {self.num_layers} layers")
        if self.raw.get("tie_word_embeddings"):
            problems.append("tie_word_embeddings is set")
        if self.raw.get("swiglu_alpha", SWIGLU_ALPHA) != SWIGLU_ALPHA:
            problems.append(f"swiglu_alpha is {one_line(repr(self.raw['swiglu_alpha']))}, not {SWIGLU_ALPHA}")
        rope = self.raw.get("rope_parameters") or self.raw["rope_scaling"]
        if rope.get("rope_type", "yarn") != "yarn":
            problems.append(f"rope_type is {one_line(repr(rope['rope_type']))}, not 'yarn'")
        return problems

    @cached_property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection: (heads + 2·groups)·head_dim."""
        return (self.num_heads + 2 * self.num_groups) * self.head_dim

    @cached_property
    def attention_size(self) -> int:
        """Width of the attention output: heads·head_dim."""
        return self.num_heads * self.head_dim


def size_in(fields: dict[str, Any], name: str, most: int = MOST_WIDE) -> int:
    """A whole number of a config.json from 1 to `most`.

    Raises:
        KeyError: there is none. ValueError: it is something else.
    """
    value = fields[name]
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} is {one_line(repr(value), 40)}, not a whole number from 1 to {most:,}")
    return value


def _number(fields: dict[str, Any], name: str) -> float:
    """A finite number of a config.json above 0.

    Raises:
        KeyError: there is none. ValueError: it is something else.
    """
    value = fields[name]
    if type(value) not in (int, float) or not 0 < value < LARGEST_NUMBER:
        raise ValueError(f"{name} is {one_line(repr(value), 40)}, not a number above 0")
    return float(value)


def old_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """A config.json in the fields of transformers 4, which 5 reads as well; what is old stays as it is."""
    if "rope_parameters" not in raw:
        return raw
    rope = dict(raw["rope_parameters"])
    old = {name: value for name, value in raw.items() if name != "rope_parameters"}
    old |= {"rope_theta": rope.pop("rope_theta", raw.get("rope_theta"))}
    return old | {"rope_scaling": rope}


def megatron_arguments(config: GptOssConfig) -> dict[str, Any]:
    """Arguments of NeMo's `GPTOSSConfig` that make Megatron compute what transformers computes; JSON can carry them.

    Upstream's own values are wrong in two of them (nemo_toolkit 2.7.3, megatron-core 0.15.3; both are measured by
    tests/modeling/test_parity.py): `window_size=(128, 0)` attends to 129 tokens, and `yarn_mscale_all_dim=1.0` cancels
    YaRN's attention factor 0.1·ln(factor) + 1, which transformers applies to cos and sin. The third wrong default,
    `activation_func`, is a function: `modeling.model_config` sets it.
    """
    return {
        "num_layers": config.num_layers,
        "num_moe_experts": config.num_experts,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn_size,
        "moe_ffn_hidden_size": config.ffn_size,
        "vocab_size": config.vocab_size,
        "num_attention_heads": config.num_heads,
        "num_query_groups": config.num_groups,
        "kv_channels": config.head_dim,
        "moe_router_topk": config.experts_per_token,
        "window_size": (config.sliding_window - 1, 0),
        "window_attn_skip_freq": [int(kind == SLIDING) for kind in config.layer_types],
        "layernorm_epsilon": config.rms_norm_eps,
        "rotary_base": config.rope_theta,
        "yarn_rotary_scaling_factor": config.yarn_factor,
        "yarn_original_max_position_embeddings": config.yarn_original_positions,
        "yarn_beta_fast": config.yarn_beta_fast,
        "yarn_beta_slow": config.yarn_beta_slow,
        "yarn_correction_range_round_to_int": config.yarn_truncate,
        "yarn_mscale": 1.0,
        "yarn_mscale_all_dim": 0.0,
        "activation_func_clamp_value": config.swiglu_limit,
    }


def published_config(name: str = "gpt-oss-20b") -> dict[str, Any]:
    """config.json of openai/gpt-oss-20b or openai/gpt-oss-120b, as it is on the Hub."""
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def find_config(model: str) -> GptOssConfig:
    """The configuration of a published model, or of a Hugging Face folder or config.json.

    Raises:
        ConfigurationError: neither.
    """
    name = model.removeprefix("openai/")
    published = {file.stem: file for file in sorted(CONFIGS.glob("*.json"))}
    path = published.get(name, Path(model))
    if not path.exists():
        raise ConfigurationError(f"{model} is no model: name {' or '.join(published)}, or a folder with a config.json.")
    return GptOssConfig.from_file(path)
