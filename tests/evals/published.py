"""Five made-up rows of each benchmark whose data is not here, in the format in which it is published."""

import csv
import io
import json

FIVE = range(5)
LETTERS = "ABCDEFGHIJ"


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows, delimiter="\t"):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def squad(answerable=lambda n: True):
    questions = [
        {
            "id": f"q{n}",
            "question": f"Which colour has door {n}?",
            "answers": [{"text": f"shade {n}", "answer_start": 4}] if answerable(n) else [],
            "is_impossible": not answerable(n),
        }
        for n in FIVE
    ]
    doors = " ".join(f"Door {n} has shade {n}." for n in FIVE)
    return json.dumps(
        {"version": "v2.0", "data": [{"title": "Doors", "paragraphs": [{"context": doors, "qas": questions}]}]}
    )


def drop():
    answers = [
        {"number": "3", "spans": [], "date": {"day": "", "month": "", "year": ""}},
        {"number": "", "spans": ["Ann", "Bob"], "date": {}},
        {"number": "", "spans": [], "date": {"day": "4", "month": "May", "year": "1990"}},
        {"number": "12", "spans": [], "date": {}},
        {"number": "", "spans": ["Eve"], "date": {}},
    ]
    pairs = [{"question": f"How many {n}?", "answer": one, "query_id": str(n)} for n, one in enumerate(answers)]
    return json.dumps(
        {"nfl_1": {"passage": "They scored.", "qa_pairs": pairs[:3]}, "nfl_2": {"passage": "P", "qa_pairs": pairs[3:]}}
    )


def quac():
    questions = [
        {
            "id": f"C_1_q#{n}",
            "question": f"And then {n}?",
            "answers": [{"text": f"He left {n}", "answer_start": 0}],
            "followup": "y",
        }
        for n in FIVE
    ]
    return json.dumps(
        {"data": [{"title": "T", "paragraphs": [{"id": "C_1", "context": "He left.", "qas": questions}]}]}
    )


def mmlu_pro(split):
    rows = []
    for n in range(5 if split == "test" else 6):
        options = [f"{n * k}" for k in range(10)]
        thoughts = f"A: Let's think step by step. It is {n}. The answer is ({LETTERS[n]})."
        row = {
            "question_id": n,
            "question": f"{n} times one?",
            "options": options,
            "answer": LETTERS[n],
            "answer_index": n,
        }
        rows.append(row | {"cot_content": thoughts, "category": "math", "src": split})
    return jsonl(rows)


