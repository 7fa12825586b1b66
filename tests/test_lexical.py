"""The lexical explainer names the tokens that matter, in a sentence that reads back as it was written."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from planted import BIGRAM, NOISE, TOKEN, planted_cache, write_planted_run

from autointerp.clients.offline import OfflineClient, detection_scores, fuzzing_scores
from autointerp.config import ExamplesConfig
from autointerp.examples import ExampleSampler
from autointerp.explainers.lexical import LexicalExplainer, lexical_sentence
from autointerp.prompting import highlighted, marks_for
from autointerp.records import Completion, Example, LatentExamples, Request
from autointerp.rules import FREQUENCIES, NOTHING, Kind, Term, left_unit, read_sentence, spans, write_sentence

ALWAYS, OFTEN, SOMETIMES, RARELY = FREQUENCIES.values()


def word(text: str, probability: float = OFTEN, left: str | None = None) -> Term:
    return Term(text, "word", probability, left)


def found(term: Term, text: str) -> list[str]:
    return [text[start:stop] for start, stop in spans(term, text)]


# --- sentences


def test_a_sentence_reads_as_english() -> None:
    terms = [
        word("the", 0.93),
        Term("comput", "word start", 0.5),
        Term("ing", "word end", 0.45),
        Term(":", "text", 0.2),
        word("of", 0.9, "in"),
    ]
    assert write_sentence(terms) == (
        'Fires almost always on the word "the"; often on the word start "comput" and the word end "ing"; '
        'sometimes on ":"; and more on the word "of" after "in" (almost always).'
    )
    assert write_sentence([]) == NOTHING
    assert write_sentence([Term(None, "text", 0.5, "import")]) == 'Fires on anything after "import" (often).'


ALPHABETS = {
    "wordy": "abcXYZéß漢09",
    "symbols": " \t\n\"'\\`“”;:.,()[]<>«»⟦\x00\x7f\u2028\u200b/-",
    "any": 'a Z9\n"\\“🙂.',
}


def drawn_text(rng: random.Random, alphabet: str) -> str:
    return "".join(rng.choices(ALPHABETS[alphabet], k=rng.randint(1, 6)))


def drawn_term(rng: random.Random) -> Term:
    probability = rng.choice(list(FREQUENCIES.values()))
    left = rng.choice([None, drawn_text(rng, "wordy"), *'"\n\\(;.`'])
    if left is not None and rng.random() < 0.2:
        return Term(None, "text", probability, left)
    kinds: tuple[Kind, ...] = ("word", "word start", "word end", "word part")
    if rng.random() < 0.5:
        return Term(drawn_text(rng, "wordy"), rng.choice(kinds), probability, left)
    return Term(drawn_text(rng, rng.choice(["symbols", "any"])), "text", probability, left)


@pytest.mark.parametrize("seed", range(300))
def test_a_sentence_gives_back_the_terms_it_was_written_from(seed: int) -> None:
    rng = random.Random(seed)
    terms = [drawn_term(rng) for _ in range(rng.randint(0, 8))]
    order = list(FREQUENCIES.values())
    expected = sorted((t for t in terms if t.left is None), key=lambda t: order.index(t.probability))
    expected += [t for t in terms if t.left is not None]
    sentence = write_sentence(terms)
    assert "\n" not in sentence and "\x00" not in sentence
    assert read_sentence(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ('the word "the"', [word("the")]),
        ("It always fires on “cat” and sometimes on 'dog'.", [word("cat", ALWAYS), word("dog", SOMETIMES)]),
        ("tokens such as `x`, `y` or `+=`", [word("x"), word("y"), Term("+=", "text", OFTEN)]),
        ('words ending in "ing"', [Term("ing", "word end", OFTEN)]),
        ('"ed" or words starting with "pre"', [word("ed"), Term("pre", "word start", OFTEN)]),
        ('"of" when it follows "out"', [word("of", OFTEN, "out")]),
        ('any token after "as" or "to"', [Term(None, "text", OFTEN, "as"), Term(None, "text", OFTEN, "to")]),
        ('"the", but not "then" or "there"; rarely "this"', [word("the"), word("this", RARELY)]),
        ("don't know, isn't clear", []),
        ('a regex such as "\\d+"', [Term("\\d+", "word", OFTEN)]),
        ("No quotation at all", []),
        ("", []),
        ('an unclosed "quotation', []),
        ('"" and "a"', [word("a")]),
    ],
)
def test_a_free_sentence_is_read_by_its_quotations(sentence: str, expected: list[Term]) -> None:
    assert read_sentence(sentence) == expected


def test_a_sentence_that_quotes_everything_names_nothing() -> None:
    assert read_sentence('"a" ' * 101) == []
    assert read_sentence('"' * 100_001) == []


def test_kinds_are_told_by_the_letters_around_them() -> None:
    text = "computing compute recomputes comput, 2comput"
    assert found(Term("comput", "word", 1.0), text) == ["comput"]
    assert len(found(Term("comput", "word start", 1.0), text)) == 2
    assert len(found(Term("comput", "word part", 1.0), text)) == 1
    assert len(found(Term("comput", "word end", 1.0), text)) == 1
    assert len(found(Term("comput", "text", 1.0), text)) == 5
    assert spans(Term("x.*", "text", 1.0), "axyz x.*") == [(5, 8)]


def test_left_contexts_are_whole_words_right_before() -> None:
    assert spans(word("of", 1.0, "in"), "in of, begin of, in  of; into of") == [(3, 5), (21, 23)]
    assert spans(Term(None, "text", 1.0, "import"), "import os; important x; import") == [(7, 9)]
    assert [left_unit("a bc(\n d", i) for i in (0, 1, 4, 5, 6, 7)] == [None, "a", "bc", "(", "\n", "\n"]


# --- the explainer


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> ExampleSampler:
    run = write_planted_run(tmp_path_factory.mktemp("planted") / "run")
    return ExampleSampler(planted_cache(run), ExamplesConfig())


def sentence_for(examples: LatentExamples) -> str:
    return lexical_sentence(LexicalExplainer().request(examples).context)


def test_planted_rules_are_found(sampler: ExampleSampler) -> None:
    assert sentence_for(sampler.examples(TOKEN)) == 'Fires almost always on the word " object".'
    assert sentence_for(sampler.examples(BIGRAM)) == 'Fires on the word "the" after "of" (almost always).'


def test_noise_gets_no_confident_sentence(sampler: ExampleSampler) -> None:
    assert max((t.probability for t in read_sentence(sentence_for(sampler.examples(NOISE)))), default=0) <= SOMETIMES


def test_a_request_holds_explain_windows_and_can_be_written_as_json(sampler: ExampleSampler) -> None:
    examples = sampler.examples(TOKEN)
    request = LexicalExplainer().request(examples)
    assert request.task == "explain/lexical" and request.messages == ()
    context = json.loads(json.dumps(request.context))
    assert [window["tokens"] for window in context["train"]] == [list(e.tokens) for e in examples.train]
    assert len(context["contrast"]) == len(examples.contrast)
    assert {"test", "non_activating", "latent"}.isdisjoint(context)


def windows(texts: list[str], fires_on: dict[str, float]) -> tuple[Example, ...]:
    made = []
    for number, text in enumerate(texts):
        tokens = tuple(part if i == 0 else f" {part}" for i, part in enumerate(text.split(" ")))
        activations = (0.0, *(fires_on.get(token, 0.0) for token in tokens[1:]))
        made.append(Example(str(number), tokens, activations))
    return tuple(made)


def examples_of(train: tuple[Example, ...], contrast: tuple[Example, ...], weight: float = 10.0) -> LatentExamples:
    return LatentExamples(0, train, train, contrast, (), (), 0.01, 1.0, weight)


def test_a_sentence_names_at_most_ten_tokens_and_five_left_contexts() -> None:
    rng = np.random.default_rng(0)
    names = [chr(97 + i) * 4 for i in range(26)]
    train = windows([f"x {a} {b} y" for a in names for b in rng.choice(names, 4)], {f" {n}": 1.0 for n in names})
    terms = read_sentence(sentence_for(examples_of(train, windows(["u v w x y z"] * 50, {}))))
    assert sum(term.left is None for term in terms) == 10
    assert sum(term.left is not None for term in terms) <= 5


def test_a_token_that_fires_no_more_often_than_any_other_is_not_named() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.choice(["aa", "bb", "cc", "dd"], 30).tolist() for _ in range(150)]
    made = []
    for number, tokens in enumerate(drawn):
        spaced = tuple(f" {token}" for token in tokens)
        fires = rng.random(30) < 0.05
        made.append(Example(str(number), spaced, tuple(np.where(fires, 1.0, 0.0).tolist())))
    train = tuple(e for e in made if any(e.activations))
    contrast = tuple(e for e in made if not any(e.activations))
    assert sentence_for(examples_of(train, contrast, 1.0)) == NOTHING


def test_a_previous_token_rule_is_found() -> None:
    followers = [f"w{i}" for i in range(40)]
    train = windows([f"go to import {name} now" for name in followers], {f" {name}": 2.0 for name in followers})
    contrast = windows([f"we go to {name} now then" for name in followers], {})
    assert sentence_for(examples_of(train, contrast)) == 'Fires on anything after "import" (almost always).'


def test_quotes_and_line_breaks_in_tokens_survive() -> None:
    train = tuple(Example(str(i), ("a", ' "x\\', "\n\n", "b"), (0.0, 1.0, 3.0, 0.0)) for i in range(30))
    contrast = windows(["plain words only here"] * 40, {})
    sentence = sentence_for(examples_of(train, contrast, 1.0))
    assert "\n" not in sentence
    assert {term.text for term in read_sentence(sentence)} == {' "x\\', "\n\n"}


def test_the_answer_is_taken_as_it_is_and_a_failure_is_a_status() -> None:
    explainer = LexicalExplainer()
    assert explainer.parse(Completion(" Fires. ", "offline")) == ("Fires.", "ok")
    assert explainer.parse(Completion("", "offline")) == (None, "unparseable")
    assert explainer.parse(Completion("", "offline", error="boom")) == (None, "error")


# --- the judge


def test_detection_grades_by_frequency_number_and_presence() -> None:
    sentence = 'Fires almost always on the word "cat"; sometimes on the word "dog"; rarely on ":".'
    texts = ["one cat here", "one dog here", "dog or dog or dog", "one: here", "nothing here", "cat", " dog starts"]
    cat, dog, dogs, colon, none, first, start = detection_scores(sentence, texts)
    assert cat > dogs > dog > 0.5 > colon > none
    assert none < 0.05
    assert first == start == none  # at the very beginning no left context is shown


def test_left_contexts_decide() -> None:
    here, elsewhere = detection_scores('Fires on the word "of" after "in" (often).', ["he in of x", "he out of x"])
    assert here > 0.5 > elsewhere


def test_without_a_named_token_the_judge_is_undecided() -> None:
    context = {"texts": ["a <<b>> c", "d"], "opening": "<<", "closing": ">>"}
    for sentence in (NOTHING, "Some vague concept", ""):
        assert detection_scores(sentence, ["a", "b"]) == (0.5, 0.5)
        assert fuzzing_scores({**context, "explanation": sentence}) == (0.5, 0.5)


def test_fuzzing_judges_the_highlighted_tokens_alone() -> None:
    texts = ["a<< cat>> and dog", "a cat<< and>> dog", "a<< cat>><< and>> dog", "no highlight", "a cat and<< dog>>"]
    context = {"explanation": 'Often on the word "cat"', "texts": texts, "opening": "<<", "closing": ">>"}
    right, wrong, half, none, dog = fuzzing_scores(context)
    assert right > 0.9 and wrong == dog < 0.5
    assert half == pytest.approx((right + wrong) / 2)
    assert none == 0.5


def test_marks_in_the_texts_do_not_mislead() -> None:
    tokens = (">>> ", "x", " <<", " cat", ">>")
    marks = marks_for(["".join(tokens)])
    text = highlighted(tokens, [False, False, False, True, False], marks)
    context = {"explanation": 'on "cat"', "texts": [text], "opening": marks[0], "closing": marks[1]}
    assert fuzzing_scores(context)[0] > 0.9


@pytest.mark.parametrize("seed", range(100))
def test_any_sentence_and_any_texts_get_probabilities(seed: int) -> None:
    rng = random.Random(seed)
    parts = [*ALPHABETS["symbols"], *"abc", "after ", "the word ", "often ", "not ", "<<", ">>", "(rarely)"]
    sentence, *texts = ("".join(rng.choices(parts, k=rng.randint(0, 60))) for _ in range(4))
    context = {"explanation": sentence, "texts": texts, "opening": "<<", "closing": ">>"}
    for scores in (detection_scores(sentence, texts), fuzzing_scores(context)):
        assert len(scores) == len(texts) and all(0 <= score <= 1 for score in scores)


def test_the_offline_judge_uses_nothing_but_the_sentence_and_the_texts() -> None:
    used: set[str] = set()

    class Watched(dict[str, object]):
        def __getitem__(self, key: str) -> object:
            used.add(key)
            return super().__getitem__(key)

    context = Watched(explanation='on "a"', texts=["x <<a>>"], opening="<<", closing=">>", y_true=[1], ids=["i"])
    for task in ("score/detection", "score/fuzzing"):
        answer = asyncio.run(OfflineClient().complete(Request(task, (), context)))
        assert answer.scores is not None and answer.error is None
    assert used == {"explanation", "texts", "opening", "closing"}


def test_a_task_without_a_rule_is_an_error_in_the_answer() -> None:
    answer = asyncio.run(OfflineClient().complete(Request("explain/max_activating", ())))
    assert answer.error is not None and "offline" in answer.error


def test_lexical_and_offline_need_no_torch() -> None:
    code = "import sys, autointerp.clients.offline, autointerp.scorers; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0
