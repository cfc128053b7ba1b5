"""Published benchmarks: the numbers of lm-evaluation-harness itself, from local files, offline."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

import lm_eval
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.evals import benchmarks, harness
from fortifai.evals.benchmarks import Benchmark
from fortifai.evals.benchmarks_data import load_rows
from fortifai.lab import experiment
from fortifai.lab.store import read_jsonl
from fortifai.models import scratch
from fortifai.models.causal_lm import CausalLM
from fortifai.report import write_report

HARNESS = Path(lm_eval.tasks.__file__).parent
POSITIONS = 96

# simple_evaluate looks for its own git commit and for the machine's description through tools and
# packages that may warn; none of it concerns the numbers
pytestmark = pytest.mark.filterwarnings("ignore:.*pkg_resources.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Any attempt to reach a network fails the test."""

    def refuse(self, address, *args):
        raise AssertionError(f"the network was asked for: {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def new_model(tokenizer, seed=0, positions=POSITIONS):
    model = scratch.build(
        "llama",
        hidden_size=32,
        layers=2,
        heads=4,
        vocab_size=len(tokenizer),
        max_positions=positions,
        tie_embeddings=False,
        seed=seed,
    )
    with torch.no_grad():
        # nearly uniform logits would make near ties, which rounding alone decides
        model.lm_head.weight *= 40
    return CausalLM(model, tokenizer, device="cpu")


def adapted(lm):
    """The harness's model class on a model in memory."""
    with harness.as_command():
        return harness.Model(lm.model, lm.tokenizer, lm.special, lambda done, total: None)


def evaluated(built, adapter):
    with harness.as_command():
        return harness.evaluate(built, adapter)


WORDS = [
    *("Ada", "who", "Bo", "saw", "was", "born", "in", "Rome", "and", "Oslo", "painted"),
    *("the", "ships", "on", "a", "day", "of", "rain"),
]


def sentence(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=5 + number % 7)) + "."


@pytest.fixture(scope="module")
def tokenizer():
    return scratch.train_tokenizer([sentence(i) for i in range(400)], 320)


@pytest.fixture
def lm(tokenizer):
    return new_model(tokenizer)


def write(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def pairs(start: int, count: int = 8):
    numbers = range(start, start + count)
    return [{"sentence_good": sentence(i), "sentence_bad": sentence(i + 500)} for i in numbers]


@pytest.fixture
def blimp(tmp_path):
    """Two paradigms, in the published files' form."""
    folder = tmp_path / "blimp"
    write(folder / "npi_present_1.jsonl.gz", pairs(0))
    write(folder / "wh_island.jsonl.gz", pairs(100))
    return Benchmark("blimp", data=str(folder), only=("npi_present_1", "wh_island"))


def hellaswag_rows(count=6):
    return [
        {
            "activity_label": "Sailing",
            "ctx_a": " ".join(sentence(i + k) for k in range(1 + i * 2)),
            "ctx_b": "then [title] bo",
            "endings": [sentence(700 + 4 * i + k) for k in range(4)],
            "label": i % 4,
        }
        for i in range(count)
    ]


# --- against the harness itself ---------------------------------------------------------------


def reference(folder: Path, tasks: dict, model: CausalLM, dtype: str = "float32", **settings):
    """What the harness gives on the saved checkpoint, with its own loader, model and batches.

    Of `tasks`, configurations by name, the first is run; the others are groups within it.
    """
    model.save(folder / "checkpoint")
    (folder / "own").mkdir()
    for name, content in tasks.items():
        (folder / "own" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    wanted = ("blimp", "hellaswag", "gsm8k", "mmlu/default", "lambada", "wikitext")
    paths = [str(folder / "own"), *(str(HARNESS / name) for name in wanted)]
    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "checkpoint"), "dtype": dtype},
        tasks=[next(iter(tasks))],
        task_manager=TaskManager(include_defaults=False, include_path=paths),
        device="cpu",
        batch_size=3,
        **settings,
    )


def local(folder: Path, **files) -> dict:
    """A task read by the datasets library from JSON files."""
    named = {split: str(path) for split, path in files.items()}
    kwargs = {"data_files": named, "cache_dir": str(folder / "cache")}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs}


def agree(ours, theirs, on: dict[str, str]) -> int:
    """Every metric, standard error, number and item of `theirs` is in `ours`; how many were."""
    found = {(s.measure, s.on): s for s in ours.scores}
    count = 0
    for name, metrics in theirs["results"].items():
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            own = on.get(name, name)
            family = own.split("_")[0]
            measure = f"{family}.{metric}" + (f".{chosen}" if chosen != "none" else "")
            score = found[measure, own]
            # the same numbers summed in the same order: equal, not close
            assert score.value == value, (name, key)
            stderr = metrics[f"{metric}_stderr,{chosen}"]
            assert score.stderr == (None if stderr == "N/A" else stderr), (name, key)
            assert score.n == metrics["sample_len"]
            count += 1
    for name, samples in theirs["samples"].items():
        own = on.get(name, name)
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(sample[metric], int | float):
                    chosen = sample["filter"]
                    measure = f"{own.split('_')[0]}.{metric}"
                    measure += f".{chosen}" if chosen != "none" else ""
                    (row,) = [
                        r
                        for r in ours.items
                        if (r["task"], r["item"]) == (own, sample["doc_id"])
                        and r["measure"] == measure
                    ]
                    assert row["value"] == sample[metric]
    return count