HUMANEVAL = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def add{n}(x):\n    """Add {n} to x."""\n',
        "entry_point": f"add{n}",
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + n}\n",
    }
    for n in FIVE
]
CPP = "#include<assert.h>\n// Add {n}.\nlong add{n}(long x) {{\n"
BASH = "#!/bin/bash\n# Add {n} to the first argument.\nadd{n}() {{\n"
JAVA = "class Problem {{\n    public static long add{n}(long x) {{\n"
STORY = "You are given a story and a question.\n\nStory:\nOnce there was a fox.\n\nQuestion and Possible Answers:\nWho? (A) a fox (B) a hen\n\nAnswer:\n"
TRAIN = [{"question": f"{n} and 1?", "answer": f"{n}+1=<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(8)]

FILES = {
    "mmlu-pro/test.jsonl": mmlu_pro("test"),
    "mmlu-pro/validation.jsonl": mmlu_pro("validation"),
    "gpqa/gpqa_main.csv": table(
        [
            {"Question": f"What, {n}?", "Correct Answer": f"it {n}"} | {f"Incorrect Answer {k}": f"at {n} {k}" for k in (1, 2, 3)}
            for n in FIVE
        ],
        ",",
    ),
    **{
        f"math/{split}.jsonl": jsonl(
            {"problem": f"Halve ${n}$.", "level": "Level 1", "type": "Algebra", "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$."}
            for n in FIVE
        )
        for split in ("test", "train")
    },
    "drop/drop_dataset_dev.json": drop(),
    "drop/drop_dataset_train.json": drop(),
    "quac/val_v0.2.json": quac(),
    "quac/train_v0.2.json": quac(),
    "squad-v2/dev-v2.0.json": squad(lambda n: n % 2 == 0),
    "squad-v2/train-v2.0.json": squad(),
    "squad-adversarial/sample1k-HCVerifyAll.json": squad(),
    "squad-dynabench/dev.json": squad(),
    "triviaqa/wikipedia-dev.json": json.dumps(
        {
            "Data": [
                {"Question": f"Who won {n}?", "QuestionId": f"q{n}", "Answer": {"Value": f"Ann {n}", "Aliases": [f"A. {n}", f"Ann {n}"]}}
                for n in range(6)
            ]
        }
    ),
    "naturalquestions/NQ-open.dev.jsonl": jsonl({"question": f"who sang {n}", "answer": [f"Ann {n}", f"Bob {n}"]} for n in range(6)),
    **{
        f"race/{n}.txt": json.dumps(
            {
                "id": f"high{n}.txt",
                "article": "A fox ran.",
                "questions": ["Who ran?"],
                "options": [["a hen", "a fox", "a cat", "a dog"]],
                "answers": ["B"],
            }
        )
        for n in FIVE
    },
    "worldsense/trials.jsonl": jsonl(
        {"Key": n, "problemname": "Infer.trivial", "text": "Ann is left of Bob. True?", "expectedresp": ["TRUE", "FALSE"], "goldresp": "TRUE"}
        for n in FIVE
    ),
    "paws/test.tsv": table([{"id": n, "sentence1": f"A to B {n}", "sentence2": f"B to A {n}", "label": n % 2} for n in range(7)]),
    "gsm-plus/test.jsonl": jsonl(
        {"question": f"{n} and 2?", "solution": "Add.", "answer": str(n + 2), "perturbation_type": "numerical substitution"} for n in FIVE
    ),
    "bench-gsm8k/train.jsonl.gz": jsonl(TRAIN),
    "humaneval-plus/test.jsonl": jsonl(HUMANEVAL),
    "mbpp-plus/test.jsonl": jsonl(
        {
            "task_id": n,
            "code": f"def add{n}(x):\n    return x + {n}",
            "prompt": f"Write a function to add {n}.",
            "test_imports": ["import math"],
            "test_list": [f"assert add{n}(1) == {n + 1}"],
            "test": f"assert add{n}(1) == {n + 1}",
        }
        for n in FIVE
    ),
    "multipl-e/humaneval-cpp.jsonl": jsonl(
        {
            "name": f"    return x + {n};\n",
            "language": "cpp",
            "prompt": CPP.format(n=n),
            "tests": f"}}\nint main() {{\n    assert(add{n}((1)) == ({n + 1}));\n}}\n",
        }
        for n in FIVE
    ),
    "multipl-e/humaneval-sh.jsonl": jsonl(
        {
            "name": f"    echo $(($1 + {n}))\n",
            "language": "sh",
            "prompt": BASH.format(n=n),
            "tests": f'}}\n[[ $(add{n} 1) = "{n + 1}" ]] || exit 1\n',
        }
        for n in FIVE
    ),
    "multipl-e/humaneval-java.jsonl": jsonl(
        {
            "name": f"    return x + {n};\n",
            "language": "java",
            "prompt": JAVA.format(n=n),
            "tests": f"    }}\n    public static void main(String[] args) {{\n    if (add{n}(1l) != {n + 1}l) System.exit(1);\n    }}\n}}\n",
        }
        for n in FIVE
    ),
    **{
        f"mmmlu/mmlu_{language}.csv": table(
            [{"": n, "Question": f"Q{n}", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "ABCD"[n % 4], "Subject": "law"} for n in range(6)],
            ",",
        )
        for language in ("DE-DE", "HI-IN")
    },
    "zeroscrolls/quality.jsonl": jsonl({"id": n, "pid": f"{n}_0", "input": STORY, "output": "(A)"} for n in FIVE),
    "zeroscrolls/qasper.jsonl": jsonl({"id": n, "pid": f"{n}_0", "input": STORY, "output": "a red fox"} for n in FIVE),
    "zeroscrolls/squality.jsonl": jsonl({"id": n, "pid": f"{n}_0", "input": STORY, "output": "The fox ran."} for n in FIVE),
    "infinitebench/longbook_qa_eng.jsonl": jsonl(
        {"id": n, "context": "Call me Ishmael.", "input": "Who?", "answer": ["Ishmael", "ISHMAEL"], "options": []} for n in FIVE
    ),
    "infinitebench/longbook_choice_eng.jsonl": jsonl(
        {"id": n, "context": "Call me Ishmael.", "input": "Who?", "answer": ["Ann"], "options": ["Bob", "Ann", "Eve", "Kim"]} for n in FIVE
    ),
    "glue/RTE/dev.tsv": table([{"index": n, "sentence1": "A ran.", "sentence2": "A moved.", "label": "entailment"} for n in FIVE]),
    "glue/SST-2/dev.tsv": table([{"sentence": f"a joy {n}", "label": 1} for n in FIVE]),
    "glue/MNLI/dev_matched.tsv": table([{"index": n, "sentence1": "A", "sentence2": "B", "gold_label": "neutral"} for n in FIVE]),
    "glue/QQP/dev.tsv": table([{"id": n, "question1": "How?", "question2": "Why?", "is_duplicate": 0} for n in FIVE]),
    "superglue/BoolQ/val.jsonl": jsonl({"question": "is it so", "passage": "It is.", "idx": n, "label": True} for n in FIVE),
    "superglue/CB/val.jsonl": jsonl({"premise": "A ran.", "hypothesis": "A ran", "idx": n, "label": "entailment"} for n in FIVE),
    "superglue/COPA/val.jsonl": jsonl(
        {"premise": "It fell.", "choice1": "It broke.", "choice2": "It flew.", "question": "effect", "idx": n, "label": 0} for n in FIVE
    ),
    "superglue/WiC/val.jsonl": jsonl(
        {"word": "bank", "sentence1": "a bank", "sentence2": "the bank", "idx": n, "label": False} for n in FIVE
    ),
    "nexus/nexus.jsonl": jsonl({"prompt": "def look(word): ...\nLook up fox.", "ground_truth": f"look(word='fox{n}')"} for n in FIVE),
    "exams/questions.jsonl": jsonl({"exam": "LSAT", "question": "Which?", "options": ["x", "y"], "answer": "B"} for n in FIVE),
}  # fmt: skip
"""Path in the data folder -> text of the file."""
