"""Fine-tuning an encoder: what it learns, that it can be resumed, and that int8 serves what was learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muplan.predictor.encoder_onnx import export_int8
from muplan.predictor.encoder_source import DEFAULT_ENCODER, find_encoder
from muplan.predictor.encoder_training import Lesson, Settings, epoch_batches, fine_tune, scores
from muserve.encoder_score import ENCODER_FILE, TOKENIZER_FILE, EncoderScore, token_ids
from muserve.errors import InputError
from small_encoder import WORDS, small_tokenizer

_SETTINGS = Settings(epochs=2, batch=16, learning_rate=5e-3, head_learning_rate=1e-2)


@given(st.lists(st.integers(1, 128), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 9))
def test_an_epoch_holds_every_prompt_once(lengths: list[int], batch: int, seed: int) -> None:
    batches = list(epoch_batches(lengths, batch, np.random.default_rng(seed)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch


def test_batches_hold_prompts_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 129, 4_000)
    batches = list(epoch_batches(lengths.tolist(), 32, np.random.default_rng(1)))
    padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
    assert padded < 1.1 * lengths.sum()


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json there"):
        find_encoder(str(tmp_path), tmp_path)


def test_short_names_stand_for_hub_ids(tmp_path: Path) -> None:
    assert find_encoder("bert-tiny", tmp_path).place == "prajjwal1/bert-tiny"
    assert find_encoder("bert-base", tmp_path).name == "bert-base-uncased"
    assert find_encoder("some/other-bert", tmp_path).place == "some/other-bert"
    assert find_encoder(DEFAULT_ENCODER, tmp_path).name == "sentence-transformers/all-MiniLM-L6-v2"


def test_lessons_of_unequal_columns_are_a_bug() -> None:
    with pytest.raises(ValueError, match="one length and one weight"):
        Lesson(ids=[[1]], tokens=np.ones(2), weight=np.ones(1))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="fine-tuning needs torch")
    pytest.importorskip("transformers", reason="fine-tuning needs transformers")
    from small_pretrained import write_small_pretrained

    return write_small_pretrained(tmp_path_factory.mktemp("models") / "pretrained")


def _lesson(prompts: int = 320) -> Lesson:
    """The length follows from whether the prompt says "long" or "short", and from nothing else."""
    random = np.random.default_rng(0)
    long = random.random(prompts) < 0.5
    texts = [
        " ".join([*random.choice(WORDS[:2], random.integers(1, 12)), "long" if one else "short"])
        for one in long
    ]
    tokens = np.where(long, 400.0, 40.0) * random.uniform(0.8, 1.25, prompts)
    return Lesson(
        ids=[token_ids(small_tokenizer(), text) for text in texts], tokens=tokens, weight=np.ones(prompts)
    )


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("ranking", "classes"), [(0.5, 0.3), (0.0, 0.0)])
def test_it_learns_and_int8_ranks_alike(
    pretrained: Path, tmp_path: Path, ranking: float, classes: float
) -> None:
    lesson = _lesson()
    source = find_encoder(str(pretrained), tmp_path)
    settings = Settings(
        epochs=3, batch=16, learning_rate=5e-3, head_learning_rate=1e-2, ranking=ranking, classes=classes
    )
    tuned = fine_tune(source, lesson, lesson, settings, seed=1)
    found = scores(tuned.network, lesson.ids)
    # Two lengths an answer: order between them is all that there is to know, tau then is about a half.
    assert tuned.validation_tau[-1] > 0.45
    assert np.median(found[lesson.tokens > 200.0]) == pytest.approx(np.log(400.0), abs=0.4)
    assert np.median(found[lesson.tokens < 200.0]) == pytest.approx(np.log(40.0), abs=0.4)

    quantised = export_int8(tuned, lesson.ids[:64])
    assert quantised.compared == 64
    assert quantised.agreement > 0.8
    assert len(quantised.graph) < quantised.fp32_bytes
    (tmp_path / ENCODER_FILE).write_bytes(quantised.graph)
    (tmp_path / TOKENIZER_FILE).write_text(source.tokenizer_json())
    served = EncoderScore.load(tmp_path)
    assert served.score("write a long") > served.score("write a short") + 1.0


@pytest.mark.filterwarnings("default")
def test_a_run_cut_short_goes_on_from_its_last_epoch(pretrained: Path, tmp_path: Path) -> None:
    lesson, source = _lesson(96), find_encoder(str(pretrained), tmp_path)

    class Cut(Exception):
        pass

    def cut_in_second_epoch(step: str, done: int, total: int) -> None:
        if "epoch 2" in step and done > total // 2:
            raise Cut

    whole = fine_tune(source, lesson, lesson, _SETTINGS, seed=3)
    with pytest.raises(Cut):
        fine_tune(source, lesson, lesson, _SETTINGS, 3, tmp_path, cut_in_second_epoch)
    steps: list[str] = []
    resumed = fine_tune(
        source, lesson, lesson, _SETTINGS, 3, tmp_path, lambda step, done, total: steps.append(step)
    )
    assert set(steps) == {"encoder, epoch 2 of 2"}
    assert resumed.validation_tau == whole.validation_tau
    assert scores(resumed.network, lesson.ids).tolist() == scores(whole.network, lesson.ids).tolist()
    other = fine_tune(source, lesson, lesson, _SETTINGS, 4, tmp_path)
    assert scores(other.network, lesson.ids).tolist() != scores(whole.network, lesson.ids).tolist()


@pytest.mark.filterwarnings("default")
def test_what_is_no_encoder_is_named(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no such network"}')
    with pytest.raises(InputError, match="is no BERT-family encoder"):
        find_encoder(str(tmp_path), tmp_path).encoder()
