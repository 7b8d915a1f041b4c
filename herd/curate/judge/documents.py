"""The judge: everything that decides about one document by itself, in order, each step counted in the funnel.

    heuristics -> outliers -> decontaminate -> pii -> quality -> knowledge

A step is a method that returns the reason to drop the document, or None; it may change the document's text or score.
What a step needs of the whole corpus was fitted before and lies in the state folder.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from herd.config import to_dict
from herd.curate.filters.addresses import host, list_lines
from herd.curate.filters.decontaminate import Benchmarks, Contamination
from herd.curate.filters.heuristics import (
    TECHNICAL_FILTERS,
    WEB_FILTERS,
    Filter,
    ListedWords,
    has_notices,
    no_notices,
    punctuated,
    reasons,
)
from herd.curate.filters.outliers import Outliers, WordCounts, load_counts, save_counts
from herd.curate.filters.text import Reason, Text, keep_lines, technical_kind
from herd.curate.funnel import Step
from herd.curate.judge.classifier import AnyClassifier, Classifier
from herd.curate.judge.planted import TRIPLE, Stream, Written
from herd.curate.judge.quality import quality
from herd.curate.judge.rules import Heuristics, Quality, Rules, rules_from_json
from herd.curate.judge.rules import Privacy as Privacy
from herd.curate.judge.rules import rules_to_json as rules_to_json
from herd.curate.ngrams import weighed_words
from herd.curate.parts import read_table, save_array, write_record
from herd.curate.privacy.personal import KINDS, find_pii, mask_found, mask_pii
from herd.errors import DataError
from herd.run import atomic_write


class Judge:
    """Applies rules to documents, one after the other. Made once in each process; `state` holds what was fitted."""

    STEPS = ("heuristics", "outliers", "decontaminate", "pii", "quality", "knowledge")

    def __init__(self, rules: Rules, state: Path | None = None):
        self.rules = rules
        heuristics = rules.heuristics
        self._listed = _listed_words(heuristics)
        self._skip = frozenset(heuristics.skip)
        self._outliers = Outliers.load(state / FITTED) if state is not None and (state / FITTED).exists() else None
        self._is_common = load_domains(state)
        self._classifiers: dict[str, AnyClassifier] = {
            kind: _score_model(path) for kind, path in rules.quality.classifiers.items()
        }
        self.benchmarks = _benchmarks(rules.contamination) if rules.contamination.benchmarks else None
        if self.benchmarks and state is not None and (state / _COMMON).exists():
            self.benchmarks.leave_out(Counter({int(n): 1 << 62 for n in np.load(state / _COMMON)}))
        self._knowledge = _class_model(rules.quality) if rules.quality.knowledge else None
        self._shares = dict(rules.quality.keep_shares)
        if state is not None and (state / _SHARES).exists():
            for label, share in json.loads((state / _SHARES).read_text()).items():
                self._shares[label] = min(share, self._shares.get(label, 1.0))

    def judge(self, row: dict[str, Any], steps: dict[str, Step]) -> bool:
        """Judge a document in place; returns whether it is kept. A dropped one has `drop` and `drop_detail`.

        `row` is a document with `kind` (html, text or code); `steps` maps the names of `STEPS` to their counts.
        """
        return all(take_step(row, steps[name], getattr(self, f"_{name}_step")) for name in self.STEPS)

    def _heuristics_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        """Hold a page to the filters of its kind, and count by kind what each filter drops, or would have dropped."""
        options = self.rules.heuristics
        if not options.enabled:
            row["technical_kind"] = page_kind(row)
            return None
        kind = page_kind(row)
        technical = kind in options.exempt or row["source"] in options.technical_sources
        if options.notices == "drop" and kind is None and not technical and has_notices(row["text"]):
            keep = no_notices(row["text"].split("\n"))
            step.notes["notice lines dropped"] += len(keep) - sum(keep)
            keep_lines(row, keep)
        if options.unpunctuated == "drop" and kind is None and not technical:
            keep = punctuated(row["text"].split("\n"))
            step.notes["lines without punctuation dropped"] += len(keep) - sum(keep)
            keep_lines(row, keep)
        text = text_of(row)
        kinds = [kind or "prose", *(["rare domain"] if not self._is_common(host(row["url"])) else [])]
        lists = (self._listed[name] for name in ("", row["language"]) if name in self._listed)
        rules: tuple[Filter, ...] = (*(TECHNICAL_FILTERS if technical else WEB_FILTERS), *lists)
        reason = next(reasons(text, rules, options.limits, self._skip), None)
        spared = (
            {name for name, _ in reasons(text, WEB_FILTERS, options.limits, self._skip, whole=True)}
            if technical
            else ()
        )
        for name in kinds:
            step.tables["pages"][name] += 1
            if reason:
                step.tables[f"{name}: dropped"][reason[0]] += 1
            step.tables[f"{name}: spared"].update(spared)
        row |= {"technical": technical, "technical_kind": kind}
        return reason

    def _outliers_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        most = self.rules.heuristics.outliers
        if self._outliers is None or most is None or not self.rules.heuristics.enabled or row.get("technical"):
            return None
        distance = self._outliers.distance(row["text"], row["language"])
        if distance is None or distance <= most:
            return None
        rare = self._outliers.rarest_words(row["text"], row["language"])
        return "outlier_words", f"{distance:.1f} scatters from the corpus; rarest: {rare}"

    def _decontaminate_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        if self.benchmarks is None or not (hits := self.benchmarks.find(row["text"])):
            return None
        for name, number in Counter(hit.benchmark for hit in hits).items():
            step.tables["questions found"][name] += number
        step.tables["documents with questions"].update({hit.benchmark for hit in hits})
        detail = f"{hits[0].benchmark}, row {hits[0].row}: {hits[0].span[:300]}"
        return ("contaminated", detail) if self.rules.contamination.action == "drop" else None

    def _pii_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        options = self.rules.privacy
        kinds = {*options.mask, *options.drop}
        if row["kind"] == "code":
            kinds &= set(options.in_code)
        if not kinds:
            return None
        found = find_pii(row["text"], kinds)
        step.notes.update(one.kind for one in found)
        if worst := next((one for one in found if one.kind in options.drop), None):
            return f"pii_{worst.kind}", f"{sum(one.kind == worst.kind for one in found)} found"
        row["text"] = mask_found(row["text"], found)
        return None

    def mask_rest(self, row: dict[str, Any]) -> None:
        """Mask what the step of that name did not see: titles, and what was dropped before it, with its detail."""
        kinds = set(self.rules.privacy.mask) & set(self.rules.privacy.in_code if row["kind"] == "code" else KINDS)
        if kinds:
            names = ("title",) if row["drop"] is None else ("title", "text", "drop_detail")
            row |= {name: mask_pii(row[name], kinds)[0] for name in names if row[name]}

    def _quality_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        kind = row.get("technical_kind") or "prose"
        classifier = self._classifiers.get(kind, self._classifiers.get("all"))
        row["quality"] = classifier.score(row["text"]) if classifier else quality(row["text"], row["kind"] == "code")
        step.tables[f"score of {kind}"][f"{int(min(row['quality'], 0.999) * 20) / 20:.2f}"] += 1
        if row["quality"] >= self.rules.quality.min_score:
            return None
        if kind in self.rules.heuristics.exempt and kind not in self._classifiers:
            step.tables[f"{kind}: spared"]["quality"] += 1  # no score was made for such pages
            return None
        return "quality", f"score {row['quality']:.2f}"

    def _knowledge_step(self, row: dict[str, Any], step: Step) -> Reason | None:
        """Hold back what there is too much of: by the document's id, so that a re-run keeps the same ones."""
        if self._knowledge is None:
            return None
        label, probability = self._knowledge.label(row["text"])
        step.tables["class"][label] += 1
        share = self._shares.get(label, 1.0)
        place = zlib.crc32(f"knowledge {row['id']}".encode()) / 2**32
        if place < share:
            return None
        return (
            f"knowledge_{label.replace(' ', '_')}",
            f"probability {probability:.2f}; {share:.0%} of its class is kept",
        )


