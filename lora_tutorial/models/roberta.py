"""RoBERTa with LoRA: the self-attention written by hand, and the tutorial's model around it."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RobertaConfig
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention, eager_attention_forward

from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.inject import freeze_parameters_except_lora_and_bias
from lora_tutorial.lora.layers import LoraModule, factors_for, keep_hooks
from lora_tutorial.models.encoders import Weights, load_encoder


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
            raise ValueError(f"{type(self).__name__} is for encoders; for a decoder use inject_lora.")
        super().__init__(config, is_causal=is_causal, layer_idx=layer_idx)
        self.add_lora(r, lora_alpha)

    def add_lora(self, r: int, lora_alpha: float | None) -> None:
        """Make the factors of query and value."""
        self.lora_config = LoraConfig(r=r, lora_alpha=r if lora_alpha is None else lora_alpha)
        self.lora_query_A, self.lora_query_B = factors_for(self.query, self.lora_config)
        self.lora_value_A, self.lora_value_B = factors_for(self.value, self.lora_config)

    @classmethod
    def from_attention(
        cls, base: RobertaSelfAttention, r: int, lora_alpha: float | None = None
    ) -> LoraRobertaSelfAttention:
        """Adapt an existing module: same query, key and value (not copies), same device, dtype and mode."""
        if base.is_decoder:
            raise ValueError(f"{cls.__name__} is for encoders; for a decoder use inject_lora.")
        module = cls.around(base)
        module.add_lora(r, lora_alpha)
        return module

    def plain(self) -> RobertaSelfAttention:
        """The module without its adapter: the same query, key and value, not copies."""
        with torch.device("meta"):
            module = RobertaSelfAttention(self.config, self.is_causal, self.layer_idx)
        module.query, module.key, module.value = self.query, self.key, self.value
        module.dropout = self.dropout
        keep_hooks(self, module)
        return module.train(self.training)

    @property
    def lora_scaling(self) -> float:
        """``lora_alpha / r``; ``scaling`` is taken, by attention's own 1 / sqrt(head size)."""
        return self.lora_config.scaling

    def lora_factors(self) -> dict[str, tuple[Tensor, ...]]:
        """``query.weight`` and ``value.weight``: A (r, hidden) and B (hidden, r) of each."""
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


TASK_TYPES = ("glue", "squad_v1", "squad_v2")
HEADS = ("tutorial", "roberta")
POOLINGS = ("first", "mean")


@dataclass(frozen=True)
class WrapperOptions:
    """What a `LoraWrapperRoberta` can be told beside its task, with the tutorial's own choices.

    Parameters
    ----------
    model_id, weights
        Which encoder, as for ``load_encoder``.
    lora_rank, lora_alpha
        Rank and scale of the adapters; ``lora_alpha`` defaults to the rank, a scale of 1. With a rank of
        ``None`` there are no adapters.
    head
        ``"tutorial"``, a LayerNorm, dropout and one linear layer; or ``"roberta"``, the one in
        ``RobertaForSequenceClassification`` (dense, tanh, linear) or ``RobertaForQuestionAnswering``
        (linear): PEFT's format has a place for it.
    pooling
        What the tutorial's head reads for a GLUE task: the ``"first"`` token, or the ``"mean"`` of all
        tokens that are not padding.
    dropout_rate
        Dropout before the head's linear layer, in [0, 1).
    train_biases, train_embedding, train_layer_norms
        What trains beside adapters and head.

    Raises
    ------
    ValueError
        If a setting is outside what is listed above.
    """

    dropout_rate: float = 0.1
    model_id: str = "minilm"
    lora_rank: int | None = 8
    train_biases: bool = True
    train_embedding: bool = False
    train_layer_norms: bool = True
    weights: Weights = "pretrained"
    lora_alpha: float | None = None
    head: str = "tutorial"
    pooling: str = "first"

    def __post_init__(self) -> None:
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate is a probability in [0, 1); got {self.dropout_rate!r}.")
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}; got {self.head!r}.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {self.pooling!r}.")
        if self.pooling != "first" and self.head == "roberta":
            raise ValueError(f"RoBERTa's own head reads the first token; got pooling={self.pooling!r}.")
        if self.lora_rank is None and self.lora_alpha is not None:
            raise ValueError("lora_alpha scales adapters, and lora_rank=None asks for none: leave it out.")
        object.__setattr__(self, "model_id", str(self.model_id))

    @classmethod
    def of(cls, options: dict[str, Any]) -> WrapperOptions:
        """Options from keyword arguments; an unknown name raises ``TypeError``."""
        if unknown := sorted(options.keys() - cls.__dataclass_fields__.keys()):
            known = ", ".join(cls.__dataclass_fields__)
            raise TypeError(f"LoraWrapperRoberta has no option {', '.join(unknown)}; it has {known}.")
        return cls(**options)


