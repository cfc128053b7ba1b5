import pytest
import yaml

from fortifai import configuration
from fortifai.errors import InputError
from fortifai.lab import run_folder
from fortifai.lab.regimes import Fortifai
from fortifai.lab.spec import as_today
from fortifai.models.options import Beam, Span
from fortifai.weights import DFT, EAFT, Focal, Keep, Truncate

TEXT = """
name: wikitext2-small
generations: 5
seeds: [0, 1]
baseline: ce
init_from: previous             # previous | base | scratch
regime: {kind: fortifai}
corpus: {kind: text, files: [wiki.test.raw], held_out: [wiki.valid.tokens]}
questions: {files: [wikitext2-test.jsonl]}
family:
  kind: causal_lm
  scratch: {architecture: llama, hidden_size: 256, layers: 4, vocab_size: 4096}
train: {epochs: 20, learning_rate: 1.0e-3, batch_size: 16, block: 128}
regenerate: {context: 96, new_tokens: 32, decoding: {kind: greedy}}
arms:
  ce: {weight: {kind: keep}}
  tce-0.5: {weight: {kind: truncate, threshold: 0.5}}
  focal: {weight: {kind: focal, gamma: 2.0}}
"""
"""The shape that the configuration was designed to have."""


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(TEXT)
    return configuration.read_raw(str(path))[0]


def fault(raw, *changes):
    with pytest.raises(InputError) as caught:
        configuration.resolve(configuration.apply_set(raw, changes))
    return str(caught.value)


def test_the_shape_resolves(raw):
    resolved = configuration.resolve(raw)
    assert [a.weight for a in resolved.arms.values()] == [
        Keep(),
        Truncate(0.5),
        Focal(2.0),
    ]
    assert resolved.split_count == 5
    assert resolved.positions == 128
    assert all(arm.train.learning_rate == 1e-3 for arm in resolved.arms.values())


def test_arms_are_deep_merged_over_the_rest(raw):
    changed = configuration.apply_set(
        raw, ["arms.focal.train.epochs=3", "arms.ce.regenerate.decoding={kind: beam, beams: 3}"]
    )
    arms = configuration.resolve(changed).arms
    assert (arms["focal"].train.epochs, arms["focal"].train.learning_rate) == (3, 1e-3)
    assert arms["ce"].train.epochs == 20
    assert arms["ce"].regenerate.context == 96
    assert arms["ce"].regenerate.decoding == Beam(kind="beam", beams=3)


def test_another_kind_drops_the_old_kinds_keys():
    base = {"weight": {"kind": "truncate", "threshold": 0.3}, "a": 1}
    merged = configuration.merge(base, {"weight": {"kind": "focal"}})
    assert merged == {"weight": {"kind": "focal"}, "a": 1}


def test_dump_resolves_to_itself(raw, tmp_path):
    resolved = configuration.resolve(raw)
    text = run_folder.dump(resolved)
    # what a plain YAML reader sees in a run folder is the same configuration
    again = configuration.resolve(yaml.safe_load(text))
    assert again == resolved
    path = tmp_path / "again.yaml"
    path.write_text(text)
    assert configuration.resolve(configuration.read_raw(str(path))[0]) == resolved


@pytest.mark.parametrize("name", configuration.preset_names())
def test_presets_are_whole(name):
    raw, _ = configuration.read_raw(name)
    resolved = configuration.resolve(raw)
    assert resolved.name == name
    assert resolved.description


