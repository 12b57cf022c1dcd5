"""A frozen decoder with its adapters, as one thing to train, talk to, save and load.

Legend: B rows, T tokens, D decoder width.
"""

import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multimodal.batch import Batch, Sample, Turn, collate, length_groups
from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from multimodal.hashing import weights_sha256
from multimodal.loss import IGNORE, Teacher, frozen_head_loss
from multimodal.memory import AdapterMemory, CrossMemory, Inserted, inserted_rows
from multimodal.messages import MEDIA_KINDS, Message, Prompt, Vocabulary, encode_answer, encode_prompt
from multimodal.tokenizer import PAUSE, AnyTokenizer
from multimodal.unseen_pairs import UnseenPairs

# Where each modality lives. The only place that names them: `multimodal` imports none of them before it is asked to.
MODALITIES = {
    "image": "vision.image_modality:ImageModality",
    "video": "vision.video_modality:VideoModality",
    "audio": "speech.speech_modality:SpeechModality",
}


def modality_class(kind: str) -> Any:
    """The class of a modality.

    Raises:
        UserError: there is none of that name.
    """
    if kind not in MODALITIES:
        raise UserError(f"modality {kind!r}: expected one of {', '.join(MODALITIES)}")
    module, name = MODALITIES[kind].split(":")
    return getattr(importlib.import_module(module), name)


