#!/usr/bin/env bash
# lm_eval 0.4.13: `--tasks mgsm_direct` asks the Spanish questions twice, with two prompts.
#
# A task that includes another's YAML inherits its tag. SpanishBench's mgsm_direct_es_spanish_bench
# includes MGSM's mgsm_direct_es, from another folder, and so becomes a member of MGSM's tag: the tag
# has 12 tasks for MGSM's 11 languages, and two of them read the same 250 items of the same data set.
# A mean over the tag's tasks counts Spanish double, and is another number than MGSM's. The tag of
# MGSM's folder alone, as with include_path and without the defaults, has 11.
#
# Seen: 12 tasks, the twelfth in spanish_bench/, both on juletxara/mgsm, es; 11 from the folder alone.
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
"$folder/env/bin/python" - 2>"$folder/log" <<'PY' || { code=$?; tail -5 "$folder/log"; exit $code; }
import sys
from pathlib import Path

import lm_eval.tasks
from lm_eval.tasks import TaskManager

root = Path(lm_eval.tasks.__file__).parent
tag = "mgsm_direct"
every = TaskManager().task_index
alone = TaskManager(include_defaults=False, include_path=str(root / "mgsm")).task_index
(more,) = every[tag].tags - alone[tag].tags
where = every[more].yaml_path.relative_to(root)
print(f"{tag}: {len(every[tag].tags)} tasks; {len(alone[tag].tags)} in its folder; also {where}")
data = {name: every[name].cfg for name in ("mgsm_direct_es", more)}
read = {(c["dataset_path"], c["dataset_name"]) for c in data.values()}
prompts = {c["doc_to_text"] for c in data.values()}
print(f"both read {read}, with {len(prompts)} prompts")
as_stated = (
    (len(every[tag].tags), len(alone[tag].tags)) == (12, 11)
    and where.parts[0] == "spanish_bench"
    and read == {("juletxara/mgsm", "es")}
    and len(prompts) == 2
)
sys.exit(0 if as_stated else 1)
PY