# ---- what is fitted to the whole corpus ------------------------------------------------------------------------------

FITTED = "keys/outliers.npz"
_DOMAINS = "keys/domains.npy"
_SHARES = "keys/shares.json"
_COMMON = "keys/common.npy"
_RARE_DOMAIN_PAGES = 5
_DOMAIN_BUCKETS = 1 << 20


def needs_fitting(rules: Rules) -> bool:
    """Whether the judge needs a pass over the corpus before it begins."""
    fitted = (rules.heuristics.enabled, rules.quality.max_class_share is not None, rules.planted.enabled)
    return any(fitted) or bool(rules.contamination.benchmarks)


def count_part(job: dict[str, Any]) -> dict[str, Any]:
    """Count one part's words by language and its domains; writes `state/keys/NAME.words.npz`."""
    state, name = Path(job["state"]), job["name"]
    columns = ["text", "language", "url", "kind", "source", "drop", "code_lines", "group"]
    rows = read_table(state / "text" / f"{name}.parquet", columns=columns).to_pylist()
    copies = set(np.load(state / "keys" / f"{name}.copy.npy")["doc"].tolist())
    rules = rules_from_json(job["rules"])
    options = rules.heuristics
    knowledge = _class_model(rules.quality) if rules.quality.max_class_share is not None else None
    benchmarks = _benchmarks(rules.contamination) if rules.contamination.benchmarks else None
    ngrams: Counter[int] = Counter()
    classes: Counter = Counter()
    counted: dict[str, WordCounts] = {}
    domains = np.zeros(_DOMAIN_BUCKETS, dtype=np.uint32)
    triples: list[np.ndarray] = [np.empty(0, dtype=TRIPLE)]
    written = Written()
    sample = range(-job["first"] % job["every"], len(rows), job["every"]) if rules.planted.enabled else ()
    for number, row in enumerate(rows):
        stream = Stream(row["text"], weighed_words(row["text"])) if number in sample else None
        if stream is not None:
            written.add(stream)
        if row["drop"] is not None or number in copies:
            continue
        domains[_domain_bucket(host(row["url"]))] += 1
        if benchmarks:
            ngrams.update(benchmarks.ngrams_in(row["text"]))
        if knowledge:
            classes[knowledge.label(row["text"])[0]] += 1
        is_prose = row["kind"] != "code" and row["source"] not in options.technical_sources
        if row["language"] and is_prose and page_kind(row) not in options.exempt:
            words = stream.words if stream is not None else weighed_words(row["text"])
            counted.setdefault(row["language"], WordCounts()).add_words(words.numbers)
            if rules.planted.enabled:
                keys = (stream or Stream(row["text"], words)).triples(row["text"])
                triples.append(np.empty(len(keys), dtype=TRIPLE))
                triples[-1]["key"], triples[-1]["doc"] = keys, number
                triples[-1]["site"] = zlib.crc32(row["group"].encode())
    file = state / "keys" / f"{name}.words.npz"
    save_counts(counted, file, domains=domains)
    shared = state / "keys" / f"{name}.triples.npy"
    save_array(np.concatenate(triples), shared)
    files = [file, file.with_suffix(".npy"), shared, state / "keys" / f"{name}.written.npy"]
    written.save(files[-1])
    leaks = np.array([list(ngrams), list(ngrams.values())], dtype=np.uint64)
    save_array(leaks, file.with_suffix(".npy"))
    write_record(file.with_suffix(".json"), len(rows), files, classes=dict(classes))
    return {}