class MultimodalModel(nn.Module):
    """A frozen decoder, its tokenizer, and the modalities grafted onto it.

    Args:
        decoder: the frozen decoder.
        tokenizer: its tokenizer.
        decoder_name: hub name, folder, or "builtin"; adapters remember it.

    Example:
        >>> model = MultimodalModel.from_pretrained("runs/demo/adapter")
        >>> model.chat([{"role": "user", "content": [{"type": "image", "image": "dog.jpg"},
        ...                                          {"type": "text", "text": "Describe the image."}]}])
    """

    def __init__(self, decoder: FrozenDecoder, tokenizer: AnyTokenizer, *, decoder_name: str) -> None:
        super().__init__()
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.decoder_name = decoder_name
        self.modalities = nn.ModuleDict()
        self.loaded_from: Path | None = None
        """The adapter folder that this model was made from."""
        self.unseen_pairs: UnseenPairs | None = None
        """What `loss` leaves undenied; None = nothing."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, decoder: str | None = None, force_decoder: bool = False, device: str = "auto"
    ) -> "MultimodalModel":
        """Load an adapter, a folder or one of the hub, with the decoder that it names; see
        `multimodal.adapter_folder.load_model`.
        """
        from multimodal.adapter_folder import load_model
        from multimodal.adapter_hub import find_adapter

        return load_model(find_adapter(name), decoder=decoder, force_decoder=force_decoder, device=device)

    def save_pretrained(
        self, folder: str | Path, *, recipe: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Write the adapter folder; see `multimodal.adapter_folder.save_adapter`."""
        from multimodal.adapter_folder import save_adapter

        save_adapter(self, Path(folder), recipe=recipe, metrics=metrics)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        license: str = "",
        recipe: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> str:
        """Publish the adapter on the hub and return its address; see `multimodal.adapter_hub.push_adapter`.

        Example:
            >>> MultimodalModel.from_pretrained("runs/demo/adapter").push_to_hub("someone/scenes", private=True)
        """
        from multimodal.adapter_hub import push_adapter

        return push_adapter(
            self, repo_id, private=private, token=token, license=license, recipe=recipe, metrics=metrics
        )

    def add(self, kind: str, config: Any) -> None:
        """Graft a new modality with the given configuration; one that builds on another (clips on pictures) gets that.

        Raises:
            UserError: the kind is unknown or there already, or what it builds on is not there.
        """
        if kind in self.modalities:
            raise UserError(f"modality {kind!r} is attached already; expected unload_adapter({kind!r}) first")
        cls = modality_class(kind)
        needed: tuple[str, ...] = getattr(cls, "builds_on", ())
        missing = [name for name in needed if name not in self.modalities]
        if missing:
            raise UserError(f"modality {kind!r} builds on {missing[0]!r}, which the model has not; expected that first")
        modality = cls.create(config, self.decoder, *(self.modalities[name] for name in needed)).to(self.device)
        if modality.joins == "cross-attention":
            self.decoder.attach(kind, modality.adapter)
        self.modalities[kind] = modality
        marks, pause = getattr(modality, "marks", ()), self.tokenizer.get_vocab().get(PAUSE)
        if marks and pause is not None:
            # A decoder that has learnt to read tokens between pauses reads them between such marks from the start.
            self.decoder.reset_extra(marks, like=pause)

    def load_adapter(self, name: str | Path, *, force_decoder: bool = False) -> None:
        """Add the modalities of another adapter, a folder or one of the hub, for the same decoder; see
        `multimodal.adapter_folder.add_adapter`.

        Example:
            >>> model = MultimodalModel.from_pretrained("runs/demo-video/adapter")
            >>> model.load_adapter("runs/demo-asr/adapter")
        """
        from multimodal.adapter_folder import add_adapter
        from multimodal.adapter_hub import find_adapter

        add_adapter(self, find_adapter(name), force_decoder=force_decoder)

    def unload_adapter(self, kind: str) -> None:
        """Take a modality off again. What the model says with the others stays the same to the bit.

        Raises:
            UserError: the modality is not there, or another one builds on it.
        """
        if kind not in self.modalities:
            raise UserError(f"no modality {kind!r} to unload; expected one of {', '.join(self.modalities) or 'none'}")
        for other, modality in self.modalities.items():
            if kind in getattr(modality, "builds_on", ()):
                raise UserError(f"{other!r} builds on modality {kind!r}; expected unload_adapter({other!r}) first")
        if self.modalities[kind].joins == "cross-attention":
            self.decoder.detach(kind)
        self.decoder.reset_extra(self.token_rows(kind))
        del self.modalities[kind]

    def modalities_sha256(self) -> str:
        """Hash over the weights of all modalities: at the beginning of a run, which runs can be averaged.

        The extra tokens are left out. They begin as a mean of the decoder's embeddings, which differs in its last bits
        from machine to machine.
        """
        return weights_sha256(self.modalities)

    def token_rows(self, kind: str) -> list[int]:
        """Rows of the decoder's extra tokens that a modality alone reads: its placeholder's, and its marks' if any."""
        return [MEDIA_KINDS.index(kind), *getattr(self.modalities[kind], "marks", ())]

    @property
    def device(self) -> torch.device:
        return self.decoder.extra_embedding.weight.device

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer with the placeholders of the modalities that are there."""
        first = self.decoder.vocab_size
        ids = {kind: first + i for i, kind in enumerate(MEDIA_KINDS) if kind in self.modalities}
        return Vocabulary(self.tokenizer, ids)

    @property
    def pad_id(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        return 0

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables by part. With a rate of 0 for "tokens" (the placeholders' embeddings), nothing below the first
        adapted layer needs a gradient."""
        tokens = [(f"extra_embedding.{name}", p) for name, p in self.decoder.extra_embedding.named_parameters()]
        parts: dict[str, list[tuple[str, nn.Parameter]]] = {"tokens": tokens}
        for kind, modality in self.modalities.items():
            for part, named in modality.parts().items():  # type: ignore[operator]
                parts.setdefault(part, []).extend((f"{kind}.{name}", p) for name, p in named)
        return parts

    def log_values(self) -> dict[str, float]:
        """The gates, for the training log."""
        return {k: v for m in self.modalities.values() for k, v in m.log_values().items()}  # type: ignore[operator]

    def sample(self, messages: Sequence[Message], answer: str | None = None) -> Sample:
        """One conversation with its media prepared; with an answer, to learn from.

        Raises:
            UserError: a medium cannot be read or the model has no adapter for it.
        """
        prompt = encode_prompt(messages, self.vocabulary)
        media = {
            kind: tuple(modality.prepare(m.source) for m in prompt.media if m.kind == kind)  # type: ignore[operator]
            for kind, modality in self.modalities.items()
        }
        return Sample(media, (self.turn(messages, prompt, answer),))

    def turn(self, messages: Sequence[Message], prompt: Prompt, answer: str | None) -> Turn:
        """An encoded prompt with its answer; the media are those of the prompt, in order."""
        counts = {kind: sum(m.kind == kind for m in prompt.media) for kind in self.modalities}
        ids = [] if answer is None else encode_answer(messages, answer, self.vocabulary)
        return Turn(prompt.ids, ids, {kind: tuple(range(n)) for kind, n in counts.items()})

    def collate(self, samples: Sequence[Sample], *, pad_left: bool = False) -> Batch:
        """A batch of samples, on the CPU."""
        return collate(
            samples,
            modalities=self.modalities,  # type: ignore[arg-type]
            placeholder_ids=self.vocabulary.placeholder_ids,
            pad_id=self.pad_id,
            pad_left=pad_left,
        )

    def memory(self, batch: Batch) -> CrossMemory | None:
        """Keys and values of all media that are read by cross-attention; None if there are none."""
        found: dict[str, AdapterMemory] = {}
        for kind, modality in self._modalities_of(batch):
            if modality.joins == "cross-attention":
                for name, memory in modality.memory(batch.media[kind]).items():
                    found[name] = found[name].or_else(memory) if name in found else memory
        return CrossMemory(found) if found else None

    def inserted(self, batch: Batch) -> Inserted:
        """Embeddings of all media that stand in the place of tokens."""
        ids = self.vocabulary.placeholder_ids
        return {
            ids[kind]: modality.embeddings(batch.media[kind])
            for kind, modality in self._modalities_of(batch)
            if modality.joins == "embeddings"
        }

    def _modalities_of(self, batch: Batch) -> list[tuple[str, Any]]:
        return [(kind, modality) for kind, modality in self.modalities.items() if kind in batch.media]

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Summed cross-entropy of the answers' tokens, and their number (spec A4.5); KL divergence where a turn has a
        teacher, which is this decoder on the same answer after the teacher's prompt.

        Media are encoded once; rows of unlike length then go through the decoder in groups, with less padding. Rows
        without media teach nothing: all that they meet is frozen, so they go through the bare decoder without gradient.
        """
        inserted, teacher = self.inserted(batch), self._teacher(batch)
        columns_T = torch.arange(1, batch.input_ids.shape[1] + 1, device=batch.input_ids.device)
        ends_B = (batch.attention_mask * columns_T).amax(1)
        lengths, tokens = torch.stack([ends_B, batch.attention_mask.sum(1)]).tolist()
        # Nobody sees what comes after: padding on the right needs no mask, and attention can take its fast path.
        mask_BT = None if lengths == tokens else batch.attention_mask
        place = {row: at for at, row in enumerate(sorted(batch.rows_with_media()))}
        text_only = [row for row in range(len(lengths)) if row not in place]
        memory = self.memory(batch.of_rows([*place]) if text_only else batch)
        found = []
        for group in (*_groups_of(lengths, [*place]), *_groups_of(lengths, text_only)):
            length, rows = max(lengths[row] for row in group), torch.tensor(group, device=batch.input_ids.device)
            text = (
                batch.input_ids[rows, :length],
                None if mask_BT is None else mask_BT[rows, :length],
                batch.targets[rows, :length],
                None if teacher is None else teacher.rows(rows, length),
            )
            if group[0] in place:
                part = memory
                if memory is not None and len(group) < len(place):
                    part = memory.rows(torch.tensor([place[row] for row in group], device=rows.device), length)
                found.append(self._loss(*text, part, inserted_rows(inserted, batch.input_ids, rows)))
            else:
                with torch.no_grad():
                    found.append(self._loss(*text, None, {}))
        return torch.stack([loss for loss, _ in found]).sum(), sum(count for _, count in found)

    def _loss(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor | None,
        targets_BT: Tensor,
        teacher: Teacher | None,
        memory: CrossMemory | None,
        inserted: Inserted,
    ) -> tuple[Tensor, int]:
        hidden_BTD = self.decoder.hidden(ids_BT, mask_BT, memory=memory, inserted=inserted)
        unseen = self.unseen_pairs
        excluded = None if unseen is None else unseen.excluded(ids_BT, targets_BT)
        return frozen_head_loss(hidden_BTD, targets_BT, self.decoder, teacher=teacher, excluded=excluded)

    @torch.no_grad()
    def _teacher(self, batch: Batch) -> Teacher | None:
        text = batch.teacher
        if text is None:
            return None
        hidden_ND = self.decoder.hidden(text.input_ids, text.attention_mask)[text.targets != IGNORE]
        # Answer tokens are the same and in the same order, whatever stands before them.
        row_BT = torch.full_like(batch.targets, -1)
        taught_BT = torch.zeros_like(row_BT, dtype=torch.bool)
        taught_BT[list(batch.taught)] = batch.targets[list(batch.taught)] != IGNORE
        row_BT[taught_BT] = torch.arange(len(hidden_ND), device=row_BT.device)
        return Teacher(hidden_ND, row_BT)

    def generate(self, samples: Sequence[Sample], **options: Any) -> list[str]:
        """Answers to samples without one, in order.

        Args:
            options: those of `generate` of transformers (`num_beams`, `do_sample`, `max_new_tokens`, ...).
        """
        ids = self.generate_ids(samples, **options)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def generate_ids(self, samples: Sequence[Sample], **options: Any) -> list[list[int]]:
        """The same as token ids, each with its end of turn; without one where the tokens did not suffice."""
        batch = self.collate(samples, pad_left=True).to(self.device)
        options = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": self.pad_id} | options
        ids_BT = self.decoder.generate(
            batch.input_ids,
            batch.attention_mask,
            memory=self.memory(batch),
            inserted=self.inserted(batch),
            **options,
        )
        ends = _ids(options["eos_token_id"]) if "eos_token_id" in options else self.ends
        return [_up_to(ends, ids) for ids in ids_BT.tolist()]

    @property
    def ends(self) -> set[int]:
        """The decoder's tokens that end an answer."""
        return _ids(self.decoder.lm.generation_config.eos_token_id)

    def generate_all(self, samples: Iterable[Sample], *, batch_size: int, **options: Any) -> list[str]:
        """Answers to any number of samples, in order; taken from the iterable no sooner than they are needed."""
        texts: list[str] = []
        waiting = iter(samples)
        while part := list(islice(waiting, batch_size)):
            texts += self.generate(part, **options)
        return texts

    def chat(self, messages: Sequence[Message], **options: Any) -> str:
        """The model's answer to a conversation; options as in `generate`.

        Raises:
            UserError: a medium cannot be read, or placeholders and media do not match.
        """
        return self.generate([self.sample(messages)], **options)[0]


def _groups_of(lengths: Sequence[int], rows: Sequence[int]) -> list[list[int]]:
    """`length_groups` of some of the rows, each in order."""
    return [sorted(rows[at] for at in group) for group in length_groups([lengths[row] for row in rows])] if rows else []


def _ids(setting: int | Sequence[int] | None) -> set[int]:
    """Token ids as transformers lets them be given: one, several or none."""
    return {setting} if isinstance(setting, int) else set(setting or ())


def _up_to(ends: Collection[int], ids: list[int]) -> list[int]:
    """Tokens up to and with the first of `ends`; what stands behind is padding."""
    return next((ids[: i + 1] for i, token in enumerate(ids) if token in ends), ids)
