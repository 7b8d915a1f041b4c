"""Answers that know nothing: of the most similar other question, and of a random one."""

from herd.evals import retrieval


def question(name, text, answer, kind="summary"):
    return {"messages": [{"role": "user", "content": text}], "name": name, "kind": kind, "answer": answer, "group": ""}


def test_bm25_puts_the_text_with_the_rare_shared_word_first():
    index = retrieval.Bm25(["what does json.dump do", "what does re.match do", "what does os.path.join do"])
    assert int(index.scores("explain json.dumps and json").argmax()) == 0
    assert int(index.scores("path").argmax()) == 2
    assert index.scores("nothing of this").max() == 0


def test_the_retrieved_answer_is_the_most_similar_others_and_never_the_questions_own():
    pool = [
        question("json.dump", "What does json.dump do?", "Write JSON to a file."),
        question("json.dump", "Explain json.dump.", "Write JSON to a file."),
        question("json.load", "What does json.load do?", "Read JSON from a file."),
        question("re.match", "What does re.match do?", "Match at the start."),
        question("json.dump", "What arguments does json.dump take?", "(obj, fp)", kind="signature"),
        question("json.load", "What arguments does json.load take?", "(fp)", kind="signature"),
    ]
    asked = [
        question("json.dump", "Tell me the purpose of json.dump", "Write JSON to a file."),
        question("json.dump", "Which arguments has json.dump?", "(obj, fp)", kind="signature"),
    ]
    assert retrieval.retrieved_answers(asked, pool) == ["Read JSON from a file.", "(fp)"]
    assert retrieval.retrieved_answers(asked, []) == ["", ""]


def test_shuffled_answers_stay_within_their_kind_and_nobody_keeps_their_own():
    asked = [question(str(number), f"q{number}", f"answer {number}") for number in range(20)]
    asked += [question(f"s{number}", f"s{number}", f"({number})", kind="signature") for number in range(5)]
    shuffled = retrieval.shuffled_answers(asked, seed=4)
    assert shuffled == retrieval.shuffled_answers(asked, seed=4)
    assert all(answer != row["answer"] for answer, row in zip(shuffled, asked))
    assert sorted(shuffled[:20]) == sorted(row["answer"] for row in asked[:20])
    assert all(answer.startswith("(") for answer in shuffled[20:])
