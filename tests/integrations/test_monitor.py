"""The monitor beside training: it changes nothing, says what is there, and speaks up."""

from __future__ import annotations

import itertools
import random
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

from fortifai.errors import InputError
from fortifai.integrations.monitor import CollapseMonitor, Reading
from fortifai.integrations.transformers import ConfidenceTrainer
from tests.tokenizers_made import byte_level

from .page import PAGE, examples
from .tiny import build, furthest, trainer, weights_of

TOKENIZER = byte_level(puts_bos=True)
SIZE = len(TOKENIZER)
PROMPTS = ["the answer", "in", "Paris is the answer in Rome user model"]  # of three lengths
HELD_OUT = ["the answer is Paris in Oslo " * 6, "Rome user model " * 9]
SMALL: dict[str, Any] = {"samples": 8, "tokens": 8}
# each with dropout, which draws from the global random state in every step
GPT = {"vocab_size": SIZE, "n_positions": 128, "resid_pdrop": 0.2, "attn_pdrop": 0.2}
LLAMA = {"vocab_size": SIZE, "max_position_embeddings": 128, "attention_dropout": 0.2}


def rows(count: int = 32) -> list[dict[str, torch.Tensor]]:
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, SIZE, (count, 12)))
    return [{"input_ids": row, "labels": row} for row in ids]


def made(folder: Path, model: Any = None, cls: type[Trainer] = Trainer, **changes: Any) -> Any:
    more = {"processing_class": TOKENIZER, **changes.pop("more", {})}
    model = build("llama", **LLAMA) if model is None else model
    return trainer(cls, folder, model, rows(), more=more, **changes)


def logged(run: Any, key: str = "collapse_entropy") -> list[dict[str, float]]:
    return [entry for entry in run.state.log_history if key in entry]


