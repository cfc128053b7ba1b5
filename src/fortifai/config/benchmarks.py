"""Published benchmarks, by their names in lm-evaluation-harness."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from fortifai.config.section import Section
from fortifai.evals.benchmarks_data import Benchmark


class BenchmarkConfig(Section):
    """One benchmark. `data`: local files; or `hub: true`: the harness fetches its own data set.

    `data` is a file, a folder, or files by split, such as ``{test: a.jsonl, train: b.jsonl}``.
    The rest are the harness's own settings: see `fortifai.evals.benchmarks_data.Benchmark`.
    """

    data: str | dict[str, str] | None = None
    hub: bool = False
    limit: PositiveInt | None = None
    only: tuple[str, ...] = ()
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    max_gen_toks: PositiveInt | None = None
    apply_chat_template: bool = False
    chat_template_args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> BenchmarkConfig:
        if self.data == {} or self.data == "":
            raise ValueError("data is empty; name a file, a folder, or files by split")
        if (self.data is None) != self.hub:
            raise ValueError(
                "a benchmark takes exactly one of data (local files) and hub: true (its own data "
                "set, fetched from the hub)"
            )
        if self.chat_template_args and not self.apply_chat_template:
            raise ValueError("chat_template_args need apply_chat_template: true")
        return self

    def build(self, name: str) -> Benchmark:
        """What is asked of the benchmark `name`."""
        return Benchmark(
            name=name,
            data=self.data,
            limit=self.limit,
            only=self.only,
            num_fewshot=self.num_fewshot,
            max_gen_toks=self.max_gen_toks,
            apply_chat_template=self.apply_chat_template,
            chat_template_args=self.chat_template_args,
        )