def fit(parts: list[str], state: Path, rules: Rules) -> None:
    """Fit to what `count_part` counted: the outlier measure, the domains' sizes, the classes' shares."""
    if rules.quality.max_class_share is not None:
        records = (json.loads((state / "keys" / f"{name}.words.json").read_text()) for name in parts)
        classes = sum((Counter(record["classes"]) for record in records), Counter())
        atomic_write(state / _SHARES, json.dumps(shares_under_cap(classes, rules.quality.max_class_share)))
    files = [state / "keys" / f"{name}.words.npz" for name in parts]
    if rules.contamination.benchmarks:
        ngrams: Counter[int] = Counter()
        for file in files:
            numbers, counts = np.load(file.with_suffix(".npy"))
            ngrams.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
        most = rules.contamination.most_documents
        save_array(np.array([n for n, count in ngrams.items() if count > most], np.uint64), state / _COMMON)
    Outliers.fit(load_counts(files)).save(state / FITTED)
    domains = np.zeros(_DOMAIN_BUCKETS, dtype=np.uint32)
    for file in files:
        with np.load(file) as arrays:
            np.add.at(domains, arrays["domains filled"], arrays["domains counts"])
    save_array(domains, state / _DOMAINS)


def shares_under_cap(classes: dict[str, int], cap: float) -> dict[str, float]:
    """What share of each class to keep so that none is over `cap` of what is left.

    Holding one class back makes the others larger parts of the rest, so it is done until nothing changes. A cap below
    one over the number of classes makes them all equal.
    """
    kept = {label: float(count) for label, count in classes.items()}
    for _ in range(1000):
        total = sum(kept.values())
        over = {label for label, count in kept.items() if count > cap * total * (1 + 1e-9)}
        if not over:
            break
        rest = total - sum(kept[label] for label in over)
        room = cap * rest / (1 - cap * len(over)) if cap * len(over) < 1 else 0.0
        room = max(room, min(kept.values()))
        if all(abs(kept[label] - min(kept[label], room)) < 1e-9 for label in over):
            break
        kept |= {label: min(kept[label], room) for label in over}
    return {label: kept[label] / count for label, count in classes.items() if count}


