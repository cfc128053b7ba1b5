"""A threshold that is fitted to the model's own text before each fit."""

from __future__ import annotations

import numpy as np
import pytest

from fortifai.errors import Diverged
from fortifai.lab.progress import Silent
from fortifai.lab.seeds import derive
from fortifai.models.family import CausalLMFamily
from fortifai.models.options import RegenerateOptions, Sample, TrainOptions
from fortifai.weights import Fitted


@pytest.fixture
def family(make, tmp_path):
    base = make(seed=3, sharp=40.0)
    base.save(tmp_path / "base")
    return CausalLMFamily(
        base=tmp_path / "base",
        scratch=lambda seed: make(seed=seed),
        weight=Fitted(rows=5, dropped=0.4),
        train=TrainOptions(epochs=1, learning_rate=1e-3, batch_size=4, block=16),
        regenerate=RegenerateOptions(context=8, new_tokens=8),
        select=None,
        workdir=tmp_path / "trainer",
        special=base.special,
    )


def test_it_is_the_quantile_of_what_the_model_wrote_before_the_fit(family, make, stream):
    model = family.create("base", seed=0)
    told = model.fit(stream, seed=7, progress=Silent())
    # pieces of half of the 64 positions, 5 of the 6 that fit, from the first to the last
    lm = make(seed=3, sharp=40.0)
    prompts = np.stack([stream[int(i * (217 - 32) / 4) :][:32] for i in range(5)])
    own = lm.write(prompts, 32, Sample(kind="sample"), seed=derive(7, "threshold"))
    p = np.exp(lm.window_log_prob(np.concatenate([prompts, own], axis=1))[:, 31:].astype(float))
    assert p.shape == (5, 32)
    assert told["threshold"] == pytest.approx(np.quantile(p, 0.6), rel=1e-5)
    assert (model.spent.generated, model.spent.scored) == (5 * 32, 5 * 64)
    again = model.fit(stream, seed=7, progress=Silent())
    assert again["threshold"] != told["threshold"]  # by the model as it is now


def test_a_model_that_has_learnt_nothing_keeps_all(family, stream):
    model = family.create("scratch", seed=0)
    assert model.fit(stream, seed=7, progress=Silent())["threshold"] == 1.0
    assert model.spent.generated == 0
    assert model.fit(stream, seed=8, progress=Silent())["threshold"] < 1


def test_a_model_that_has_diverged_ends_its_chain(family, stream):
    model = family.create("base", seed=0)
    model.weights()["lm_head.weight"].data.fill_(np.nan)
    with pytest.raises(Diverged, match="log-probabilities are not finite"):
        model.fit(stream, seed=7, progress=Silent())