@pytest.mark.parametrize(
    ("name", "changes", "cls"),
    [("llama", LLAMA, Trainer), ("gpt2", GPT, Trainer), ("llama", LLAMA, ConfidenceTrainer)],
)
def test_training_is_the_same_to_the_last_bit(name, changes, cls, tmp_path):
    def end(monitor: CollapseMonitor | None) -> tuple[Any, ...]:
        model = build(name, **changes)
        frozen = model.get_submodule("model.layers.0" if name == "llama" else "transformer.h.0")
        more = {"threshold": 0.9} if cls is ConfidenceTrainer else {}
        steps = {"more": more, "learning_rate": 0.01, "logging_steps": 2}
        if name == "gpt2":
            # the name it has from transformers 5.23, and before
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)()
        run = made(tmp_path, model, cls, **steps)
        if monitor:
            monitor.attach(run)

        class Frozen(TrainerCallback):
            """One module in evaluation all the time, which train() of the model would end."""

            def __init__(self) -> None:
                self.modes: list[bool] = []

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.modes.append(frozen.training)
                frozen.eval()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                self.modes.append(frozen.training)

        seen = Frozen()
        run.add_callback(seen)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 # as below
        torch.manual_seed(0)
        run.train()
        drawn = np.random.random(3).tolist()  # noqa: NPY002 # the global state is what is asked
        states = (torch.get_rng_state(), drawn, random.getstate())
        losses = [e["loss"] for e in run.state.log_history if "loss" in e]
        settings = (model.generation_config.to_dict(), model.config.to_dict())
        return weights_of(model), states, losses, seen.modes, settings, model.training

    without = end(None)
    monitor = CollapseMonitor(PROMPTS, HELD_OUT, every=3, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        watched = end(monitor)
    assert list(monitor.readings) == [0, 3, 6, 8]
    assert furthest(watched[0], without[0]) == 0
    assert torch.equal(watched[1][0], without[1][0])
    assert watched[1][1:] == without[1][1:]
    assert watched[2:] == without[2:]
    assert len(without[2]) == 4  # no loss is lost where both log at one step


def lonely(model: Any, ids: list[int]) -> np.ndarray:
    """Probabilities of all tokens but the first, of one text alone, without padding or cache."""
    with torch.no_grad():
        p = model(torch.tensor([ids])).logits[0].double().softmax(-1)
    return np.array([p[i, token].item() for i, token in enumerate(ids[1:])])


@pytest.mark.parametrize(("name", "changes"), [("llama", LLAMA), ("gpt2", GPT)])
def test_values_are_those_of_its_samples(name, changes, tmp_path):
    run = made(tmp_path, build(name, **changes), max_steps=1, learning_rate=0.0)
    monitor = CollapseMonitor(PROMPTS, HELD_OUT, every=1, **SMALL).attach(run)
    run.train()
    model = run.model.eval()
    reading, values = monitor.readings[1], logged(run)[-1]
    assert [TOKENIZER.decode(row) for row in reading.written] == monitor.texts
    for i, row in enumerate(reading.written):
        prompt = TOKENIZER(PROMPTS[i % 3])["input_ids"]
        assert prompt[0] == TOKENIZER.bos_token_id
        alone = lonely(model, prompt + row.tolist())[len(prompt) - 1 :]
        # float32 on padded rows and with a cache, against float64 of the same logits
        np.testing.assert_allclose(reading.own[i], alone, rtol=1e-4, atol=1e-7)
    held = []
    for text in HELD_OUT:
        ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        held += [
            lonely(model, [TOKENIZER.bos_token_id, *ids[at : at + 15]])
            for at in range(0, len(ids), 15)
        ]
    assert values["collapse_confidence_held_out"] == pytest.approx(
        np.concatenate(held).mean(), rel=1e-4
    )
    tokens = [row.tolist() for row in reading.written]
    every = list(itertools.chain(*tokens))
    shares = np.array([every.count(token) / len(every) for token in set(every)])
    assert values["collapse_entropy"] == pytest.approx(-(shares * np.log(shares)).sum())
    for n in (2, 3):
        grams = [tuple(row[i : i + n]) for row in tokens for i in range(len(row) - n + 1)]
        assert values[f"collapse_distinct_{n}"] == len(set(grams)) / len(grams)
    own = np.concatenate(reading.own).mean()
    assert values["collapse_confidence_own"] == pytest.approx(own)
    gap = own - values["collapse_confidence_held_out"]
    assert values["collapse_confidence_gap"] == pytest.approx(gap)


def test_repetition_is_that_within_samples():
    a, b = [7, 8, 7, 8, 7, 8, 7], [1, 2, 3, 4, 1, 2]
    p = [np.full(7, 0.5), np.full(6, 0.25)]
    found = Reading([np.array(a), np.array(b)], p, [np.array([0.125])]).measures()
    assert found["repetition"] == pytest.approx((2 / 4 + 0 / 3) / 2)
    assert found["tokens"] == 6.5
    assert found["confidence_gap"] == pytest.approx((7 * 0.5 + 6 * 0.25) / 13 - 0.125)
    empty = Reading([np.array([], int)] * 2, [np.array([])] * 2, [np.array([0.5])]).measures()
    assert np.isnan([empty[name] for name in ("entropy", "distinct_2", "repetition")]).all()
    assert empty["tokens"] == 0


def test_draws_are_of_the_model_at_temperature_1(tmp_path):
    """Whatever the model's own generation settings are: shares of the first token drawn."""
    model = build("llama", **LLAMA)
    model.generation_config.update(top_k=1, do_sample=True, temperature=0.1, max_length=20)
    run = made(tmp_path, model, max_steps=1, learning_rate=0.0)
    monitor = CollapseMonitor(["in"], HELD_OUT, samples=2000, tokens=8).attach(run)
    run.train()
    ids = torch.tensor([TOKENIZER("in")["input_ids"]])
    with torch.no_grad():
        p = run.model.eval()(ids).logits[0, -1].softmax(-1).numpy()
    first = [row[0] if len(row) else 1 for row in monitor.readings[0].written]
    found = np.bincount(first, minlength=SIZE) / 2000
    top = p.argsort()[-10:]
    assert (np.abs(found - p)[top] < 5 * np.sqrt(p[top] / 2000)).all()  # five standard errors
    assert len(set(first)) > 50


def test_ends_of_texts_end_samples(tmp_path):
    model = build("llama", **LLAMA)
    with torch.no_grad():  # bias by a large row: the end is likely from most states
        model.get_output_embeddings().weight[7] *= 5
    model.generation_config.eos_token_id = [7]
    run = made(tmp_path, model, max_steps=1, learning_rate=0.0)
    monitor = CollapseMonitor(PROMPTS, HELD_OUT, samples=32, tokens=8).attach(run)
    run.train()
    written = monitor.readings[0].written
    sizes = [len(row) for row in written]
    assert min(sizes) < 8
    assert all(7 not in row for row in written)
    assert [len(p) for p in monitor.readings[0].own] == sizes


class Repeat(TrainerCallback):
    """After a step the model says one token for ever, whatever it was trained to."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == 2:
            with torch.no_grad():
                model.lm_head.bias[9] = 100.0


def test_a_model_that_repeats_is_told(tmp_path, capsys):
    model = build("phi", vocab_size=SIZE, max_position_embeddings=128)
    run = made(tmp_path, model, learning_rate=1e-6)
    CollapseMonitor(PROMPTS, HELD_OUT, every=2, samples=16, tokens=16).attach(run)
    run.add_callback(Repeat())
    with pytest.warns(UserWarning, match="noise floor") as told:
        run.train()
    found = [re.match(r"step (\d): (\w+) of", str(w.message)) for w in told]
    names = {"entropy", "distinct_2", "distinct_3", "repetition", "confidence_gap"}
    # once each, when it leaves, and not at step 2
    assert sorted((m[1], m[2]) for m in found if m) == sorted(("4", name) for name in names)
    values = logged(run)
    assert [entry["step"] for entry in values] == [0, 2, 4, 6, 8]
    assert values[-1]["collapse_entropy"] == 0
    assert values[-1]["collapse_repetition"] == pytest.approx(12 / 13)
    assert 0 < values[-1]["collapse_cost"] < 1
    out = capsys.readouterr().out
    assert re.search(r"^CollapseMonitor: 5 readings took \d+\.\d s, \d+\.\d % of", out, re.M)
    assert out.count("CollapseMonitor") == 1


def test_a_model_that_stays_as_it_is_is_not_told(tmp_path):
    """Warnings are errors here; other draws of the same model are within the floors."""
    run = made(tmp_path, max_steps=4, learning_rate=0.0)
    monitor = CollapseMonitor(PROMPTS, HELD_OUT, every=1, samples=16, tokens=16).attach(run)
    seeds = itertools.count()

    class Other(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            monitor.seed = next(seeds) + 100

    run.add_callback(Other())
    run.train()
    assert len({tuple(r.written[0]) for r in monitor.readings.values()}) > 1


def test_services_are_told_and_other_processes_do_nothing(tmp_path):
    told = []

    class Service(TrainerCallback):
        """Stands before the monitor, as those of `report_to` do."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            told.append(dict(logs))

    run = made(tmp_path, max_steps=2, more={"callbacks": [Service()]}, learning_rate=0.0)
    monitor = CollapseMonitor(PROMPTS, HELD_OUT, every=2, first=2, **SMALL).attach(run)
    run.train()
    assert sum("collapse_distinct_3" in logs for logs in told) == 1
    assert list(monitor.readings) == [2]
    away = CollapseMonitor(PROMPTS, HELD_OUT, **SMALL).attach(run)
    state = SimpleNamespace(is_world_process_zero=False, global_step=0, max_steps=1)
    away.on_train_begin(run.args, state, run.control)
    away.on_step_end(run.args, state, run.control)
    assert away.readings == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": "the answer"}, "prompts must be a list of texts"),
        ({"prompts": [3]}, "prompts must be a list of texts"),
        ({"held_out": "text"}, "held_out must be a list of texts"),
        ({"every": 0}, "every is 0; give a whole number of at least 1"),
        ({"every": 1.5}, "every is 1.5"),
        ({"first": -1}, "first is -1"),
        ({"samples": 2}, "samples is 2; give a whole number of at least 8"),
        ({"prompts": ["a"] * 9, "samples": 8}, "at least 9"),
        ({"tokens": 4}, "tokens is 4"),
        ({"held_out": ["in"]}, "the held-out text has 1 passages with 1 tokens"),
        ({"held_out": []}, "the held-out text has 0 passages"),
        ({"prompts": ["the answer " * 70]}, "leaves room for 8 more"),
    ],
)
def test_wrong_input_is_told_before_training(given, said, tmp_path):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        CollapseMonitor(**{"prompts": PROMPTS, "held_out": HELD_OUT, **SMALL, **given}).attach(
            made(tmp_path)
        )
    assert "\n" not in str(caught.value)


