"""A causal decoder of transformers, frozen, with adapters beside it (Llama 3 paper, section 7.2 / spec A4).

The decoder is what `AutoModelForCausalLM` returned; its module tree and state dict stay as they were. Adapters live
beside it and reach it through the seam, and the rows of new special tokens live in a small table of their own.

Legend: B batch, T positions, D decoder width, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from multimodal.attention import trains_in_bf16_on_cpu
from multimodal.cast_once import CastOnce
from multimodal.errors import UserError
from multimodal.hashing import weights_sha256
from multimodal.loss import FrozenHead
from multimodal.memory import CrossMemory, Inserted
from multimodal.seam import KEYWORD, Probe, Seam


class FrozenDecoder(nn.Module):
    """Any Llama-style causal decoder, frozen: no gradient, always in eval mode, equal hash before and after training.

    Without memory, logits and `generate` are those of the bare decoder to the bit, whatever is attached.

    Args:
        lm: the causal decoder. It is frozen and hooked in place; `release()` takes the hooks off again.
        extra_tokens: number of trainable embedding rows for new tokens; token id `vocab_size + i` reads row i. The
            output head is not extended: such tokens are never predicted.

    Raises:
        UserError: the decoder passes no keywords on to its layers, makes logits in an unknown way, or is in use.

    Example:
        >>> decoder = FrozenDecoder(AutoModelForCausalLM.from_pretrained(folder))
        >>> decoder.attach("image", image_adapter)
        >>> decoder.generate(input_ids, memory=memory, max_new_tokens=20)
    """

    def __init__(self, lm: Any, *, extra_tokens: int = 8) -> None:
        super().__init__()
        self.lm = lm.requires_grad_(False).eval()
        self.adapters = nn.ModuleDict()
        self.seam = Seam(lm.get_decoder(), self.adapters)
        self.checkpointing = False
        self.cast_once = CastOnce(self.lm)
        table = lm.get_input_embeddings()
        self.vocab_size: int = table.weight.shape[0]
        self.extra_embedding = nn.Embedding(extra_tokens, table.weight.shape[1], device=table.weight.device)
        if not table.weight.is_meta:
            self.reset_extra(range(extra_tokens))
            try:
                _verify(lm, self.seam, self.head)
            except UserError:
                self.release()
                raise

    @property
    def head(self) -> FrozenHead:
        """Hidden states -> logits, for the loss."""
        return FrozenHead(self.lm)

    @property
    def dim(self) -> int:
        """Width D of the hidden states."""
        return self.extra_embedding.embedding_dim

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.seam.layers)

    def attach(self, name: str, adapter: nn.Module) -> None:
        """Graft an adapter: `adapter.layers[str(i)]` reads memory directly before decoder layer i.

        Adapters on one layer work in order of attachment, except that "video" always comes before "image".

        Raises:
            UserError: the name is taken, or the adapter names a layer that the decoder does not have.
        """
        if name in self.adapters:
            raise UserError(f"an adapter named {name!r} is attached already; expected detach({name!r}) first")
        blocks: Any = adapter.layers
        strangers = [key for key in blocks if not (key.isdecimal() and int(key) < self.n_layers)]
        if strangers:
            raise UserError(f"adapter {name!r} names decoder layer {strangers[0]}; expected 0 to {self.n_layers - 1}")
        self.adapters[name] = adapter
        self.seam.update_order()

    def detach(self, name: str) -> nn.Module:
        """Take an adapter off and return it.

        Raises:
            UserError: no such adapter.
        """
        if name not in self.adapters:
            raise UserError(f"no adapter named {name!r}; attached: {', '.join(self.adapters) or 'none'}")
        adapter = self.adapters.pop(name)
        self.seam.update_order()
        return adapter

    @torch.no_grad()
    def reset_extra(self, rows: Sequence[int], *, like: int | None = None) -> None:
        """Set rows of the extra tokens to what new ones begin with: the mean of the decoder's embeddings, or that of
        the token `like`.
        """
        table = self.lm.get_input_embeddings()
        if like is None:
            start_D = _mean_embedding(table, self.vocab_size)
        else:
            start_D = table(torch.tensor(like, device=self.extra_embedding.weight.device))
        self.extra_embedding.weight[list(rows)] = start_D

    def release(self) -> Any:
        """Take the hooks off the decoder and return it, bare and still frozen. This object is of no use afterwards."""
        self.seam.remove()
        return self.lm

    def embed(self, input_ids: Tensor, inserted: Inserted | None = None) -> Tensor:
        """Input embeddings [B, T, D] of known and extra tokens, and of what is inserted in their place.

        Raises:
            ValueError: not as many embeddings as placeholders.
        """
        is_extra = input_ids >= self.vocab_size
        embeds = self.lm.get_input_embeddings()(input_ids.masked_fill(is_extra, 0))
        extra = self.extra_embedding((input_ids - self.vocab_size).clamp(min=0))
        embeds = torch.where(is_extra[..., None], extra.to(embeds.dtype), embeds)
        for token, rows_ND in (inserted or {}).items():
            at_BT = input_ids == token
            if (there := int(at_BT.sum())) != len(rows_ND):
                raise ValueError(f"{len(rows_ND)} embeddings for {there} tokens {token}")
            embeds = embeds.masked_scatter(at_BT[..., None], rows_ND.to(embeds.dtype))
        return embeds

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        memory: CrossMemory | None = None,
        inserted: Inserted | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Final normed hidden states [B, T, D], without a cache.

        Args:
            input_ids: long [B, T].
            attention_mask: [B, T], 1 = real token; None = all real.
            memory: media to be read by cross-attention, one row per batch row.
            inserted: media in the place of tokens.
            position_ids: long [B, T]; None = the decoder's own choice.

        Raises:
            ValueError: memory of an adapter that is not attached, a wrong number of rows or of inserted embeddings, an
                id beyond the last token.
        """
        inputs = self._inputs(input_ids, inserted)
        inputs.update(attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        if memory is not None:
            self._check(memory)
            inputs[KEYWORD] = memory
        if not (self.checkpointing and torch.is_grad_enabled()):
            attention = sdpa_kernel(SDPBackend.MATH) if trains_in_bf16_on_cpu(input_ids.device) else nullcontext()
            with attention, self._casts():
                return self.seam.decoder(**inputs).last_hidden_state
        # Fused in any case: the recomputation in backward would not find this context.
        embeds = inputs.get("inputs_embeds")
        with self.seam.recomputing(0 if embeds is not None and embeds.requires_grad else self.first_adapted):
            return self.seam.decoder(**inputs).last_hidden_state

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        memory: CrossMemory | None = None,
        inserted: Inserted | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V]; arguments as in `hidden`."""
        return self.head(
            self.hidden(input_ids, attention_mask, memory=memory, inserted=inserted, position_ids=position_ids)
        )

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        memory: CrossMemory | None = None,
        inserted: Inserted | None = None,
        **kw: Any,
    ) -> Tensor:
        """New token ids [B * samples per prompt, T_new], without the prompt.

        Args:
            input_ids: long [B, P]; pad on the left.
            attention_mask: [B, P], 1 = real token.
            memory: media, one row per prompt; repeated for beams and samples just as transformers repeats the prompts.
            inserted: media in the place of tokens.
            **kw: anything that `generate` of transformers takes. A prompt with extra tokens goes in as embeddings, and
                transformers then always uses a cache.
        """
        if memory is not None:
            self._check(memory)
        inputs = self._inputs(input_ids, inserted)
        if attention_mask is None and "inputs_embeds" in inputs:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        with self.seam.using(memory), self._casts():
            out = self.lm.generate(**inputs, **kw)
        tokens = out if isinstance(out, Tensor) else out.sequences
        return tokens if "inputs_embeds" in inputs else tokens[:, input_ids.shape[1] :]

    def enable_gradient_checkpointing(self) -> None:
        """Keep only layer inputs for backward, from the first layer that needs a gradient up, and recompute the rest.

        Not through the switch of transformers: that one makes the embeddings require grad, which drags the otherwise
        free layers below the first adapter into backward; if it was used on `lm`, this is undone here.
        """
        self.lm.disable_input_require_grads()
        self.seam.enable_checkpointing()
        self.checkpointing = True

    @property
    def first_adapted(self) -> int:
        """Lowest decoder layer that carries an adapter; the number of layers if none does."""
        adapters: Any = self.adapters.values()
        return min((int(key) for adapter in adapters for key in adapter.layers), default=self.n_layers)

    def sha256(self) -> str:
        """Hash over names, dtypes, shapes and bytes of the decoder's weights; tied weights count once."""
        return weights_sha256(self.lm)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the adapters; the decoder stays in eval mode."""
        super().train(mode)
        self.lm.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As usual for the adapters and the extra tokens; the decoder stays frozen."""
        super().requires_grad_(requires_grad)
        self.lm.requires_grad_(False)
        return self

    def _inputs(self, input_ids: Tensor, inserted: Inserted | None) -> dict[str, Any]:
        """Token ids as they are, or embeddings if any of them is an extra token."""
        if torch.compiler.is_compiling():  # no look at the data inside a graph; the embeddings are the same to the bit
            return {"inputs_embeds": self.embed(input_ids, inserted)}
        highest, limit = int(input_ids.max()), self.vocab_size + self.extra_embedding.num_embeddings
        if highest >= limit:
            raise ValueError(f"token id {highest} in the input; expected below {limit} (vocabulary and extra tokens)")
        if highest < self.vocab_size and not inserted:
            return {"input_ids": input_ids}
        return {"inputs_embeds": self.embed(input_ids, inserted)}

    def _casts(self) -> AbstractContextManager[None]:
        return nullcontext() if torch.compiler.is_compiling() else self.cast_once()

    def _check(self, memory: CrossMemory) -> None:
        for name in memory.by_adapter:
            if name not in self.adapters:
                raise ValueError(f"memory for an adapter {name!r}; attached: {', '.join(self.adapters) or 'none'}")


