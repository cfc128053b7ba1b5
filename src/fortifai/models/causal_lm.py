"""The family `causal_lm`: a causal language model with its tokenizer.

Samples are one-dimensional streams of token ids, documents separated by the tokenizer's eos.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fortifai.data import tokens
from fortifai.data.tokens import Bos
from fortifai.errors import InputError
from fortifai.lab.budget import Spent
from fortifai.lab.progress import Counted
from fortifai.models import (
    blocks,
    continuations,
    documents,
    generation,
    loading,
    parallel,
    scoring,
    training,
    vllm_engine,
)
from fortifai.models.lora import Adapter
from fortifai.models.options import Greedy, Sample
from fortifai.models.parallel import Team
from fortifai.models.training import FitReport

if TYPE_CHECKING:
    from fortifai.lab.progress import Progress
    from fortifai.models.options import RegenerateOptions, TrainOptions
    from fortifai.weights import AnyWeight

__all__ = ["CausalLM", "FitReport"]

SETTINGS_FILE = "fortifai.json"
BOS_BEFORE: Bos = "never"
"""How models read that were saved before it was written down: they were trained without bos."""


class CausalLM:
    """A causal language model that can be trained, scored and asked to rewrite a corpus.

    Attributes:
        model: The transformers model, in evaluation mode between calls.
        tokenizer: Its tokenizer.
        special: Its special tokens. Every sequence that the model is given begins with
            ``special.bos``, if that is not None.
        device: Where the model is.
        spent: Where it counts the tokens that it trains on, writes, and reads to score.
        block: Window, in tokens, that `log_prob` reads in: that of the last `fit` (kept by
            `save`), before any fit the model's positions, at most 1024.
        written_by: What is to be written down of the engine that last rewrote a text; None where
            that was the model itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        device: torch.device | str | None = None,
        block: int | None = None,
        bos: Bos = "auto",
    ) -> None:
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(chosen)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.spent = Spent()
        self.written_by: dict[str, Any] | None = None
        self._engine: vllm_engine.Engine | None = None
        self.block = block or min(scoring.positions(model), 1024)
        self.bos: Bos = bos
        self.special = tokens.special_tokens(
            tokenizer, model.config, model.generation_config, bos=bos
        )

    @classmethod
    def from_base(
        cls,
        name_or_path: str | Path,
        *,
        dtype: loading.Dtype = "float32",
        device: torch.device | str | None = None,
        bos: Bos = "auto",
    ) -> CausalLM:
        """A pretrained model, from a hub id, a folder or a GGUF file; see `loading.read`.

        Raises:
            InputError: There is none by that name, or it is not whole; see `loading.read`.
        """
        tokenizer, model = loading.read(name_or_path, dtype)
        return cls(model, tokenizer, device=device, bos=bos)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device | str | None = None,
        bos: Bos | None = None,
    ) -> CausalLM:
        """The model that `save` wrote into `folder`, weights in the dtype they were saved in.

        Sequences begin with bos as they did when it was saved, unless `bos` says otherwise.

        Raises:
            InputError: `folder` does not hold one.
        """
        settings = Path(folder) / SETTINGS_FILE
        if not settings.is_file():
            raise InputError(
                f"{folder} holds no saved model ({SETTINGS_FILE} is missing); give a folder that "
                "CausalLM.save wrote, or use CausalLM.from_base"
            )
        saved = json.loads(settings.read_text(encoding="utf-8"))
        loaded = cls.from_base(
            folder,
            dtype=saved["dtype"],
            device=device,
            bos=bos or saved.get("bos", BOS_BEFORE),
        )
        loaded.block = saved["block"]
        return loaded

    def save(self, folder: Path, adapter: tuple[Adapter, Path] | None = None) -> None:
        """Write weights (safetensors), tokenizer and settings into `folder`; no pickle.

        Args:
            folder: Made if it is not there.
            adapter: What this model is, and the folder of the model it was merged into: then it is
                written in place of weights and tokenizer, with the way from `folder` to that one.
        """
        folder = Path(folder)
        if adapter is None:
            loading.write(self.model, self.tokenizer, folder)
        else:
            adapter[0].save(folder, base=adapter[1])
        dtype = str(self.model.dtype).removeprefix("torch.")
        text = json.dumps({"block": self.block, "bos": self.bos, "dtype": dtype}) + "\n"
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")

    def sha256(self) -> str:
        """SHA-256 of weights, configuration and tokenizer; the model's name and place are none."""
        return loading.digest(self.model, self.tokenizer)

    def fit(
        self,
        samples: np.ndarray,
        weight: AnyWeight,
        train: TrainOptions,
        *,
        seed: int,
        workdir: Path,
        select: Callable[[CausalLM], float] | None,
        progress: Progress,
        adapter: Adapter | None = None,
    ) -> FitReport:
        """Train on a token stream from the present weights; see `training.fit`.

        With `train.parallel` in several processes; see `parallel.fit`.
        """
        self.close_engine()
        self._check_known(samples)
        self.block = min(train.block, scoring.positions(self.model))
        if train.parallel is not None:
            report = parallel.fit(
                self, samples, weight, train, seed=seed, workdir=workdir, progress=progress
            )
        else:
            report = training.fit(
                self.model,
                training.Blocks(samples, train.block, self.special.front),
                weight,
                train,
                seed=seed,
                workdir=workdir,
                hooks=training.Hooks(progress, None if select is None else lambda: select(self)),
                adapter=adapter,
            )
        self.spent.trained += report.tokens
        return report

    def regenerate(
        self,
        samples: np.ndarray,
        settings: RegenerateOptions,
        *,
        seed: int,
        progress: Progress,
        workdir: Path | None = None,
        team: Team | None = None,
    ) -> np.ndarray:
        """The stream rewritten, same size and dtype.

        See `blocks.regenerate_blocks` and `documents.regenerate_documents`. An engine starts from
        weights that are written below `workdir` (None: where the system keeps such files), and
        stays until the model is asked for anything else. Where none is asked for, the processes of
        `team` write the same together: see `parallel.regenerate`.
        """
        self._check_known(samples)
        rewrite = (
            blocks.regenerate_blocks
            if settings.mode == "blocks"
            else documents.regenerate_documents
        )
        heard = Counted(progress)
        write = functools.partial(
            rewrite, self.model, samples, settings, self.special, seed=seed, progress=heard
        )
        if settings.engine == "vllm":
            self._engine = vllm_engine.started(
                settings, self.model, self.save, workdir, instead_of=self._engine
            )
            self.written_by = self._engine.record
            out = write(engine=self._engine)
        elif team is not None:
            self.written_by = None
            out = parallel.regenerate(self, samples, settings, team, seed=seed, progress=heard)
        else:
            self.written_by = None
            with self._evaluating():
                out = write()
        self.spent.generated += heard.tokens
        return out

    def close_engine(self) -> None:
        """Close the engine that rewrites, if there is one: its weights and memory."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def log_prob(self, samples: np.ndarray) -> np.ndarray:
        """(n,) float32 log p (nats) of every token of a stream; see `scoring.token_log_prob`."""
        self._check_known(samples)
        self.spent.scored += len(samples)
        with self._evaluating():
            return scoring.token_log_prob(self.model, samples, self.special, block=self.block)

    def log_prob_and_entropy(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`log_prob`, and (n,) float32 entropy (nats) of each token's distribution, in one pass.

        See `scoring.log_prob_and_entropy`.
        """
        self._check_known(samples)
        self.spent.scored += len(samples)
        with self._evaluating():
            return scoring.log_prob_and_entropy(self.model, samples, self.special, block=self.block)

    def window_log_prob(self, windows: np.ndarray) -> np.ndarray:
        """(w, t) token ids -> (w, t - 1) float32 log p of each but the first, given the others.

        Bos stands before each window where the model reads one; then t may be one less than the
        model's positions.
        """
        self._check_known(windows)
        before = len(self.special.front)
        self.spent.scored += windows.size
        with self._evaluating():
            return scoring.window_log_prob(self.model, self._begun(windows))[:, before:]

    def write(
        self,
        prompts: np.ndarray,
        size: int,
        decoding: generation.Decoding,
        *,
        seed: int,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> np.ndarray:
        """Continue prompts by exactly `size` tokens each: (rows, context) ids -> (rows, size).

        Every row draws with random numbers of its own, so the batch size does not choose the
        text; end of text is a token like any other.

        Args:
            prompts: Token ids, all rows of one length; with `size`, and bos where the model reads
                one, they must fit the model.
            size: Tokens to write.
            decoding: Greedy, beam or sample.
            seed: Of the random numbers.
            tick: Told how many of how many rows are done.
        """
        self._check_known(prompts)
        self.spent.generated += len(prompts) * size
        with self._evaluating():
            return generation.continue_rows(
                self.model,
                self._begun(prompts),
                size,
                decoding,
                seed=seed,
                banned=self.special.never_written,
                tick=tick,
            )

    def continuation_log_prob(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """Summed log p (nats) of each (context, continuation)'s continuation, and its tokens.

        In the order given. See `tokens.encode_pairs` for how the texts become tokens and
        `continuations.continuation_log_prob` for how they are batched.

        Raises:
            InputError: A continuation is empty or longer than the model reads.
        """
        limit = scoring.positions(self.model)
        encoded = tokens.encode_pairs(self.tokenizer, pairs, self.special, limit=limit)
        for ids, _ in encoded:
            self._check_known(np.asarray(ids))
        totals = self.sequence_log_prob(encoded)
        return [(total, count) for total, (_, count) in zip(totals, encoded, strict=True)]

    def candidates(self, samples: np.ndarray, count: int) -> np.ndarray:
        """(n, count) likeliest tokens at each place of a stream; see `scoring.candidates`."""
        self._check_known(samples)
        self.spent.scored += len(samples)
        with self._evaluating():
            return scoring.candidates(
                self.model, samples, self.special, block=self.block, count=count
            )

    def document_log_prob(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) float64 mean log p (nats) of the tokens of each document, read by itself.

        What stands before its first token is bos or, for a model that reads none, the end of
        another document. One that is longer than the model reads is read in pieces as long as
        that, each behind bos or the token before it.

        Args:
            documents: Token ids, at least one each.
        """
        pieces, of, step = [], [], self.positions
        for i, document in enumerate(documents):
            self._check_known(document)
            behind = np.concatenate([[self.special.first], document])
            for at in range(0, len(document), step):
                piece = behind[at : at + step + 1].tolist()
                piece[0] = piece[0] if self.special.bos is None else self.special.bos
                pieces.append((piece, len(piece) - 1))
                of.append(i)
        totals = np.bincount(of, weights=self.sequence_log_prob(pieces))
        return totals / [len(document) for document in documents]

    def sequence_log_prob(self, encoded: Sequence[tuple[list[int], int]]) -> list[float]:
        """Summed log p (nats) of the last tokens of token sequences, in the order given.

        Args:
            encoded: Token ids, bos among them where the model reads one, and how many at their
                end are scored; all but the last token must fit the model's positions.
        """
        self.spent.scored += sum(len(ids) for ids, _ in encoded)
        with self._evaluating():
            return continuations.continuation_log_prob(self.model, encoded)

    def write_greedily(self, prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
        """The `size` most probable tokens after each prompt; see `generation.write_apart`.

        Prompts begin with bos where the model reads one.
        """
        banned = self.special.never_written
        self.spent.generated += len(prompts) * size
        with self._evaluating():
            return generation.write_apart(
                self.model, prompts, size, Greedy(kind="greedy"), banned=banned
            )

    def write_answers(
        self,
        prompts: Sequence[Sequence[int]],
        size: int,
        decoding: Sample,
        numbers: np.ndarray,
        *,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[int]]:
        """Sample after prompts of any lengths, until an end; see `generation.write_apart`.

        Args:
            prompts: Token ids, with bos where the model reads one.
            size: Most tokens to write.
            decoding: Sample.
            numbers: (prompts, size) float64 in [0, 1), which choose the text of each.
            tick: Told how many of how many prompts are done.
        """
        special = self.special
        with self._evaluating():
            out = generation.write_apart(
                self.model, prompts, size, decoding, numbers,
                banned=special.never_written, ends=special.ends, tick=tick,
            )  # fmt: skip
        self.spent.generated += sum(map(len, out))
        return out

    @property
    def positions(self) -> int:
        """Longest sequence that the model reads, in tokens."""
        return scoring.positions(self.model)

    def side_by_side(self, length: int) -> int:
        """How many sequences of `length` tokens are written at a time; see `generation`."""
        return generation.side_by_side(self.model, length)

    def encode(self, text: str) -> np.ndarray:
        """(n,) int64 token ids of a text, without any special token; see `tokens.encode`."""
        (found,) = tokens.encode(self.tokenizer, [text])
        return found.ids.astype(np.int64)

    def _begun(self, rows: np.ndarray) -> np.ndarray:
        """(w, t) token ids with bos before each row, where the model reads one."""
        bos = self.special.bos
        return rows if bos is None else np.insert(rows, 0, bos, axis=1)

    def _check_known(self, ids: np.ndarray) -> None:
        tokens.check_known(self.tokenizer, ids, scoring.vocabulary(self.model))

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        self.close_engine()
        training_mode = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training_mode)