def load_domains(state: Path | None) -> Callable[[str], bool]:
    """A test whether a domain has at least five pages in the corpus (by hashed buckets: a rare one may pass)."""
    if state is None or not (state / _DOMAINS).exists():
        return lambda name: True
    domains = np.load(state / _DOMAINS)
    return lambda name: bool(domains[_domain_bucket(name)] >= _RARE_DOMAIN_PAGES)


def _benchmarks(options: Contamination) -> Benchmarks:
    """The benchmarks' n-grams, made once in a process for all its parts: that takes seconds."""
    files = [file for path in options.benchmarks for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    key = json.dumps([to_dict(options), [(str(file), file.stat().st_mtime_ns) for file in files if file.exists()]])
    if key not in _BENCHMARKS:
        _BENCHMARKS.clear()
        _BENCHMARKS[key] = Benchmarks(options)
    return _BENCHMARKS[key]


_BENCHMARKS: dict[str, Benchmarks] = {}


def _score_model(path: Path) -> AnyClassifier:
    classifier = Classifier.load(path)
    if not classifier.is_score:
        raise DataError(f"{path}: tells classes ({', '.join(classifier.labels[:3])}...), no score")
    return classifier


def _class_model(options: Quality) -> AnyClassifier:
    assert options.knowledge is not None
    classifier = Classifier.load(options.knowledge)
    if classifier.is_score:
        raise DataError(f"{options.knowledge}: gives a score, no knowledge classes")
    if unknown := sorted(set(options.keep_shares) - set(classifier.labels)):
        raise DataError(f"keep_shares: no class {unknown[0]!r}; there are: {', '.join(classifier.labels)}")
    return classifier


def text_of(row: dict[str, Any]) -> Text:
    """A document as the filters measure it: with what is known of its lines."""
    aside = [*(row.get("code_lines") or ()), *(row.get("aside_lines") or ())]
    return Text(row["text"], row["language"], aside, row.get("link_lines") or ())


def page_kind(row: dict[str, Any]) -> str | None:
    """Whether a document is `code`, `maths` or neither."""
    if row["kind"] == "code":
        return "code"
    marked = row.get("code_lines") or ()
    return technical_kind(row["text"], sum(marked[1::2]) - sum(marked[::2]))


def _domain_bucket(name: str) -> int:
    return zlib.crc32(name.encode()) % _DOMAIN_BUCKETS


# ---- the rules' files, and taking a step -----------------------------------------------------------------------------


def _listed_words(options: Heuristics) -> dict[str, ListedWords]:
    """The word lists by the language that they are for; those for all languages under the empty name."""
    lists: dict[str, dict[str, list[str]]] = {}
    for name, files in options.word_lists.items():
        category, _, code = name.partition("@")
        entries = [line for file in files for _, line in list_lines(file)]
        if not entries:
            raise DataError(f"word_lists.{name}: {', '.join(map(str, files)) or 'no file'} holds no word")
        lists.setdefault(code, {})[category] = entries
    return {
        code: ListedWords(words, options.max_listed_words, options.max_listed_share) for code, words in lists.items()
    }


def rule_files(rules: Rules) -> list[Path]:
    """Every file and folder that the rules read: they are inputs of a curation like its pages."""
    lists = [*rules.blocked.domain_files.values(), *rules.blocked.word_files.values()]
    lists += rules.heuristics.word_lists.values()
    models = [*rules.quality.classifiers.values(), *([rules.quality.knowledge] if rules.quality.knowledge else [])]
    return [*(file for files in lists for file in files), *models, *rules.contamination.benchmarks]


def take_step(row: dict[str, Any], step: Step, check: Callable[[dict[str, Any], Step], Reason | None]) -> bool:
    """Put a document through one step and count it; returns whether it goes on."""
    before = len(row["text"].encode())
    step.documents_in += 1
    step.bytes_in += before
    reason = check(row, step)
    if reason is not None:
        row["drop"], row["drop_detail"] = reason
        step.drop(row["url"], *reason, row["text"])
        return False
    step.keep(before, len(row["text"].encode()))
    return True