class LoraWrapperRoberta(nn.Module):
    """A RoBERTa encoder whose self-attention modules are replaced by `LoraRobertaSelfAttention`.

    On top sits a head. For GLUE it reads the first token of the last hidden state, or the mean of all tokens;
    for SQuAD every token, giving a start and an end score.

    Parameters
    ----------
    task_type
        ``"glue"``, ``"squad_v1"`` or ``"squad_v2"``.
    num_classes
        Classes of a GLUE task; 1 makes it a regression. Not for SQuAD, whose head always has 2 outputs.
    **options
        ``lora_rank=4``, ``head="roberta"`` and so on, see `WrapperOptions`.

    Raises
    ------
    TypeError, ValueError
        If there is no such option, or a value is outside what is listed.
    """

    def __init__(self, task_type: str, num_classes: int | None = None, **options: Any) -> None:
        super().__init__()
        outputs, chosen = _number_of_outputs(task_type, num_classes), WrapperOptions.of(options)
        if chosen.pooling != "first" and task_type != "glue":
            raise ValueError(f"pooling is for glue; the head of {task_type} reads every token. Leave it out.")
        self.task_type, self.pooling = task_type, chosen.pooling
        # what an adapter needs to build this again
        self.init_args = {"task_type": task_type, "num_classes": num_classes} | dataclasses.asdict(chosen)
        self.model = load_encoder(chosen.model_id, weights=chosen.weights).model
        self.config = self.model.config
        with torch.device(self.model.device):
            self.finetune_head_norm: nn.Module = nn.LayerNorm(self.config.hidden_size)
            self.finetune_head_dropout = nn.Dropout(chosen.dropout_rate)
            self.finetune_head_classifier: nn.Module = nn.Linear(self.config.hidden_size, outputs)
            if chosen.head == "roberta":
                self._use_roberta_head(chosen.dropout_rate)
        if chosen.lora_rank is not None:
            self.replace_self_attention(self.model, chosen.lora_rank, chosen.lora_alpha)
        freeze_parameters_except_lora_and_bias(
            self.model,
            "all" if chosen.train_biases else "none",
            chosen.train_layer_norms,
            chosen.train_embedding,
        )

    def _use_roberta_head(self, dropout_rate: float) -> None:
        size, out = self.config.hidden_size, cast(nn.Linear, self.finetune_head_classifier)
        self.finetune_head_norm = nn.Identity()
        dense = nn.Linear(size, size)
        parts: dict[str, nn.Module] = {"dense": dense, "tanh": nn.Tanh()}
        parts |= {"dropout": nn.Dropout(dropout_rate), "out_proj": out}
        for linear in (dense, out):
            nn.init.normal_(linear.weight, std=self.config.initializer_range)
            nn.init.zeros_(linear.bias)
        if self.task_type == "glue":
            self.finetune_head_classifier = nn.Sequential(OrderedDict(parts))

    @classmethod
    def replace_self_attention(cls, module: nn.Module, r: int, lora_alpha: float | None = None) -> None:
        """Walk down the tree of modules and replace every self-attention on the way."""
        for name, child in module.named_children():
            if isinstance(child, RobertaSelfAttention):
                setattr(module, name, LoraRobertaSelfAttention.from_attention(child, r, lora_alpha))
            else:
                cls.replace_self_attention(child, r, lora_alpha)

    def freeze_pooler(self) -> None:
        """Freeze the pooler: the head reads the last hidden state, so its bias never receives a gradient."""
        self.model.pooler.requires_grad_(False)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Compute the encoder's activations again in the backward pass instead of keeping them.

        ``settings`` are those of transformers' models; ``Trainer`` calls this for its option of that name.
        """
        self.model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        """`activation_checkpointing_enable` by its older name."""
        self.model.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> SequenceClassifierOutput | QuestionAnsweringModelOutput:
        """Score ``input_ids`` (batch, tokens).

        That gives ``logits`` (batch, classes), or for SQuAD ``start_logits`` and ``end_logits`` (batch,
        tokens). With labels or positions the ``loss`` comes along.
        """
        hidden = self.model(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state  # (batch, tokens, hidden)
        if self.task_type == "glue":
            pooled = hidden[:, 0] if self.pooling == "first" else mean_of_tokens(hidden, attention_mask)
            logits = self._head(pooled)  # (batch, hidden) -> (batch, classes)
            loss = None if labels is None else classification_loss(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)
        start, end = self._head(hidden).unbind(-1)  # (batch, tokens, 2) -> twice (batch, tokens)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (F.cross_entropy(start, start_positions) + F.cross_entropy(end, end_positions)) / 2
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)

    def _head(self, x: Tensor) -> Tensor:
        return self.finetune_head_classifier(self.finetune_head_dropout(self.finetune_head_norm(x)))


def mean_of_tokens(hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The mean of ``hidden`` (batch, tokens, size) over the tokens with a 1 in the mask: (batch, size)."""
    if attention_mask is None:
        return hidden.mean(1)
    mask = attention_mask[:, :, None].to(hidden.dtype)  # (batch, tokens) -> (batch, tokens, 1)
    return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)


def _number_of_outputs(task_type: str, num_classes: int | None) -> int:
    if task_type not in TASK_TYPES:
        raise ValueError(f"task_type must be one of {', '.join(TASK_TYPES)}; got {task_type!r}.")
    if task_type != "glue":
        if num_classes is not None:
            raise ValueError(f"num_classes is for glue; {task_type} scores a start and an end. Leave it out.")
        return 2
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise ValueError(f"A glue task needs num_classes, 1 (regression) or more; got {num_classes!r}.")
    return num_classes


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` (batch, classes), or with one output the mean squared error."""
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, labels)
    # Squeeze first: (batch, 1) against (batch,) would broadcast to (batch, batch) without a word.
    return F.mse_loss(logits.squeeze(1), labels.to(logits.dtype))  # (batch, 1) -> (batch,)