def test_blimp_is_the_harness_s(blimp, tmp_path, lm):
    """Two paradigms and their mean with its standard error."""
    data = Path(blimp.data)
    members = [
        {"task": f"blimp_{name}", **local(tmp_path, train=data / f"{name}.jsonl.gz")}
        for name in blimp.only
    ]
    mean = [{"metric": "acc", "weight_by_size": False}]
    group = {"group": "own_blimp", "task": members, "aggregate_metric_list": mean}
    theirs = reference(tmp_path, {"own_blimp": group}, lm, limit=5)
    ours = benchmarks.run_benchmarks(lm, [Benchmark("blimp", blimp.data, 5, blimp.only)])
    assert agree(ours, theirs, {"own_blimp": "blimp"}) == 3
    found = {(s.measure, s.on): s for s in ours.scores}
    assert found["blimp.acc", "blimp"].chance == 0.5
    assert found["blimp.acc", "blimp"].n == 10
    assert {s.value for s in ours.scores} - {0.0, 1.0}, "a test in which all is right proves little"


def test_hellaswag_is_the_harness_s(tmp_path, lm):
    """Two metrics of one answer, and contexts that do not fit."""
    path = write(tmp_path / "hellaswag.jsonl", hellaswag_rows())
    own = {
        "include": str(HARNESS / "hellaswag" / "hellaswag.yaml"),
        "task": "own_hellaswag",
        "training_split": None,
        **local(tmp_path, validation=path),
    }
    theirs = reference(tmp_path, {"own_hellaswag": own}, lm)
    benchmark = Benchmark("hellaswag", data=str(path))
    suite = benchmarks.read([benchmark], tmp_path)
    (note,) = suite.check(lm.model, lm.tokenizer, lm.special)
    assert "lose their beginning" in note
    ours = suite.run(lm)
    assert agree(ours, theirs, {"own_hellaswag": "hellaswag"}) == 2
    assert {s.chance for s in ours.scores} == {0.25}
    # the numbers behind the choices too: fp32 sums over at most 96 tokens, in another order
    (built,) = suite.built
    adapter = adapted(lm)
    again = evaluated(built, adapter)["samples"]["hellaswag"]
    for mine, other in zip(again, theirs["samples"]["own_hellaswag"], strict=True):
        assert mine["arguments"] == other["arguments"]
        np.testing.assert_allclose(
            [r[0] for r in mine["filtered_resps"]],
            [r[0] for r in other["filtered_resps"]],
            rtol=1e-5,
            atol=1e-3,
        )


def test_gsm8k_is_the_harness_s(tmp_path, lm):
    """Written answers: few-shot examples drawn with its seed, two filters, prompts cut."""
    folder = tmp_path / "gsm8k"
    for split, count in (("train", 9), ("test", 4)):
        rows = [
            {"question": sentence(i), "answer": f"{sentence(i + 50)}\n#### {i}"}
            for i in range(count)
        ]
        write(folder / f"{split}.jsonl", rows)
    own = {
        "include": str(HARNESS / "gsm8k" / "gsm8k.yaml"),
        "task": "own_gsm8k",
        **local(tmp_path, train=folder / "train.jsonl", test=folder / "test.jsonl"),
    }
    theirs = reference(
        tmp_path, {"own_gsm8k": own}, lm, num_fewshot=2, gen_kwargs={"max_gen_toks": 20}
    )
    benchmark = Benchmark("gsm8k", data=str(folder), num_fewshot=2, max_gen_toks=20)
    suite = benchmarks.read([benchmark], tmp_path)
    assert suite.check(lm.model, lm.tokenizer, lm.special)
    assert agree(suite.run(lm), theirs, {"own_gsm8k": "gsm8k"}) == 2
    (built,) = suite.built
    adapter = adapted(lm)
    again = evaluated(built, adapter)["samples"]["gsm8k"]
    for mine, other in zip(again, theirs["samples"]["own_gsm8k"], strict=True):
        assert mine["arguments"] == other["arguments"]
        assert mine["resps"] == other["resps"]


def mmlu_folder(folder: Path, subjects: dict[str, int], header: bool) -> None:
    for subject, count in subjects.items():
        for split, n in (("dev", 5), ("test", count)):
            path = folder / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as stream:
                out = csv.writer(stream)
                if header:
                    out.writerow(["question", *(f"choice{k}" for k in range(4)), "answer"])
                for i in range(n):
                    answer = i % 4 if header else "ABCD"[i % 4]
                    out.writerow(
                        [sentence(i), *(sentence(90 + 4 * i + k) for k in range(4)), answer]
                    )


@pytest.mark.parametrize("header", [True, False])
def test_mmlu_is_the_harness_s(tmp_path, tokenizer, header):
    """Groups within a group, means weighted by size, few-shot examples, answers of one token."""
    subjects = {"astronomy": 7, "anatomy": 4, "virology": 5}
    lm = new_model(tokenizer, positions=400)
    mmlu_folder(tmp_path / "mmlu", subjects, header)
    members = {}
    for subject, count in subjects.items():
        files = {}
        for split, n in (("dev", 5), ("test", count)):
            rows = [
                {
                    "question": sentence(i),
                    "choices": [sentence(90 + 4 * i + k) for k in range(4)],
                    "answer": i % 4,
                }
                for i in range(n)
            ]
            files[split] = write(tmp_path / "hub" / f"{subject}-{split}.jsonl", rows)
        members[subject] = {"task": f"mmlu_{subject}", **local(tmp_path, **files)}
    mean = [{"metric": "acc", "weight_by_size": True}]
    sciences = [members["astronomy"], members["anatomy"]]
    stem = {"group": "own_stem", "task": sciences, "aggregate_metric_list": mean}
    rest = {"group": "own_other", "task": [members["virology"]], "aggregate_metric_list": mean}
    whole = {
        "group": "own_mmlu",
        "task": ["own_stem", "own_other"],
        "aggregate_metric_list": mean,
    }
    own = {"own_mmlu": whole, "own_stem": stem, "own_other": rest}
    theirs = reference(tmp_path, own, lm, num_fewshot=3)
    asked = Benchmark("mmlu", data="mmlu", num_fewshot=3, only=tuple(subjects))
    suite = benchmarks.read([asked], tmp_path)
    for split, path in files.items():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert suite.rows["mmlu"]["mmlu_virology"][split].to_pylist() == rows
    ours = suite.run(lm)
    names = {"own_mmlu": "mmlu", "own_stem": "mmlu_stem", "own_other": "mmlu_other"}
    assert agree(ours, theirs, names) == 6
    assert {(s.direction, s.unit, s.chance) for s in ours.scores} == {("higher", "share", 0.25)}


