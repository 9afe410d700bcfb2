"""RoBERTa's self-attention with LoRA written into it by hand. Adds transformers to what layers know."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import RobertaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention, eager_attention_forward

from lora_tutorial.arithmetic import LoraModule, new_factors
from lora_tutorial.config import LoraConfig


class LoraRobertaSelfAttention(LoraModule, RobertaSelfAttention):
    """Self-attention whose query and value carry a low-rank update, as in the LoRA paper's section 4.2.

    The class holds its own matrices: ``lora_query_A``, ``lora_value_A`` of shape (r, hidden) and
    ``lora_query_B``, ``lora_value_B`` of shape (hidden, r). ``query``, ``key`` and ``value`` keep their
    names, so the state of a plain ``RobertaSelfAttention`` loads.

    Parameters
    ----------
    config, is_causal, layer_idx
        As for ``RobertaSelfAttention``.
    r, lora_alpha
        Rank and scale; ``lora_alpha`` defaults to ``r``, a scale of 1.

    Raises
    ------
    ValueError
        If the configuration is a decoder's: this class keeps no cache.
    """

    def __init__(
        self,
        config: RobertaConfig,
        r: int = 8,
        lora_alpha: float | None = None,
        is_causal: bool = False,
        layer_idx: int | None = None,
    ) -> None:
        if config.is_decoder:
            raise ValueError("LoraRobertaSelfAttention is for encoders; for a decoder use inject_lora.")
        super().__init__(config, is_causal=is_causal, layer_idx=layer_idx)
        self.lora_config = LoraConfig(r=r, lora_alpha=r if lora_alpha is None else lora_alpha)
        size = config.hidden_size, self.all_head_size
        self.lora_query_A, self.lora_query_B = new_factors(*size, self.lora_config)
        self.lora_value_A, self.lora_value_B = new_factors(*size, self.lora_config)

    @classmethod
    def from_attention(
        cls, base: RobertaSelfAttention, r: int, lora_alpha: float | None = None
    ) -> LoraRobertaSelfAttention:
        """Adapt an existing module: same query, key and value (not copies), same device, dtype and mode."""
        with torch.device(base.query.weight.device):
            module = cls(base.config, r, lora_alpha, base.is_causal, base.layer_idx)
        module.query, module.key, module.value = base.query, base.key, base.value
        return module.train(base.training)

    def plain(self) -> RobertaSelfAttention:
        with torch.device("meta"):
            module = RobertaSelfAttention(self.config, self.is_causal, self.layer_idx)
        module.query, module.key, module.value = self.query, self.key, self.value
        return module.train(self.training)

    @property
    def lora_scaling(self) -> float:
        """``lora_alpha / r``. (``scaling`` is taken: attention's own 1 / sqrt(head size).)"""
        return self.lora_config.scaling

    def lora_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            "query.weight": (self.lora_query_A, self.lora_query_B),
            "value.weight": (self.lora_value_A, self.lora_value_B),
        }

    def lora_query(self, x: Tensor) -> Tensor:
        """The query projection with its update, (batch, tokens, hidden) to the same."""
        return self._add_update(self.query(x), x, self.lora_query_A, self.lora_query_B)

    def lora_value(self, x: Tensor) -> Tensor:
        """The value projection with its update, (batch, tokens, hidden) to the same."""
        return self._add_update(self.value(x), x, self.lora_value_A, self.lora_value_B)

    def _add_update(self, y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        if not self.lora_active:
            return y
        update = F.linear(
            F.linear(x.to(lora_A.dtype), lora_A), lora_B
        )  # (..., hidden) -> (..., r) -> (..., hidden)
        return (y + update * self.lora_scaling).to(y.dtype)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over ``hidden_states`` (batch, tokens, hidden) with the configured implementation.

        Only the two calls to `lora_query` and `lora_value` differ from what RoBERTa does; how scores become
        a mixture of values (eager, sdpa, flex) is left to transformers.
        """
        batch, tokens, _ = hidden_states.shape

        def heads(x: Tensor) -> Tensor:  # (batch, tokens, hidden) -> (batch, heads, tokens, head size)
            return x.view(batch, tokens, self.num_attention_heads, self.attention_head_size).transpose(1, 2)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attend(
            self,
            heads(self.lora_query(hidden_states)),
            heads(self.key(hidden_states)),
            heads(self.lora_value(hidden_states)),
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return mixed.reshape(batch, tokens, -1).contiguous(), weights  # (batch, tokens, hidden)
