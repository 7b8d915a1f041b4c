"""A few made-up rows of benchmarks in the other forms in which they are published (`forms:` of the tasks)."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

SIX = range(6)
FOUR = {"text": ["ash", "oak", "elm", "fir"], "label": ["1", "2", "3", "4"]}
AI2 = {"stem": "Which tree?", "choices": [{"text": text, "label": label} for text, label in zip("wxyz", "ABCD")]}
SQUAD = {"context": "Ann won in May.", "question": "Who won?", "answers": {"text": ["Ann"], "answer_start": [0]}}
EXAM = {"examples": [{"input": "True and False is", "target": "False"}], "canary": "x"}
LSAT = {
    "passage": None,
    "question": "Who?",
    "options": ["(A)Ann", "(B)Bob"],
    "label": "B",
    "answer": None,
    "other": None,
}
BFCL = {"id": "parallel_0", "question": [[{"role": "user", "content": "Sum 1 and 2."}]], "function": [{"name": "add"}]}
XQUAD = {
    "version": "1.1",
    "data": [{"title": "T", "paragraphs": [{"context": "Ann won.", "qas": [SQUAD | {"answers": [{"text": "Ann"}]}]}]}],
}
MBPP = {"code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"]}

# task, its files, what stands in the first prompt, its right answers
PUBLISHED = [
    ("mmlu", {"mmlu/all/test-00000-of-00001.parquet": [{"question": "Which?", "subject": "law", "choices": list("wxyz"), "answer": 2}], "mmlu/all/dev-00000-of-00001.parquet": [{"question": f"Q{n}", "subject": "law", "choices": list("wxyz"), "answer": 3} for n in SIX]}, "D. z\nAnswer: D\n\nWhich?", ("C",)),
    ("mmlu", {"data/test/law_test.csv": "Which?,w,x,y,z,C\n", "data/dev/law_dev.csv": "Q,w,x,y,z,D\n" * 5}, "D. z\nAnswer: D\n\nWhich?", ("C",)),
    ("instruct/mmlu", {"bench-mmlu/test.parquet": [{"question": "Which?", "subject": "law", "choices": list("wxyz"), "answer": 2}], "bench-mmlu/dev.parquet": [{"question": f"Q{n}", "subject": "law", "choices": list("wxyz"), "answer": 3} for n in SIX]}, "D. z", ("C",)),
    ("arc-challenge-text", {"ai2_arc/ARC-Challenge/test-00000-of-00001.parquet": [{"id": "1", "question": "Which tree?", "choices": FOUR, "answerKey": "3"}]}, "Which tree?", ("elm",)),
    ("arc-challenge-text", {"bench-arc/arc_challenge_test.jsonl": [{"id": "1", "question": AI2, "answerKey": "D"}]}, "Which tree?", ("z",)),
    ("instruct/arc-challenge", {"bench-arc/arc_challenge_test.jsonl": [{"id": "1", "question": "Which tree?", "choices": FOUR, "answerKey": "3"}]}, "C. elm", ("C",)),
    ("hellaswag", {"hellaswag/data/validation-00000-of-00001.parquet": [{"activity_label": "Baking", "ctx_a": "A man [title] bakes.", "ctx_b": "he", "ctx": "A", "endings": ["eats [substeps] it.", "b", "c", "d"], "label": "0"}]}, "Baking: A man. bakes. He", ("eats it.",)),
    ("gsm8k", {f"gsm8k/main/{split}-00000-of-00001.parquet": [{"question": "1+1?", "answer": "It is <<1+1=2>>2\n#### 2"}] * 9 for split in ("test", "train")}, "It is 2", ("It is <<1+1=2>>2\n#### 2",)),
    ("triviaqa", {"trivia_qa/rc.wikipedia.nocontext/validation-00000-of-00001.parquet": [{"question": f"Who won {n}?", "answer": {"value": "Ann", "aliases": ["A."]}} for n in SIX]}, "Question: Who won", ("Ann", "A.")),
    ("race", {"race/high/test-00000-of-00001.parquet": [{"example_id": "high1.txt", "article": "A fox ran.", "question": "Who?", "options": ["hen", "fox"], "answer": "B"}]}, "A fox ran.", ("fox",)),
    ("drop", {f"drop/data/{split}-00000-of-00001.parquet": [{"section_id": "s", "query_id": "q", "passage": "Ann scored.", "question": "Who?", "answers_spans": {"spans": ["Ann", "Ann"], "types": ["span", "span"]}}] * 4 for split in ("validation", "train")}, "Answer: Ann\n\nPassage", ("Ann",)),
    ("squad-v2", {f"squad_v2/squad_v2/{split}-00000-of-00001.parquet": [SQUAD | {"title": "T"}] * 2 for split in ("validation", "train")}, "Ann won in May.", ("Ann",)),
    ("mmlu-pro", {f"MMLU-Pro/data/{split}-00000-of-00001.parquet": [{"question": f"{n}?", "options": list("abcdefghij"), "answer": "B", "cot_content": "A: It is (B).", "category": "math"} for n in SIX] for split in ("test", "validation")}, "B. b", ("B",)),
    ("math", {"MATH/test/algebra/1.json": {"problem": "Halve 4.", "level": "Level 1", "type": "Algebra", "solution": "\\boxed{2}"}, **{f"MATH/train/algebra/{n}.json": {"problem": f"Halve {n}.", "level": "Level 1", "type": "Algebra", "solution": "\\boxed{1}"} for n in range(4)}}, "Problem:\nHalve 4.", ("\\boxed{2}",)),
    ("mbpp", {"mbpp/sanitized/test-00000-of-00001.parquet": [MBPP | {"task_id": 11, "prompt": "Give x.", "test_imports": ["import math"]}], "mbpp/sanitized/prompt-00000-of-00001.parquet": [MBPP | {"task_id": n, "prompt": "Give it.", "test_imports": [""]} for n in (2, 3, 4)]}, "Give x.", (MBPP["code"],)),
    ("bbh", {"BIG-Bench-Hard/bbh/boolean_expressions.json": EXAM, "BIG-Bench-Hard/cot-prompts/boolean_expressions.txt": "canary\n-----\nSay what holds.\n\nQ: x"}, "Say what holds.\n\nQ: x\n\nQ: True and False is", ("False",)),
    ("agieval", {"AGIEval/data/v1/lsat-ar.jsonl": [LSAT], "AGIEval/data/v1/gaokao-history.jsonl": [LSAT], "AGIEval/data/few_shot_prompts.csv": ",lsat-ar\nsample 1,\"{'passage': None, 'question': 'Q1', 'options': ['(A)x'], 'label': 'A'}\"\n"}, "A: The answer is (A)", ("B",)),
    ("instruct/bfcl", {"bfcl_eval/data/BFCL_v4_parallel.json": [BFCL], "bfcl_eval/data/possible_answer/BFCL_v4_parallel.json": [{"id": "parallel_0", "ground_truth": [{"add": {"a": [1]}}]}], "bfcl_eval/data/BFCL_v4_irrelevance.json": [BFCL | {"id": "irrelevance_0"}]}, "Sum 1 and 2.", ()),
    ("siqa", {"bench-siqa/dev.parquet": [{"context": "Ann fell.", "question": "How is she?", "answerA": "glad", "answerB": "hurt", "answerC": "old", "label": "2"}]}, "Ann fell. How is she?", ("hurt",)),
    ("winogrande", {"winogrande/winogrande_xl/validation-00000-of-00001.parquet": [{"sentence": f"Ann {n} beat Bob as _ was old.", "option1": "Ann", "option2": "Bob", "answer": "2"} for n in SIX]}, "as Bob was old.", (" was old.",)),
    ("openbookqa", {"openbookqa/main/test-00000-of-00001.parquet": [{"question_stem": "Which tree?", "choices": {"text": list("wxyz"), "label": list("ABCD")}, "answerKey": "C"}]}, "Which tree?", ("y",)),
    ("commonsenseqa", {"commonsenseqa/dev_rand_split.jsonl": [{"id": str(n), "question": AI2, "answerKey": "B"} for n in range(8)]}, "B. x", ("B",)),
    ("xquad", {f"xquad/xquad.{lang}/validation-00000-of-00001.parquet": [SQUAD, SQUAD | {"context": f"Bob {lang}"}] for lang in ("de", "en", "zh")}, "Q: Who won?\nA: Ann", ("Ann",)),
    ("xquad", {f"xquad/xquad.{lang}.json": {"version": "1", "data": [{**XQUAD["data"][0], "title": title} for title in "TU"]} for lang in ("de", "en")}, "Q: Who won?\nA: Ann", ("Ann",)),
    ("instruct/mgsm", {"mgsm/mgsm_de.tsv": 'Wie "viele" sind es?\t7\n'}, 'Wie "viele"', ("7",)),
    ("truthfulqa-mc2", {"truthful_qa/multiple_choice/validation-00000-of-00001.parquet": [{"question": "Is it?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}, "mc2_targets": {"choices": ["a", "b", "c"], "labels": [1, 0, 1]}}]}, "Q: Is it?", ("a", "c")),
    ("humaneval", {"openai_humaneval/openai_humaneval/test-00000-of-00001.parquet": [{"task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return x\n", "test": "def check(f):\n    assert f(1) == 1\n", "entry_point": "f"}]}, "def f(x)", ("    return x\n",)),
]  # fmt: skip


def put(folder, files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(content), file)
        elif isinstance(content, str):
            file.write_text(content)
        else:
            rows = content if isinstance(content, list) else [content]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