@torch.no_grad()
def _mean_embedding(table: nn.Module, rows: int, chunk: int = 4096) -> Tensor:
    """Mean of what the table returns (not of its weights: Gemma scales them), in chunks since tables are large."""
    ids = torch.arange(rows, device=next(table.parameters()).device)
    return torch.stack([table(part).float().sum(0) for part in ids.split(chunk)]).sum(0) / rows


@torch.no_grad()
def _verify(lm: Any, seam: Seam, head: FrozenHead) -> None:
    """Run the decoder on a few tokens: the keyword must reach every layer and the head must give its logits.

    A family where either fails would otherwise ignore media, or train on a wrong loss, without a word.
    """
    table = lm.get_input_embeddings().weight
    ids = torch.arange(min(8, table.shape[0]), device=table.device)[None]
    probe, family = Probe(), type(lm).__name__
    try:
        hidden = seam.decoder(input_ids=ids, use_cache=False, **{KEYWORD: probe}).last_hidden_state
    except TypeError as error:
        raise UserError(
            f"{family} accepts no extra keyword ({error}); expected a decoder that passes them on"
        ) from error
    missed = sorted(set(range(len(seam.layers))) - probe.reached)
    if missed:
        raise UserError(f"{family} passes no keywords on to layer {missed[0]}; expected it to reach every layer")
    logits, expected = head(hidden).float(), lm(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        raise UserError(f"{family} makes its logits from hidden states in a way that is not known here")