def test_the_papers_settings():
    """SETTINGS of 2509.08972: section 4.1 and its authors' code."""
    for name in ("fortifai-wikitext2", "fortifai-imagination"):
        resolved = configuration.resolve(configuration.read_raw(name)[0])
        assert resolved.generations == 6
        arm = resolved.arms["tce-0.9"]
        assert arm.weight == Truncate(0.9)
        assert arm.regime == Fortifai()
        assert arm.init_from == "previous"
        train = arm.train
        assert (train.learning_rate, train.schedule, train.batch_size) == (2e-5, "constant", 64)
        assert (train.epochs, train.block, train.checkpoint) == (10, 128, "best_held_out")
        rewriting = arm.regenerate
        assert (rewriting.context, rewriting.new_tokens) == (512, 32)
        assert rewriting.decoding == Beam(kind="beam", beams=5, repetition_penalty=3.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("trian.epochs=3", ["unknown key 'trian'", "did you mean 'train'"]),
        ("train.epocs=3", ["unknown key 'train.epocs'", "did you mean 'epochs'"]),
        ("arms.ce.wieght={}", ["unknown key 'arms.ce.wieght'", "did you mean 'weight'"]),
        ("arms.tce-0.5.weight.treshold=0.1", ["treshold", "did you mean 'threshold'"]),
        ("arms.tce-0.5.weight.threshold=1.5", ["arms.tce-0.5.weight: threshold is 1.5", "[0, 1]"]),
        ("arms.tce-0.5.weight.threshold=.nan", ["threshold is nan", "[0, 1]"]),
        ("arms.focal.weight.gamma=-1", ["arms.focal.weight: gamma is -1.0", "[0, inf)"]),
        ("arms.ce.weight.kind=keeep", ["'keeep'", "keep, truncate, focal", "did you mean 'keep'"]),
        ("regime.kind=fortify", ["'fortify'", "did you mean 'fortifai'"]),
        ("regime={kind: mix}", ["exactly one of alpha and keep_original"]),
        ("train.learning_rate=fast", ["train.learning_rate is 'fast'", "number"]),
        ("train.epochs=0", ["train.epochs is 0", "greater than 0"]),
        ("train.label_smoothing=1", ["train: label_smoothing is 1.0", "[0, 1)"]),
        ("train.gem_beta=0", ["train: gem_beta is 0", "(0, inf)"]),
        ("train.z_loss=-1", ["train: z_loss is -1.0", "[0, inf)"]),
        ("train.confidence_penalty=.inf", ["train.confidence_penalty is inf", "finite"]),
        ("splits.count=0", ["splits.count is 0", "greater than 0"]),
        ("splits.count=3", ["regime 'fortifai' adds one clean split a generation"]),
        ("generations=0", ["generations is 0"]),
        ("seeds=[]", ["seeds is []"]),
        ("seeds=[1, 1]", ["names a seed twice"]),
        ("baseline=tce", ["'tce' is not an arm", "ce, tce-0.5, focal"]),
        ("family.base=some/model", ["exactly one of base", "scratch"]),
        ("family.scratch.hidden_size=30", ["30 is not divisible by heads 4"]),
        ("family.scratch.max_positions=100", ["longer than the model's max_positions 100"]),
        ("family.scratch.vocab_size=10", ["vocab_size is 10"]),
        ("corpus.held_out=2.0", ["held_out"]),
        ("corpus.files=[]", ["corpus.files is []; it needs at least 1"]),
        ("corpus={kind: txt}", ["'txt'", "did you mean 'text'"]),
        ("corpus={files: [a]}", ["'corpus' needs a kind, one of text, hub, bios, imagination"]),
        ("name=../up", ["name is '../up'"]),
        ("name=a.", ["name is 'a.'", "without a dot at its end"]),
        ("arms.a:b={}", ["a name in arms is 'a:b'", "letters of the alphabet"]),
        ("arms.a*={}", ["a name in arms is 'a*'"]),
        ("arms.NUL={}", ["a name in arms is 'NUL'", "Windows has a device of that one"]),
        ("arms={ce: {}, com1.x: {}}", ["a name in arms is 'com1.x'", "a device"]),
        (f"arms={{ce: {{}}, {'a' * 201}: {{}}}}", ["at most 200"]),
        ("arms.CE={}", ["arms 'ce' and 'CE' differ in case alone"]),
        (
            "benchmarks={a: {hub: true}, A: {hub: true}}",
            ["benchmarks 'a' and 'A' differ in case alone"],
        ),
        ("arms={}", ["arms"]),
        ("arms.ce=3", ["arms"]),
        ("regenerate.decoding={kind: beam, beams: 1}", ["beams", "1"]),
        ("regenerate.decoding={kind: sample, top_p: 0}", ["top_p", "0"]),
        ("regenerate.context=0", ["regenerate.context", "0", "from 1", "{exactly: N}"]),
        ("regenerate.context=true", ["regenerate.context", "True", "from 1"]),
        ("regenerate.context=many", ["regenerate.context", "'many'", "from 1"]),
        ("regenerate.context={exactly: 1.5}", ["exactly is 1.5", "from 1"]),
        ("regenerate.context={at_least: 0, at_most: 9}", ["at_least is 0", "from 1"]),
        ("regenerate.context={at_least: 9}", ["a context names at_least", "at_most: M"]),
        ("regenerate.context={at_lest: 9, at_most: 99}", ["at_lest, at_most", "at_least: N"]),
        ("regenerate.context={exactly: 9, at_most: 99}", ["exactly, at_most", "{exactly: N}"]),
        ("regenerate.context={}", ["a context names nothing"]),
        ("regenerate.context=[1]", ["regenerate.context", "[1]"]),
        (
            "regenerate.context={at_least: 97, at_most: 96}",
            ["regenerate.context", "at_least 97 is more than at_most 96"],
        ),
        (
            "regenerate.context={at_least: 96, at_most: 127}",
            [
                "at_most 127 is shorter than at_least 96 + new_tokens 32",
                "no block would be written",
            ],
        ),
    ],
)
def test_faults_are_told_with_their_key(raw, change, words):
    message = fault(raw, change)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_threshold_read_off_other_confidences_is_refused(raw):
    message = fault(raw, "arms.ce.weight.kind=dynamic", "arms.ce.train.gem_beta=0.7")
    assert "arm 'ce': weight 'dynamic' reads its threshold off" in message
    assert "give weight 'truncate'" in message


