"""Similarity of meaning: the scale, the cache, the term that uses it, and the encoder that reads a local folder."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5Model

from align.config import load_config
from align.embedding import SentenceEncoder
from envs.errors import UptakeError
from envs.event import Expect
from launch.audit import run_audit
from launch.meaning import open_meaning
from launch.train import claim, prepare
from rewards.compose import Composition
from rewards.meaning import UNRELATED, Meaning
from rewards.registry import get
from rewards.verdict import Verdict
from rewards.view import EpisodeView
from tests.unit.test_rewards_episodes import conversation, event, words

WORDS = sorted({word for text in UNRELATED for word in text.lower().strip(".").split()} | {"at", "noon", "we", "open"})


class Bags:
    """An encoder for tests: texts are bags of words, every word a direction of its own. Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.known: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = np.zeros((len(texts), 256), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[self.known.setdefault(word, len(self.known))] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT of random weights, large enough that it tells sentences apart, saved as transformers does."""
    path = tmp_path_factory.mktemp("encoder")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: number for number, token in enumerate([*specials, *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    torch.manual_seed(0)
    small = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=24, initializer_range=1.0,
    )  # fmt: skip
    BertModel(small).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder) -> SentenceEncoder:
    return SentenceEncoder(folder)


@pytest.fixture
def damaged(folder, tmp_path):
    """Copies of the encoder's folder with a file replaced, or taken away."""

    def make(name: str, content: str | None) -> Path:
        for source in folder.iterdir():
            (tmp_path / source.name).write_bytes(source.read_bytes())
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        if content is not None:
            place.write_text(content)
        return tmp_path

    return make


# ---- the scale


def test_equal_texts_are_1_and_unrelated_sentences_0_on_average():
    meaning = Meaning(Bags())
    assert meaning.similarity("we open at noon", "we open at noon") == pytest.approx(1.0)
    assert meaning.cosine("we open", "my sister") == 0.0
    assert meaning.similarity("we open", "my sister") == 0.0  # never below
    between = meaning.similarity("we open", "we close")
    assert between == pytest.approx((0.5 - meaning.floor) / (1 - meaning.floor))


def test_case_punctuation_and_digits_are_no_part_of_the_meaning():
    meaning = Meaning(Bags())
    assert meaning.similarity("We open at 9!", "we open at nine") == pytest.approx(1.0)


def test_nothing_is_near_no_words_and_the_nearest_reference_counts():
    meaning = Meaning(Bags())
    assert (
        meaning.similarity("...", "...") == meaning.similarity("we open", "") == meaning.nearest("we open", []) == 0.0
    )
    assert meaning.nearest("at noon", ["my sister", "at noon", "at nine"]) == pytest.approx(1.0)


def test_a_text_is_encoded_once_and_on_its_own():
    bags = Bags()
    meaning = Meaning(bags)
    assert len(bags.asked) == len(UNRELATED)
    for _ in range(3):
        meaning.nearest("at noon", ["we open at noon", "at noon"])
    assert bags.asked[len(UNRELATED) :] == ["at noon", "we open at noon"]


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_an_encoder_that_tells_nothing_apart_is_refused(value: float):
    with pytest.raises(UptakeError, match="cannot tell texts apart"):
        Meaning(lambda texts: np.full((len(texts), 1), value, np.float32))


# ---- the term

ASKED = event("A1", 1.0, 3.0, [Expect("responds", content=("noon",))])


def graded(text: str, references: object = ("we open at noon",), asked=ASKED) -> Verdict:
    said = conversation([(3.2, 6.0)], [asked], transcript=words(text, 3.3) if text else ())
    if references:
        said.meta["references"] = {asked.id: references}
    (verdict,) = Composition({"similarity": 1.0}, meaning=Meaning(Bags())).score(said)
    assert "fault" not in verdict.raw
    return verdict


def test_an_answer_is_as_good_as_the_nearest_reference_means_the_same():
    assert graded("we open at noon").value == pytest.approx(1.0)
    assert graded("at noon we open").value == pytest.approx(1.0)  # a bag has no order
    assert graded("at noon we open", ["nothing", "noon at we open"]).raw["similarity"] == pytest.approx(1.0)
    near, far = graded("we close at noon").value, graded("bananas are yellow").value
    assert near is not None and -1.0 == far < near < 1.0
    assert graded("we open at noon", "we open at noon").value == pytest.approx(1.0)  # a single reference, bare


def test_silence_is_worst_and_repeating_is_no_gain():
    once, often = graded("we open at noon"), graded("we open at noon we open at noon we open at noon")
    assert graded("").value == -1.0
    assert once.value is not None and often.value is not None and often.value < once.value - 0.4


def test_saying_the_question_back_is_no_answer_however_near_it_is():
    asked = event("A1", 1.0, 3.0, [Expect("responds", content=("noon",))])
    asked = type(asked)(**{**vars(asked), "words": words("do we open at noon", 1.0), "text": "do we open at noon"})
    parrot = graded("do we open at noon", asked=asked)
    assert parrot.raw["similarity"] > 0.8
    assert parrot.value is not None and parrot.value <= 0.0


def test_without_references_it_does_not_apply_as_similarity_in_quality_does_not():
    assert graded("we open at noon", references=()).value is None


def test_the_term_is_refused_before_anything_runs_when_there_is_no_encoder():
    with pytest.raises(UptakeError, match=r"'similarity' compares meanings .* embedding=FOLDER"):
        Composition({"similarity": 1.0, "turn_taking": 1.0})
    Composition({"similarity": 0.0, "turn_taking": 1.0})  # left out
    with pytest.raises(UptakeError, match="'similarity' compares meanings"):
        prepare(load_config("quickstart", ["rewards.similarity=1.0"]))
    with pytest.raises(UptakeError, match="'similarity' compares meanings"):
        run_audit("similarity", everything=False, pack_path="core", split="dev", scenarios=2, margin=0.25, seed=0,
                  out=Path("never"), console=Console(file=io.StringIO()))  # fmt: skip


def test_a_reward_that_did_not_declare_it_is_told_how():
    view = EpisodeView(conversation([], [ASKED]), 10)
    with pytest.raises(RuntimeError, match="meaning=True"):
        view.nearest("a", ["b"])


def test_the_folder_is_looked_at_only_where_a_term_compares_meanings(folder):
    assert open_meaning("no/such/folder", ["turn_taking", "quality"]) is None
    assert open_meaning("", ["similarity"]) is None
    with pytest.raises(UptakeError, match="no such folder"):
        open_meaning("no/such/folder", ["similarity"])
    opened = open_meaning(str(folder), ["turn_taking", "similarity"])
    assert opened is not None and 0.0 < opened.floor < 0.98
    assert get("similarity").meaning and not get("quality").meaning


def test_a_run_is_not_resumed_with_another_encoder(tmp_path: Path) -> None:
    config = load_config("quickstart", [f"runs={tmp_path}", "embedding=one"])
    claim(config.folder, config, resume=False)
    with pytest.raises(UptakeError, match="was started with embedding = one, now it is another"):
        claim(config.folder, load_config("quickstart", [f"runs={tmp_path}", "embedding=another"]), resume=True)


# ---- the encoder

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


@given(st.lists(texts, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_neither_neighbours_nor_order_nor_padding_change_an_embedding(encoder, batch, random):
    together = encoder(batch)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    alone = np.concatenate([encoder([text]) for text in batch])  # none is padded
    np.testing.assert_allclose(together, alone, atol=1e-4)
    order = list(range(len(batch)))
    random.shuffle(order)
    np.testing.assert_allclose(encoder([batch[place] for place in order]), together[order], atol=1e-4)


def test_equal_texts_have_cosine_1_and_others_less(encoder):
    same, again, other = encoder(["we open at noon", "we open at noon", "my sister plays the violin"])
    assert same @ again == pytest.approx(1.0, abs=1e-5)
    assert same @ other < 0.95


def test_it_is_the_mean_over_the_tokens_of_the_last_layer(encoder, folder):
    model = BertModel.from_pretrained(folder).eval()
    ids = [[2, *(4 + WORDS.index(word) for word in ("at", "noon")), 3]]
    with torch.no_grad():
        mean = model(input_ids=torch.tensor(ids)).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(encoder(["at noon"])[0], (mean / mean.norm()).numpy(), atol=1e-5)


def test_what_is_longer_than_the_model_remembers_is_cut(encoder):
    long = " ".join(["noon"] * 500)
    np.testing.assert_allclose(encoder([long]), encoder([long + " at"]), atol=1e-5)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("config.json", None, "has no config.json"),
        ("tokenizer_config.json", None, "has no tokenizer_config.json"),
        ("model.safetensors", None, "not read because they are pickled"),
        ("model.safetensors", "nonsense", "does not load: "),
        ("config.json", "{", "does not load: "),
        ("modules.json", '[{"type": "sentence_transformers.models.Dense"}]', "a part 'Dense'"),
        ("modules.json", "[", "not JSON"),
        ("1_Pooling/config.json", '{"pooling_mode_mean_tokens": false}', "other than mean pooling"),
    ],
)
def test_a_folder_that_is_no_mean_pooled_encoder_is_refused_in_one_line(damaged, name, content, said):
    with pytest.raises(UptakeError, match=said) as refused:
        SentenceEncoder(damaged(name, content))
    assert "\n" not in str(refused.value)


def test_pickled_weights_are_not_read(damaged, folder):
    path = damaged("model.safetensors", None)
    torch.save(BertModel.from_pretrained(folder).state_dict(), path / "pytorch_model.bin")
    with pytest.raises(UptakeError, match="pickled"):
        SentenceEncoder(path)


def test_weights_that_the_config_wants_and_the_file_lacks_are_not_made_up(damaged, folder):
    deeper = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    with pytest.raises(UptakeError, match=r"weights lack encoder\.layer\.2"):
        SentenceEncoder(damaged("config.json", json.dumps(deeper)))


def test_the_name_of_a_hub_is_no_folder():
    with pytest.raises(UptakeError, match="nothing is downloaded"):
        SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2")


def test_a_model_that_also_decodes_is_refused(folder, tmp_path):
    for source in folder.glob("tok*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    tiny = T5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5Model(tiny).save_pretrained(tmp_path)
    with pytest.raises(UptakeError, match="t5 is no encoder"):
        SentenceEncoder(tmp_path)