@pytest.mark.long
def test_the_published_files(real_data, tmp_path):
    """The real files of all four, read as they are published, against the harness's own reading."""
    names = ["adjunct_island", "principle_A_case_1"]
    texts = []
    for name in names:
        with gzip.open(real_data / "blimp" / f"{name}.jsonl.gz", "rt") as stream:
            texts += [json.loads(line)["sentence_good"] for line in stream]
    lm = new_model(scratch.train_tokenizer(texts, 600), positions=128)
    members = [
        {"task": f"blimp_{n}", **local(tmp_path, train=real_data / "blimp" / f"{n}.jsonl.gz")}
        for n in names
    ]
    mean = [{"metric": "acc", "weight_by_size": False}]
    group = {"group": "own_blimp", "task": members, "aggregate_metric_list": mean}
    hella = real_data / "hellaswag" / "validation-1000.jsonl"
    own = {
        "include": str(HARNESS / "hellaswag" / "hellaswag.yaml"),
        "task": "own_hellaswag",
        "training_split": None,
        **local(tmp_path, validation=hella),
    }
    subject = []
    with (real_data / "mmlu" / "test" / "virology_test.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            choices = [row[f"choice{k}"] for k in range(4)]
            answer = int(row["answer"])
            subject.append({"question": row["question"], "choices": choices, "answer": answer})
    examples = write(tmp_path / "dev.jsonl", subject[:1])  # not used: no few-shot examples
    test = write(tmp_path / "test.jsonl", subject)
    mmlu = {"task": "mmlu_virology", **local(tmp_path, dev=examples, test=test)}
    whole = {"group": "own_all", "task": ["own_blimp", "own_hellaswag", mmlu]}
    theirs = reference(
        tmp_path, {"own_all": whole, "own_blimp": group, "own_hellaswag": own}, lm, limit=12
    )
    asked = [
        Benchmark("blimp", str(real_data / "blimp"), 12, tuple(names)),
        Benchmark("hellaswag", str(hella), 12),
        Benchmark("mmlu", str(real_data / "mmlu"), 12, ("virology",)),
    ]
    ours = benchmarks.run_benchmarks(lm, asked)
    assert agree(ours, theirs, {"own_blimp": "blimp", "own_hellaswag": "hellaswag"}) == 6


@pytest.mark.long
def test_the_published_sizes(real_data, tmp_path):
    suite = benchmarks.read(
        [
            Benchmark("blimp", str(real_data / "blimp")),
            Benchmark("gsm8k", str(real_data / "gsm8k")),
            Benchmark("mmlu", str(real_data / "mmlu"), num_fewshot=5),
        ],
        tmp_path,
    )
    # the sizes that their authors give: 67 x 1,000; 1,319; 14,042 questions of 57 subjects
    told = ("blimp (tasks: 67, items: 67,000)", "gsm8k (tasks: 1, items: 1,319)")
    assert suite.facts == ", ".join([*told, "mmlu (tasks: 57, items: 14,042)"])


def test_half_precision_is_the_harness_s(blimp, tmp_path, tokenizer):
    """The harness rounds every log p to bfloat16; a sum made better would be another number."""
    lm = new_model(tokenizer, seed=1)
    lm = CausalLM(lm.model.to(torch.bfloat16), tokenizer, device="cpu")
    lm.save(tmp_path / "half")
    files = local(tmp_path, train=Path(blimp.data) / "wh_island.jsonl.gz")
    group = {"group": "own", "task": [{"task": "blimp_wh_island", **files}]}
    theirs = reference(tmp_path, {"own": group}, lm, dtype="bfloat16")
    suite = benchmarks.read([Benchmark("blimp", blimp.data, only=("wh_island",))], tmp_path)
    adapter = adapted(lm)
    ours = evaluated(suite.built[0], adapter)["samples"]["blimp_wh_island"]
    for mine, other in zip(ours, theirs["samples"]["blimp_wh_island"], strict=True):
        for (a, _), (b, _) in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
            # sums of the harness are themselves bfloat16; batches of another width may round the
            # last of its 8 bits the other way
            assert a == torch.tensor(a).bfloat16().item()
            assert a == pytest.approx(b, rel=2**-6)


@pytest.mark.long
def test_the_harness_s_command_gives_the_same_numbers(real_data, tmp_path):
    """`lm_eval` itself, in a process of its own, on the checkpoint and a local data file."""
    hella = real_data / "hellaswag" / "validation-1000.jsonl"
    lm = new_model(scratch.train_tokenizer([hella.read_text()], 500), positions=256)
    lm.save(tmp_path / "checkpoint")
    own = {
        "include": str(HARNESS / "hellaswag" / "hellaswag.yaml"),
        "task": "own_hellaswag",
        "training_split": None,
        **local(tmp_path, validation=hella),
    }
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_hellaswag.yaml").write_text(yaml.safe_dump(own))
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained={tmp_path / 'checkpoint'},dtype=float32"),
        *("--tasks", "own_hellaswag", "--include_path", str(tmp_path / "own"), "--limit", "8"),
        *("--output_path", str(tmp_path / "out.json")),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("out*.json")
    theirs = json.loads(path.read_text())["results"]["own_hellaswag"]
    ours = benchmarks.run_benchmarks(lm, [Benchmark("hellaswag", str(hella), 8)])
    found = {s.measure: s for s in ours.scores}
    for metric in ("acc", "acc_norm"):
        assert found[f"hellaswag.{metric}"].value == theirs[f"{metric},none"]
        assert found[f"hellaswag.{metric}"].stderr == theirs[f"{metric}_stderr,none"]


@pytest.mark.long
def test_other_kinds_of_task(tmp_path, tokenizer):
    """A last word to be guessed (is it what greedy decoding writes?) and texts read whole."""
    lm = new_model(tokenizer)
    words = write(tmp_path / "lambada.jsonl", [{"text": sentence(i)} for i in range(5)])
    pages = [{"page": "\n".join(sentence(k) for k in range(i, i + 30))} for i in range(3)]
    page = write(tmp_path / "wikitext.jsonl", pages)
    # words that the model does write: without them nothing would be greedy
    adapter = adapted(lm)
    ids = lm.tokenizer(sentence(3)).input_ids
    out = lm.model.generate(torch.tensor([ids]), max_new_tokens=1, do_sample=False)
    assert adapter.max_length == POSITIONS
    greedy = lm.tokenizer.decode(out[0, len(ids) :])
    if greedy.strip() and greedy.startswith(" ") and " " not in greedy.strip():
        write(words, [{"text": sentence(i)} for i in range(5)] + [{"text": sentence(3) + greedy}])
    own = {
        "own_lambada": {
            "include": str(HARNESS / "lambada" / "lambada_openai.yaml"),
            "task": "own_lambada",
            **local(tmp_path, test=words),
        }
    }
    theirs = reference(tmp_path, own, lm)
    ours = benchmarks.run_benchmarks(lm, [Benchmark("lambada_openai", str(words))])
    found = {s.measure.split(".")[1]: s for s in ours.scores}
    told = theirs["results"]["own_lambada"]
    assert found["acc"].value == told["acc,none"]
    # a mean of log p in another order of sums, through exp
    assert found["perplexity"].value == pytest.approx(told["perplexity,none"], rel=1e-4)
    assert found["perplexity"].stderr == pytest.approx(told["perplexity_stderr,none"], rel=1e-3)
    assert found["perplexity"].direction == "lower"
    (tmp_path / "second").mkdir()
    own = {
        "own_wikitext": {
            "include": str(HARNESS / "wikitext" / "wikitext.yaml"),
            "task": "own_wikitext",
            "training_split": None,
            "validation_split": None,
            **local(tmp_path, test=page),
        }
    }
    theirs = reference(tmp_path / "second", own, lm)["results"]["own_wikitext"]
    ours = benchmarks.run_benchmarks(lm, [Benchmark("wikitext", str(page))])
    found = {s.measure.split(".")[1]: s for s in ours.scores}
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert found[metric].value == pytest.approx(theirs[f"{metric},none"], rel=1e-5)
        assert found[metric].stderr is None
        assert found[metric].direction == "lower"


# --- what is left as it was -------------------------------------------------------------------


def test_nothing_of_the_process_is_changed(blimp, lm, capfd):
    tokenizer, state = lm.tokenizer, random.getstate()
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    weights = {k: v.clone() for k, v in lm.model.state_dict().items()}
    before = tokenizer.backend_tokenizer.to_str()
    benchmarks.run_benchmarks(lm, [blimp])
    assert random.getstate() == state
    with harness.as_command():  # the seeds that its command sets, for tasks that draw
        assert random.random() == random.Random(0).random()
        assert np.random.random() == np.random.RandomState(1234).random_sample()  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert all(torch.equal(v, weights[k]) for k, v in lm.model.state_dict().items())
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not datasets.are_progress_bars_disabled()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_the_same_suite_again_and_progress(blimp, tmp_path, lm):
    """Few-shot examples are drawn anew each time, alike; the ticks end at the total."""
    mmlu_folder(tmp_path / "mmlu", {"astronomy": 5}, header=True)
    asked = [
        Benchmark("mmlu", str(tmp_path / "mmlu"), num_fewshot=2, only=("astronomy",)),
        blimp,
    ]
    suite = benchmarks.read(asked, tmp_path)
    ticks = []
    first = suite.run(lm, tick=lambda done, total: ticks.append((done, total)))
    assert ticks[-1][0] == ticks[-1][1] > 0
    assert all(a <= b for a, b in ticks)
    assert suite.run(lm) == first
    suite.save(tmp_path / "kept")
    for path in (tmp_path / "mmlu").rglob("*.csv"):
        path.unlink()
    assert benchmarks.Suite.load(asked, tmp_path / "kept").run(lm) == first


# --- cache ------------------------------------------------------------------------------------


class Unasked(CausalLM):
    """Must not be asked."""

    def sequence_log_prob(self, encoded, tick=lambda done, total: None):
        raise AssertionError("the result is known")


def test_results_are_known_by_what_they_come_from(blimp, tmp_path, tokenizer, lm):
    cache = tmp_path / "cache"
    suite = benchmarks.read([blimp], tmp_path)
    first = suite.run(lm, cache=cache)
    assert len(list(cache.iterdir())) == 1
    # the same weights under another name, loaded from another place
    lm.save(tmp_path / "elsewhere")
    same = CausalLM.load(tmp_path / "elsewhere", device="cpu")
    assert (
        benchmarks.read([blimp], tmp_path).run(
            Unasked(same.model, same.tokenizer, device="cpu"), cache=cache
        )
        == first
    )

    def asked(model, benchmark):
        before = len(list(cache.iterdir()))
        benchmarks.run_benchmarks(model, [benchmark], cache=cache)
        return len(list(cache.iterdir())) - before

    assert asked(lm, blimp) == 0
    with torch.no_grad():
        lm.model.lm_head.weight[0, 0] += 1e-3
    assert asked(lm, blimp) == 1, "another weight"
    assert asked(lm, Benchmark("blimp", blimp.data, 3, blimp.only)) == 1, "another limit"
    assert asked(lm, Benchmark("blimp", blimp.data, None, blimp.only[:1])) == 1, "other tasks"
    write(Path(blimp.data) / "wh_island.jsonl.gz", pairs(101))
    assert asked(lm, blimp) == 1, "other items in a file of the same name"
    other = scratch.train_tokenizer([sentence(i) for i in range(300, 600)], 320)
    renamed = CausalLM(lm.model, other, device="cpu")
    assert asked(renamed, blimp) == 1, "another tokenizer"


def test_a_broken_cache_is_computed_again(blimp, tmp_path, lm):
    suite = benchmarks.read([blimp], tmp_path)
    first = suite.run(lm, cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_text()
    for broken in ("", whole[: len(whole) // 2], "[]", '{"scores": [{}], "items": {}}'):
        path.write_text(broken)
        assert suite.run(lm, cache=tmp_path / "cache") == first
        assert path.read_text() == whole


# --- bad input --------------------------------------------------------------------------------


def fault(*asked, root=Path(), lm=None):
    def read_and_check():
        suite = benchmarks.read(asked, root)
        if lm is not None:
            suite.check(lm.model, lm.tokenizer, lm.special)

    with pytest.raises(InputError) as caught:
        read_and_check()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.long  # the harness reads all its tasks
def test_a_folder_that_is_read_alone_has_what_all_have():
    """A task's file and class are the same, and of a group or a tag all members are there."""
    every = harness._tasks_in("").task_index
    alone = {name: harness._manager(name) for name in every}
    alone = {name: manager.task_index for name, manager in alone.items()}
    alone = {name: index for name, index in alone.items() if index is not every}
    assert len(alone) > 5000
    assert {"lambada_openai", "arc_easy", "mmlu", "blimp", "mmlu_pro_math"} <= alone.keys()
    for name, index in alone.items():
        assert index[name].kind is every[name].kind
        assert index[name].yaml_path == every[name].yaml_path
        assert index[name].tags == every[name].tags
        members = (every[name].cfg or {}).get("task", [])
        named = [m for m in members if isinstance(m, str)] if isinstance(members, list) else []
        assert {m for m in named if m in every} <= index.keys()


def test_unknown_names_get_the_nearest(tmp_path, monkeypatch):
    small = harness._manager("hellaswag")
    monkeypatch.setattr(harness, "_manager", lambda name: small)
    assert "did you mean 'hellaswag'?" in fault(Benchmark("helaswag", "x.jsonl"))
    monkeypatch.undo()
    said = fault(Benchmark("mmlu", "x", only=("astronmy",)))
    assert "'astronmy'" in said
    assert "did you mean 'astronomy'?" in said
    assert "did you mean 'npi_present_1'?" in fault(Benchmark("blimp", "x", only=("npi_presnt_1",)))
    assert "single task" in fault(Benchmark("hellaswag", "x", only=("validation",)))


def test_groups_and_tasks_within_a_benchmark():
    """`only` takes groups and tasks, by short or full name, and keeps the groups above them."""
    built = harness.find(Benchmark("mmlu", None, only=("stem", "mmlu_philosophy")))
    names = set(built.tasks)
    assert {"mmlu_astronomy", "mmlu_philosophy"} < names
    assert not {"mmlu_virology", "mmlu_world_religions"} & names
    # as many as the harness's own group has, and one of the humanities
    whole = TaskManager(include_defaults=False, include_path=str(HARNESS / "mmlu" / "default"))
    assert len(names) == 1 + len(whole.task_index["mmlu_stem_tasks"].tags)
    assert set(built.groups) == {"mmlu", "mmlu_stem", "mmlu_humanities"}
    assert built.groups["mmlu"].child_names == ["mmlu_stem", "mmlu_humanities"]
    assert built.groups["mmlu_humanities"].child_names == ["mmlu_philosophy"]


def test_files_that_are_missing_or_of_something_else(tmp_path, blimp):
    rows = hellaswag_rows()
    assert "no file or folder" in fault(Benchmark("hellaswag", "nowhere.jsonl"), root=tmp_path)
    write(tmp_path / "other.jsonl", [{"text": "prose"}])
    said = fault(Benchmark("hellaswag", "other.jsonl"), root=tmp_path)
    assert "item 1" in said
    assert "activity_label" in said
    assert "the fields text" in said
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty" in fault(Benchmark("hellaswag", "empty.jsonl"), root=tmp_path)
    (tmp_path / "blank.jsonl").write_text("\n")
    assert "is empty" in fault(Benchmark("hellaswag", "blank.jsonl"), root=tmp_path)
    (tmp_path / "notes.txt").write_text("prose")
    assert "no known format" in fault(Benchmark("hellaswag", "notes.txt"), root=tmp_path)
    # the test split as published has no labels
    write(tmp_path / "unlabelled.jsonl", [row | {"label": ""} for row in rows])
    assert "item 1" in fault(Benchmark("hellaswag", "unlabelled.jsonl"), root=tmp_path)
    write(tmp_path / "label.jsonl", [*rows[:2], rows[2] | {"label": 4}])
    assert "item 3" in fault(Benchmark("hellaswag", "label.jsonl"), root=tmp_path)
    said = fault(Benchmark("blimp", blimp.data))
    assert "no file for blimp_adjunct_island" in said
    assert "only" in said
    assert "one file" in fault(Benchmark("blimp", str(tmp_path / "other.jsonl")))
    write(tmp_path / "gsm8k.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    said = fault(Benchmark("gsm8k", "gsm8k.jsonl"), root=tmp_path)
    assert "few-shot examples from the split 'train'" in said
    said = fault(Benchmark("gsm8k", {"test": "gsm8k.jsonl", "tarin": "x"}), root=tmp_path)
    assert "did you mean 'train'?" in said
    assert "no file for the split 'train'" in fault(
        Benchmark("gsm8k", {"test": "gsm8k.jsonl"}), root=tmp_path
    )
    mmlu_folder(tmp_path / "mmlu", {"virology": 3}, header=False)
    path = tmp_path / "mmlu" / "test" / "virology_test.csv"
    path.write_text(path.read_text().replace(",B", ",E"))
    assert "item 2" in fault(Benchmark("mmlu", "mmlu", only=("virology",)), root=tmp_path)
    path.write_text("a,b,c\n1,2\n")
    assert "row 2" in fault(Benchmark("mmlu", "mmlu", only=("virology",)), root=tmp_path)


def saved_and_loaded(suite, asked, folder):
    before = suite.fingerprint
    suite.save(folder)
    again = benchmarks.Suite.load(asked, folder)
    assert again.rows == suite.rows  # tables, types and all
    assert again.fingerprint == before
    (task,) = again.built[0].tasks.values()
    return list(task.task_docs)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_fields_that_only_some_items_have(tmp_path, kind):
    """Absent and null are None for the task, however deep and in whichever row."""
    rows = hellaswag_rows()[:4]
    more = [{}, {"split_type": "zeroshot"}, {"split_type": None, "meta": {"a": 1}}]
    more += [{"meta": {"b": [{"c": "x"}, {}]}, "split_type": "indomain"}]
    rows = [row | extra for row, extra in zip(rows, more, strict=True)]
    path = tmp_path / f"h.{kind}"
    if kind == "jsonl":
        write(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:  # PyArrow too takes the fields of the first row for those of all
        whole = [{"split_type": None, "meta": None} | row for row in rows]
        pq.write_table(pa.Table.from_pylist(whole), path)
    asked = [Benchmark("hellaswag", path.name)]
    docs = saved_and_loaded(benchmarks.read(asked, tmp_path), asked, tmp_path / "saved")
    assert [doc["split_type"] for doc in docs] == [None, "zeroshot", None, "indomain"]
    assert [doc["meta"] and doc["meta"]["a"] for doc in docs] == [None, None, 1, None]
    assert docs[3]["meta"]["b"] == [{"c": "x"}, {"c": None}]


MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)
UTC = datetime.datetime(2026, 1, 2, 2, 0, tzinfo=datetime.UTC)
PERIOD = datetime.timedelta(days=-2, microseconds=7)
ODD = {
    "timestamp": (pa.timestamp("us"), MOMENT),
    "nanoseconds": (pa.timestamp("ns"), MOMENT),
    # 3 o'clock there
    "zone": (pa.timestamp("s", tz="Europe/Berlin"), UTC),
    "date": (pa.date32(), MOMENT.date()),
    "time": (pa.time64("us"), MOMENT.time()),
    "duration": (pa.duration("ns"), PERIOD),
    "decimal": (pa.decimal128(9, 2), decimal.Decimal("1.50")),
    "bytes": (pa.binary(), b"\x00\xff"),
    "nested": (pa.struct([("d", pa.list_(pa.date32()))]), {"d": [MOMENT.date()]}),
}


@pytest.mark.parametrize("name", ODD)
def test_values_that_json_has_no_form_for(tmp_path, name):
    kind, value = ODD[name]
    rows = hellaswag_rows()[:3]
    table = pa.Table.from_pylist(rows).append_column("odd", pa.array([value, None, value], kind))
    pq.write_table(table, tmp_path / "h.parquet")
    asked = [Benchmark("hellaswag", "h.parquet")]
    docs = saved_and_loaded(benchmarks.read(asked, tmp_path), asked, tmp_path / "saved")
    assert [doc["odd"] for doc in docs] == [value, None, value]
    assert isinstance(docs[0]["odd"], type(value))


def test_values_that_tasks_cannot_read_are_told(tmp_path):
    rows = hellaswag_rows()[:2]
    odd = pa.array([[("k", "v")]] * 2, pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.Table.from_pylist(rows).append_column("odd", odd), tmp_path / "h.parquet")
    said = fault(Benchmark("hellaswag", "h.parquet"), root=tmp_path)
    assert "does not hold what hellaswag needs" in said
    assert "map<string, string" in said


def test_items_that_an_earlier_version_saved(tmp_path):
    """One row an item, as JSON, without the fields that it lacks."""
    rows = [json.dumps({"a": 1}), json.dumps({"b": 2})]
    old = pa.table({"task": ["t", "t"], "split": ["s", "s"], "row": rows})
    pq.write_table(old, tmp_path / "x.parquet")
    whole = [{"a": 1, "b": None}, {"a": None, "b": 2}]
    assert load_rows(tmp_path / "x.parquet")["t"]["s"].to_pylist() == whole


def test_fields_of_several_kinds_are_told(tmp_path):
    rows = hellaswag_rows()[:3]
    several = ([1, "a", None], [None, 2**70, 1], [[1], {"a": 1}, None], [{"a": 1}, {"a": "x"}, {}])
    for odd in several:
        write(tmp_path / "h.jsonl", [r | {"odd": o} for r, o in zip(rows, odd, strict=True)])
        said = fault(Benchmark("hellaswag", "h.jsonl"), root=tmp_path)
        assert "the field 'odd' is not of one kind in all items" in said
    (tmp_path / "t.csv").write_text("goal,sol1,sol1,label\na,b,c,0\n")
    assert "two columns 'sol1'" in fault(Benchmark("hellaswag", "t.csv"), root=tmp_path)


def test_files_of_items_in_a_folder_whatever_their_suffix(tmp_path, blimp):
    names = [f"{name}.jsonl.gz" for name in blimp.only]
    plain = benchmarks.read([blimp], tmp_path).rows
    for ending in (".JSONL.GZ", ".ndjson", ".json", ".parquet"):
        folder = tmp_path / ending
        folder.mkdir()
        for name in names:
            packed = (Path(blimp.data) / name).read_bytes()
            rows = [json.loads(x) for x in gzip.decompress(packed).decode().split("\n") if x]
            path = folder / name.replace(".jsonl.gz", ending)
            if ending == ".parquet":
                pq.write_table(pa.Table.from_pylist(rows), path)
            elif ending == ".JSONL.GZ":
                path.write_bytes(packed)
            elif ending == ".json":
                path.write_text(json.dumps(rows))
            else:
                path.write_text("\n".join(map(json.dumps, rows)))
        asked = Benchmark("blimp", str(folder), None, blimp.only)
        assert benchmarks.read([asked], tmp_path).rows == plain


def test_fields_that_only_the_harness_knows(tmp_path, lm):
    """Of a task without a check of ours, what its own code trips over is told in one sentence."""
    good = {"goal": "to sail", "sol1": "a ship", "sol2": "a train", "label": 0}
    write(tmp_path / "good.jsonl", [good, good | {"label": 1}])
    ours = benchmarks.run_benchmarks(lm, [Benchmark("piqa", str(tmp_path / "good.jsonl"))])
    assert [(s.on, s.n, s.chance) for s in ours.scores] == [("piqa", 2, 0.5)] * 2
    write(tmp_path / "bad.jsonl", [{"prose": "to sail"}])
    said = fault(Benchmark("piqa", str(tmp_path / "bad.jsonl")))
    assert "does not hold what piqa needs" in said
    assert "goal" in said


def test_settings_that_are_not_for_the_task(tmp_path, blimp, lm):
    path = str(write(tmp_path / "hellaswag.jsonl", hellaswag_rows()))
    assert "without examples" in fault(Benchmark("blimp", blimp.data, None, blimp.only, 3))
    assert "has the model write nothing" in fault(Benchmark("hellaswag", path, max_gen_toks=9))
    assert "split 'train'" in fault(Benchmark("hellaswag", path, num_fewshot=1))
    asked = Benchmark("hellaswag", path, apply_chat_template=True)
    assert "no chat template" in fault(asked, lm=lm)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"limit": 0}, "limit is 0; give a whole number, 1 or more"),
        ({"limit": -1}, "limit is -1;"),
        ({"limit": 2.5}, "limit is 2.5;"),
        ({"num_fewshot": -2}, "num_fewshot is -2; give a whole number, 0 or more"),
        ({"num_fewshot": True}, "num_fewshot is True;"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0; give a whole number, 1 or more"),
        ({"only": "stem"}, "only is 'stem'; give a tuple, ('stem',)"),
        ({"data": ""}, "data is ''; name a file"),
        ({"data": {}}, "data is {}; name a file"),
        ({"data": {"test": 3}}, "data is {'test': 3}; name a file"),
        ({"data": Path("x")}, "as strings"),
    ],
)
def test_settings_that_are_none_are_refused_from_python(settings, words):
    with pytest.raises(InputError) as caught:
        Benchmark("mmlu", **({"data": "x"} | settings))
    assert str(caught.value).startswith(f"benchmarks.mmlu.{next(iter(settings))} is ")
    assert words in str(caught.value)


def test_what_does_not_fit_the_model(tmp_path, lm, tokenizer):
    path = write(tmp_path / "gsm8k.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    said = fault(Benchmark("gsm8k", str(path), num_fewshot=0), lm=lm)
    assert "up to 256 tokens" in said
    assert "max_gen_toks" in said
    long = hellaswag_rows(1)[0] | {"endings": [" ".join(map(sentence, range(40)))] * 4}
    path = write(tmp_path / "long.jsonl", [long])
    assert "96 at most" in fault(Benchmark("hellaswag", str(path)), lm=lm)


def test_weights_that_are_not_finite(blimp, lm):
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        benchmarks.run_benchmarks(lm, [blimp])


def test_without_the_harness(monkeypatch, blimp):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "fortifai[benchmarks]" in fault(blimp)


def test_the_hub_is_asked_only_if_the_yaml_says_so(tmp_path, monkeypatch, lm):
    asked = []

    def load(path, name=None, **_):
        asked.append((path, name))
        rows = [{"sentence_good": sentence(1), "sentence_bad": sentence(2)}] * 3
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(TypeError, match="data"):
        Benchmark("blimp")  # that it is to be fetched must be said
    hub = Benchmark("blimp", None, only=("npi_present_1",))
    ours = benchmarks.run_benchmarks(lm, [hub])
    assert asked == [("nyu-mll/blimp", "npi_present_1")]
    assert {s.n for s in ours.scores} == {3}

    def refuse(path, name=None, **_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    said = fault(hub)
    assert "no route to host" in said
    assert "local files" in said


@pytest.mark.long  # the harness reads all its tasks
def test_tasks_with_code_of_their_own(tmp_path, monkeypatch, tokenizer):
    """They fetch what they read, so local files cannot stand in."""
    said = fault(Benchmark("squad_completion", "x.jsonl"), root=tmp_path)
    assert "code of its own" in said
    row = {"title": "t", "context": sentence(1), "text": "Ada", "value": "saw", "doc_id": "0"}
    rows = datasets.DatasetDict({"validation": datasets.Dataset.from_list([row, row])})
    monkeypatch.setattr("datasets.load_dataset", lambda **_: rows)
    suite = benchmarks.read([Benchmark("squad_completion", None)], tmp_path)
    assert suite.facts == "squad_completion (tasks: 1, items: 2)"
    (task,) = suite.built[0].tasks.values()
    assert type(task).__name__ == "SQUADCompletion"


# --- in a run ---------------------------------------------------------------------------------

TINY = """
name: tiny
generations: 2
seeds: [0]
baseline: ce
corpus: {kind: bios, people: 40, phrasings: 2}
splits: {tokens: 512, held_out_tokens: 256}
family:
  kind: causal_lm
  scratch: {hidden_size: 32, layers: 1, heads: 2, vocab_size: 400, max_positions: 96}
train: {epochs: 1, learning_rate: 1.0e-3, batch_size: 4, block: 32}
regenerate: {context: 16, new_tokens: 16}
benchmarks:
  hellaswag: {data: items/hellaswag.jsonl, limit: 5}
arms:
  ce: {}
"""


def resolved(*changes):
    return configuration.resolve(configuration.apply_set(yaml.safe_load(TINY), changes))


@pytest.mark.parametrize("sums_suffice", [True, False])
def test_answers_of_one_text_that_begin_at_other_places(lm, sums_suffice):
    """The harness reads such answers once, and with its cache all but the longest wrongly."""
    adapter = adapted(lm)
    adapter.sums_suffice = sums_suffice
    asked = [("Ada saw", " Rome"), ("Ada", " saw Rome"), ("Ada", " saw")]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=one, idx=0) for one in asked
    ]
    with harness.as_command():
        together = [value for value, _ in adapter.loglikelihood(requests)]
        alone = [adapter.loglikelihood([one])[0][0] for one in requests]
    assert together == pytest.approx(alone, abs=1e-4)  # float32, in other batches
    # the parts of a text make the whole
    assert alone[1] == pytest.approx(alone[2] + alone[0], abs=1e-4)


@pytest.mark.long
def test_a_run_measures_every_generation(tmp_path):
    """The scores of a run are the harness's on the checkpoint that the run kept."""
    path = write(tmp_path / "items" / "hellaswag.jsonl", hellaswag_rows())
    experiment.run(resolved(), tmp_path, tmp_path / "run", workers=1)
    folder = tmp_path / "run" / "arms" / "ce" / "seed-0" / "generation-01"
    rows = {
        (s["measure"], s["on"]): s
        for s in read_jsonl(folder / "scores.jsonl")
        if s["measure"].startswith("benchmark.")
    }
    own = {
        "include": str(HARNESS / "hellaswag" / "hellaswag.yaml"),
        "task": "own_hellaswag",
        "training_split": None,
        **local(tmp_path, validation=path),
    }
    last = CausalLM.load(folder / "model", device="cpu")
    theirs = reference(tmp_path, {"own_hellaswag": own}, last, limit=5)["results"]["own_hellaswag"]
    for metric in ("acc", "acc_norm"):
        row = rows[f"benchmark.hellaswag.{metric}", "hellaswag"]
        assert row["value"] == theirs[f"{metric},none"]
        assert row["stderr"] == theirs[f"{metric}_stderr,none"]
        assert row["n"] == 5
    assert (folder / "benchmarks.parquet").is_file()
    figure = write_report([tmp_path / "run"]).parent / "figures" / "published-benchmarks.svg"
    assert "hellaswag" in figure.read_text()
    assert "truncated" not in figure.read_text()
    # a damaged generation is done again without the source file, and comes out the same
    before = (folder / "scores.jsonl").read_bytes()
    kept = load_rows(tmp_path / "run" / "shared" / "benchmarks" / "hellaswag.parquet")
    assert kept["hellaswag"]["validation"].to_pylist() == hellaswag_rows()
    (folder / "scores.jsonl").write_text("")
    experiment.run(resolved(), tmp_path, tmp_path / "run", workers=1)
    assert (folder / "scores.jsonl").read_bytes() == before
    # other items are another run
    write(path, hellaswag_rows(7))
    with pytest.raises(InputError, match="have changed"):
        experiment.run(resolved(), tmp_path, tmp_path / "run", workers=1)


def test_what_the_yaml_may_say():
    def told(*changes):
        with pytest.raises(InputError) as caught:
            resolved(*changes)
        return str(caught.value)

    assert "exactly one of data" in told("benchmarks={blimp: {}}")
    assert "exactly one of data" in told("benchmarks={blimp: {data: x, hub: true}}")
    assert "exactly one of data" in told("benchmarks={blimp: {hub: null}}")
    assert "unknown key 'benchmarks.blimp.name'" in told("benchmarks={blimp: {data: x, name: y}}")
    assert "allowed here are apply_chat_template, chat_template_args, data, hub, limit" in told(
        "benchmarks={blimp: {data: x, name: y}}"
    )
    assert "benchmarks.blimp: data is empty" in told("benchmarks={blimp: {data: {}}}")
    assert "benchmarks.blimp: chat_template_args need apply_chat_template" in told(
        "benchmarks={blimp: {data: x, chat_template_args: {a: 1}}}"
    )
    assert "did you mean 'limit'?" in told("benchmarks={blimp: {data: x, limt: 3}}")
    assert "benchmarks.blimp.limit is 0" in told("benchmarks={blimp: {data: x, limit: 0}}")
    built = resolved("benchmarks={mmlu: {hub: true, num_fewshot: 5}}").benchmarks["mmlu"]
    assert built == Benchmark("mmlu", None, num_fewshot=5)
    # what a run folder keeps, which an earlier run's must equal
    kept = resolved().model_dump(mode="json")["benchmarks"]["hellaswag"]
    assert kept == {
        "data": "items/hellaswag.jsonl",
        "hub": False,
        "limit": 5,
        "only": [],
        "num_fewshot": None,
        "max_gen_toks": None,
        "apply_chat_template": False,
        "chat_template_args": {},
    }