def test_all_faults_are_told_at_once(raw):
    message = fault(raw, "train.epocs=3", "generations=0", "arms.ce.weight.kind=x")
    assert all(word in message for word in ("epocs", "generations", "'x'"))


def test_a_fault_of_all_arms_is_told_once(raw):
    assert fault(raw, "train.epochs=0").count("train.epochs") == 1


def test_set_finds_names_with_dots(raw):
    changed = configuration.apply_set(raw, ["arms.tce-0.5.weight.threshold=0.25"])
    assert changed["arms"]["tce-0.5"]["weight"]["threshold"] == 0.25
    assert raw["arms"]["tce-0.5"]["weight"]["threshold"] == 0.5, "the original is left alone"


@pytest.mark.parametrize("change", ["novalue", "=3", "name.x=1", "seeds=[1"])
def test_set_that_cannot_be(raw, change):
    with pytest.raises(InputError, match="--set"):
        configuration.apply_set(raw, [change])


def test_yaml_reads_as_people_mean_it(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("{on: 1, rate: 1e-3, off: no, yes: true}")
    assert configuration.read_raw(str(path))[0] == {
        "on": 1,
        "rate": 0.001,
        "off": "no",
        "yes": True,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a: [1", "not valid YAML"),
        (b"a: 1\na: 2", "'a' stands twice"),
        (b"- 1", "no YAML mapping"),
        (b"", "no YAML mapping"),
        (b"\xff\xfe", "not a UTF-8"),
        (b"a: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=words):
        configuration.read_raw(str(path))


def test_a_misspelt_preset():
    with pytest.raises(InputError, match="did you mean 'demo'"):
        configuration.read_raw("dmeo")


def test_difference_names_keys():
    old = {"a": 1, "b": {"c": [1], "d": 2}, "x": 0}
    new = {"a": 1, "b": {"c": [2], "d": 2}, "y": 0}
    assert run_folder.difference(old, new) == ["b.c", "x", "y"]


def test_a_kind_with_the_name_of_a_field_is_not_part_of_the_key():
    raw = configuration.read_raw("curse-gmm")[0]
    source = "corpus={kind: points, source: {kind: files, files: []}}"
    assert fault(raw, source) == "corpus.source.files is []; it needs at least 1"


def test_weights_of_tokens_and_of_pixels(raw):
    for weight, built in [
        ("{kind: dft}", DFT()),
        ("{kind: eaft, alpha: 0.5, top_k: null}", EAFT(0.5, None)),
        ("{kind: eaft}", EAFT(1.0, 20)),
    ]:
        changed = configuration.apply_set(raw, [f"arms.ce.weight={weight}"])
        assert configuration.resolve(changed).arms["ce"].weight == built
    images = configuration.read_raw("fortifai-vae")[0]
    assert "'eaft'" in fault(images, "arms.ce.weight={kind: eaft}")


class TestContexts:
    def regenerate(self, raw, context, **more):
        changes = [
            f"regenerate.context={context}",
            *(f"regenerate.{k}={v}" for k, v in more.items()),
        ]
        return configuration.resolve(configuration.apply_set(raw, changes)).arms["ce"].regenerate

    def test_a_number_and_exactly_so_many_are_one(self, raw):
        plain, told = self.regenerate(raw, 40), self.regenerate(raw, "{exactly: 40}")
        assert plain == told
        # as older run folders have it, so that they go on
        assert told.model_dump(mode="json")["context"] == 40
        assert (told.first, told.longest, told.blocks) == (40, 72, 1)

    @pytest.mark.parametrize(
        ("least", "most", "new", "blocks"),
        [(96, 128, 32, 1), (96, 159, 32, 1), (96, 160, 32, 2), (512, 1024, 32, 16), (1, 3, 1, 2)],
    )
    def test_a_span_holds_whole_blocks(self, raw, least, most, new, blocks):
        context = f"{{at_least: {least}, at_most: {most}}}"
        asked = self.regenerate(raw, context, new_tokens=new)
        assert asked.context == Span(at_least=least, at_most=most)
        assert (asked.first, asked.longest, asked.blocks) == (least, most, blocks)

    def test_it_is_written_and_read_back(self, raw):
        changed = configuration.apply_set(raw, ["regenerate.context={at_least: 96, at_most: 512}"])
        resolved = configuration.resolve(changed)
        again = configuration.resolve(yaml.safe_load(run_folder.dump(resolved)))
        assert again == resolved
        assert run_folder.plain(again)["arms"]["ce"]["regenerate"]["context"] == {
            "at_least": 96,
            "at_most": 512,
        }

    def test_an_arm_may_tell_it_otherwise(self, raw):
        span, exact = {"at_least": 96, "at_most": 512}, {"exactly": 64}
        for top, arm in ((span, exact), (exact, span), (64, span), (span, 64)):
            raw["regenerate"]["context"] = top
            raw["arms"]["ce"]["regenerate"] = {"context": arm}
            arms = configuration.resolve(raw).arms
            asked = [arms[name].regenerate.context for name in ("ce", "focal")]
            kept = [Span(**span) if c == span else 64 for c in (arm, top)]
            assert asked == kept
        # one key of a span alone changes that one
        raw["regenerate"]["context"] = span
        raw["arms"]["ce"]["regenerate"] = {"context": {"at_most": 256}}
        found = configuration.resolve(raw).arms["ce"].regenerate.context
        assert found == Span(at_least=96, at_most=256)

    def test_a_level_on_a_benchmark(self, raw):
        raw["benchmarks"] = {"blimp": {"hub": True}}
        level = "{on: blimp, level: 0.5, measure: "
        told = configuration.apply_set(raw, [f"time_to_failure=[{level}benchmark.blimp.acc}}]"])
        (found,) = configuration.resolve(told).time_to_failure
        assert found.measure == "benchmark.blimp.acc"
        old = configuration.apply_set(raw, [f"time_to_failure=[{level}blimp.acc}}]"])
        assert as_today(old)["time_to_failure"] == told["time_to_failure"]
        message = fault(raw, f"time_to_failure=[{level}blump.acc}}]")
        assert "'blump.acc', which is no score of a measure" in message

    def test_a_model_from_sizes_has_positions_for_it(self, raw):
        span = "regenerate.context={at_least: 96, at_most: 700}"
        assert configuration.resolve(configuration.apply_set(raw, [span])).positions == 700
        message = fault(raw, span, "family.scratch.max_positions=699")
        assert "context.at_most 700 is 700 tokens, longer than the model's max_positions" in message

    def test_documents_ask_nothing_of_a_span(self, raw):
        asked = self.regenerate(raw, "{at_least: 9, at_most: 10}", mode="documents")
        assert asked.mode == "documents"