def test_a_trainer_that_cannot_be_watched_is_told(tmp_path):
    monitor = CollapseMonitor(PROMPTS, HELD_OUT, **SMALL)
    run = made(tmp_path, more={"callbacks": [monitor]})
    with pytest.raises(InputError, match="attach"):
        run.train()
    run.processing_class = None
    with pytest.raises(InputError, match="no tokenizer"):
        monitor.attach(run)
    run = made(tmp_path)
    run.is_fsdp_enabled = True
    with pytest.raises(InputError, match="shards"):
        monitor.attach(run)


def test_what_the_tokenizer_puts_behind_a_text_is_not_continued(tmp_path):
    both = byte_level(puts_bos=True)
    from tokenizers.processors import TemplateProcessing

    both.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    run = made(tmp_path, more={"processing_class": both})
    monitor = CollapseMonitor(PROMPTS, HELD_OUT, **SMALL).attach(run)
    assert [ids[0] for ids in monitor._prompts] == [2, 2, 2]
    assert all(1 not in ids for ids in monitor._prompts + monitor._passages)


def test_the_page(tmp_path):
    (code,) = examples("Watching for collapse")
    names = {"trainer": made(tmp_path, max_steps=1, learning_rate=0.0)}
    names |= {"prompts": PROMPTS, "texts": HELD_OUT}
    model = names["trainer"].model
    model.config.max_position_embeddings = 512
    exec(compile(code, PAGE.name, "exec"), names)
    assert len(logged(names["trainer"])) == 2
