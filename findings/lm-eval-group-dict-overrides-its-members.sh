#!/usr/bin/env bash
# lm_eval 0.4.13: a group given to TaskManager.load as a dict overrides its members with itself.
#
# The same group loads by name from a YAML file of the include_path. Given as a dict, all of its
# keys are also taken for overrides of its members:
#  - "task": [names] becomes the members' own "task", so that load raises a TypeError (a list as a
#    task's name); with [{"task": name}, ...] it does not;
#  - "group_alias" and "aggregate_metric_list" raise a TypeError, as TaskConfig has no such field;
#  - "metadata" takes the place of the members', without a word: a member of version 3 in a group of
#    version 7 is reported as version 7.
#
# Seen: by name 'one' has version 3; as a dict with metadata it has version 7; the others raise
# "unhashable type: 'list'" and "unexpected keyword argument".
# Ends with 0 while this is so, and with 1 when it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet \
    lm_eval==0.4.13 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0
export HF_HOME="$folder/cache" HF_HUB_OFFLINE=1
cd "$folder"
mkdir tasks
echo '{"question": "a", "answer": "b"}' >rows.jsonl
for name in one two; do
    cat >"tasks/$name.yaml" <<YAML
task: $name
dataset_path: json
dataset_kwargs: {data_files: {test: $folder/rows.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metadata: {version: 3}
YAML
done
cat >tasks/pair.yaml <<YAML
group: pair
task: [one, two]
aggregate_metric_list: [{metric: acc}]
metadata: {version: 7}
YAML
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { code=$?; tail -5 "$folder/log"; exit $code; }
import sys

from lm_eval.tasks import TaskManager

NAMES, DICTS = ["one", "two"], [{"task": "one"}, {"task": "two"}]
CASES = {
    "by name": ("pair", 3),
    "dict, names": ({"group": "g", "task": NAMES}, "unhashable type: 'list'"),
    "dict": ({"group": "g", "task": DICTS}, 3),
    "dict, metadata": ({"group": "g", "task": DICTS, "metadata": {"version": 7}}, 7),
    "dict, alias": ({"group": "g", "group_alias": "G", "task": DICTS}, "'group_alias'"),
    "dict, metrics": (
        {"group": "g", "task": DICTS, "aggregate_metric_list": [{"metric": "acc"}]},
        "'aggregate_metric_list'",
    ),
}
as_stated = True
for case, (spec, wanted) in CASES.items():
    manager = TaskManager(include_defaults=False, include_path="tasks")
    try:
        found = manager.load(spec)["tasks"]["one"].config.metadata["version"]
        as_stated = as_stated and found == wanted
    except TypeError as error:
        found = f"TypeError: {error}"
        as_stated = as_stated and isinstance(wanted, str) and wanted in found
    print(f"{case}: {found if isinstance(found, str) else f'one has version {found}'}")
sys.exit(0 if as_stated else 1)
PY
