"""`fortifai run` with a base in a folder and LoRA: killed and taken up again, the same bytes."""

import shutil

import pytest
import yaml

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.models import scratch
from tests.commands import fortifai, killed, needs_kill
from tests.test_run import TINY, outcome

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    told = yaml.safe_load(TINY)
    tokenizer = scratch.train_tokenizer(["Ada was born in Rome and painted ships . " * 300], 300)
    model = scratch.build(
        "llama",
        hidden_size=32,
        layers=1,
        heads=2,
        vocab_size=len(tokenizer),
        max_positions=64,
        seed=0,
    )
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    told["family"] = {"kind": "causal_lm", "base": "base"}
    told["train"] |= {"lora": {"r": 4, "dropout": 0.1}}
    told["arms"] = {
        "merged": {},
        "carried": {"train": {"lora": {"carry": True}}},
        "anew": {"init_from": "base"},
    }
    told["baseline"] = "merged"
    (folder / "tiny.yaml").write_text(yaml.safe_dump(told))
    done = fortifai("run", "tiny.yaml", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def last(root, arm):
    return root / "run" / "arms" / arm / "seed-0" / "generation-02" / "model"


def test_only_adapters_are_stored_where_that_is_enough(root):
    for arm, adapter in (("merged", False), ("carried", True), ("anew", True)):
        assert (last(root, arm) / "adapter_model.safetensors").exists() is adapter
        assert (last(root, arm) / "model.safetensors").exists() is not adapter


@pytest.mark.parametrize("arm", ["merged", "carried", "anew"])
def test_every_generation_can_be_audited(root, arm, tmp_path):
    (tmp_path / "text.txt").write_text("Ada was born in Rome and painted ships . " * 300)
    done = fortifai(
        "audit", last(root, arm), "--text", tmp_path / "text.txt", "--prompts", 16, "--tokens", 8
    )
    assert done.returncode in (0, 3), done.stderr


KILLED = """
    import sys
    from pathlib import Path
    from fortifai import configuration
    from fortifai.lab import experiment
    from tests.commands import kills

    root = Path(sys.argv[1])
    resolved = configuration.resolve(configuration.read_raw(str(root / "tiny.yaml"))[0])
    arms = root / "run" / "arms"
    moments = [
        lambda: (arms / "anew" / "seed-0" / "generation-00").exists(),
        lambda: (arms / "carried" / "seed-0" / "generation-01").exists(),
        lambda: (arms / "merged" / "seed-0" / "generation-01").exists(),
    ]
    print(kills(lambda: experiment.run(resolved, root, root / "run", workers=1), moments))
"""


@needs_kill
def test_kill_minus_nine(root, tmp_path):
    for name in ("tiny.yaml", "base"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    assert killed(KILLED, tmp_path) >= 2, "the run was hardly ever interrupted"
    done = fortifai("run", "tiny.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(root / "run")


def test_bfloat16_weights_are_refused_before_work(root):
    told = yaml.safe_load((root / "tiny.yaml").read_text())
    told["family"]["dtype"] = "bfloat16"
    with pytest.raises(InputError, match=r"train.precision to bf16"):
        configuration.resolve(told)
