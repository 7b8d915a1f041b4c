"""Prefer: a model's own answers, judged by a verifier, become preference pairs for `herd reward` and `herd dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herd.config import settings
from herd.data.rows import read_rows, write_rows
from herd.errors import DataError
from herd.evals.answers import prompt_of
from herd.evals.statistics import summary
from herd.log import say
from herd.post.prefer import pair_of
from herd.post.prompts import apart_from, part_of, read_prompts
from herd.post.sampling import sample_answers
from herd.post.verify import Verifier, verified, verifier_of
from herd.run import open_run
from herd.types import SamplingParams


@settings
class PreferSettings:
    """Draw K answers to each prompt, judge them, and pair the best with the worst."""

    out: Path
    """Run folder to write."""
    checkpoint: Path
    """The chat model that is sampled: the current best."""
    prompts: Path
    """What is asked: JSONL or Parquet rows with `messages` or `prompt`, and what the verifier needs."""
    verifier: Verifier | None = None
    """`checks` (IFEval's, of `herd rl prompts`) or `answer` (F1 to the reference); default: what all rows have."""
    samples: int = 8
    """K, the answers drawn for each prompt."""
    max_prompts: int = 256
    """Prompts asked, spread evenly over those that are left."""
    part: tuple[float, float] = (0.0, 1.0)
    """Which prompts, by a hash of theirs (0 to 1): other parts are for other uses."""
    least_checks: int = 1
    """Prompts with fewer checks are passed over: raised from round to round, the prompts get harder."""
    min_gap: float = 0.25
    """Least difference (0 to 1) between the best and the worst answer's score: below it a pair is a near-tie."""
    temperature: float = 1.0
    """Temperature of the answers."""
    answer_tokens: int = 128
    """Longest answer, in tokens."""
    whole_only: bool = False
    """Count answers that ran into answer_tokens as none: SFT on them would teach to stop midway."""
    benchmarks: tuple[Path, ...] = ()
    """Files of benchmarks: a prompt that stands in one of them is left out."""
    earlier: Path | None = None
    """Run folder of an earlier round's `herd rounds prefer`, whose pairs go before these in `all_pairs.jsonl`."""
    seed: int = 0
    """Seed of the sampling."""
    engine: str | None = None
    """Address (http://HOST/v1) of an OpenAI-compatible endpoint that serves `checkpoint` and samples in its place."""

    def __post_init__(self):
        if min(self.max_prompts, self.answer_tokens, self.least_checks) < 1 or self.samples < 2:
            raise ValueError("max_prompts, answer_tokens and least_checks must be at least 1, samples at least 2")
        if self.temperature <= 0 or not 0 < self.min_gap <= 1 or not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError("temperature must be above 0, min_gap in (0, 1], part two ascending shares of 0 to 1")


def run(settings: PreferSettings) -> Path:
    """Write `answers.jsonl` (each prompt with its answers and their scores), `pairs.jsonl` and `all_pairs.jsonl`."""
    inputs: dict[str, Any] = {name: getattr(settings, name) for name in ("checkpoint", "prompts", "earlier")}
    inputs["benchmarks"] = [*settings.benchmarks]
    with open_run(settings.out, stage="rounds prefer", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        run.need(disk_bytes=6000 * settings.max_prompts)
        rows, verifier = _asked(settings)
        params = SamplingParams(
            temperature=settings.temperature,
            top_p=1.0,
            max_tokens=settings.answer_tokens,
            n=settings.samples,
            seed=settings.seed,
        )
        prompts: list[Any] = [prompt_of(row) for row in rows]
        answers = sample_answers(
            settings.checkpoint,
            prompts,
            params,
            run.path / "state",
            engine=settings.engine,
            whole_only=settings.whole_only,
        )
        scores = [verified(verifier, row, texts) for row, texts in zip(rows, answers, strict=True)]
        judged = list(zip(rows, answers, scores, strict=True))
        write_rows(run.path / "answers.jsonl", [row | {"answers": a, "scores": s} for row, a, s in judged])
        pairs = [pair for one in judged if (pair := pair_of(*one, settings.min_gap))]
        before = _pairs_before(settings.earlier)
        if not pairs and not before:
            raise DataError(
                f"none of {len(rows):,} prompts has two answers whose scores differ by {settings.min_gap} or more: "
                "raise temperature or samples, ask what is neither too easy nor too hard, or lower min_gap"
            )
        write_rows(run.path / "pairs.jsonl", pairs)
        write_rows(run.path / "all_pairs.jsonl", [*before, *pairs])
        figures = _figures(judged, pairs)
        say(
            f"  {len(pairs):,} pairs of {len(rows):,} prompts; {figures['alike']:,} whose answers score alike and "
            f"{figures['near_ties']:,} near-ties are left out; mean score {figures['score']:.3f}"
        )
        run.finish(figures | {"all_pairs": len(before) + len(pairs)})
    return run.path


def _asked(settings: PreferSettings) -> tuple[list[dict], Verifier]:
    everything = apart_from(read_prompts(settings.prompts, 10**9), settings.benchmarks)
    rows = [row for row in part_of(everything, *settings.part) if _is_hard(row, settings.least_checks)]
    verifier = settings.verifier or verifier_of(rows)
    if not rows or verifier is None:
        raise DataError(
            f"{settings.prompts}: of {len(everything):,} prompts {len(rows):,} are in part {settings.part} with "
            f"{settings.least_checks} checks or more"
            + ("" if rows else "; change these")
            + ("" if verifier else "; and no verifier fits: rows need `instruction_id_list` and `kwargs`, or an answer")
        )
    say(f"  {len(rows):,} prompts to ask of, judged by {verifier}")
    step = max(len(rows) / settings.max_prompts, 1.0)
    return [rows[int(place * step)] for place in range(min(settings.max_prompts, len(rows)))], verifier


def _is_hard(row: dict, least_checks: int) -> bool:
    return "instruction_id_list" not in row or len(row["instruction_id_list"]) >= least_checks


def _pairs_before(earlier: Path | None) -> list[dict]:
    return [row for _, row in read_rows(earlier / "all_pairs.jsonl")] if earlier else []


def _figures(judged: list[tuple[dict, list[str], list[float]]], pairs: list[dict]) -> dict[str, Any]:
    means = [sum(scores) / len(scores) for _, _, scores in judged]
    differ = [scores for _, _, scores in judged if max(scores) > min(scores)]
    mean = summary(means, [str(row.get("group") or place) for place, (row, _, _) in enumerate(judged)])
    found: dict[str, Any] = {"prompts": len(judged), "pairs": len(pairs), "near_ties": len(differ) - len(pairs)}
    found |= {"alike": len(judged) - len(differ), "score": round(mean.value, 4)}
    return found | {"score_low": round(mean.low, 4), "score_high": round(mean.high, 4)}
