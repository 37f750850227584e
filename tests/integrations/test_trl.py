# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer with a pruner; the real one, on a small Llama."""

import pytest
import torch

from dynprune_cuda import Pruner

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
import tiny_models  # noqa: E402
from tiny_models import (  # noqa: E402
    loss_of_sample,
    noise_among_selected,
    options,
    some_ignored,
)

from dynprune_cuda.integrations.transformers import PrunedTrainerMixin  # noqa: E402

pytestmark = [
    pytest.mark.slow,  # trains with the Trainer
    pytest.mark.filterwarnings(
        "ignore:'pin_memory' argument is set as true but no accelerator is found"
    ),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
N = 24


class Pruned(PrunedTrainerMixin, trl.SFTTrainer):
    """The trainer that docs/guides/language_models.md shows."""


class Tokenizer(transformers.PreTrainedTokenizer):
    """Only has the names and numbers that a trainer asks for: the tokens are there."""

    def __init__(self):
        super().__init__(pad_token="0", eos_token="1", unk_token="2")

    @property
    def vocab_size(self):
        return tiny_models.WORDS

    def get_vocab(self):
        return {str(i): i for i in range(tiny_models.WORDS)}

    def _convert_token_to_id(self, token):
        return int(token)

    def _convert_id_to_token(self, index):
        return str(index)

    def _tokenize(self, text):
        return text.split()


def make(folder, data, pruner=None, model=None, **more):
    more = {"bf16": False, "activation_checkpointing": False, **more}
    return Pruned(
        model=model or tiny_models.causal(),
        args=trl.SFTConfig(**options(folder, **more)),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=Tokenizer(),
        pruner=pruner or Pruner(len(data), 0.5, "ucb"),
    )


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("score", ["loss", "entropy"])
def test_scores_are_those_of_each_sequence_by_one_pass(tmp_path, score, padding_free):
    data = some_ignored(tiny_models.sequences(N, 0))
    for sample in data:  # without padding TRL ignores the first token of each sequence
        sample["labels"][0] = -100
    model, pruner = tiny_models.causal(), Pruner(N, 0.5, "ucb", score=score)
    trainer = make(
        tmp_path,
        data,
        pruner,
        model,
        learning_rate=0.0,
        padding_free=padding_free,
        max_length=None,
    )
    passes = []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    trainer.train()
    assert len(passes) == N // 4
    assert pruner.table.count.tolist() == [int(i != 2) for i in range(N)]
    if score == "loss":
        seen = pruner.table.count > 0
        expected = torch.tensor([loss_of_sample(model, sample, True) for sample in data])
        torch.testing.assert_close(pruner.table.mean[seen], expected[seen], rtol=1e-3, atol=1e-4)


def test_a_score_that_the_head_does_not_have(tmp_path):
    pruner = Pruner(N, 0.5, "ucb", score="el2n")
    with pytest.raises(ValueError, match="score='el2n' needs logits"):
        make(tmp_path, tiny_models.sequences(N, 0), pruner).train()
    assert not pruner.table.count.any()


def test_a_policy_rescales_sequences(tmp_path):
    pruner = Pruner(N, policy="infobatch", epochs=9)
    trainer = make(tmp_path, tiny_models.sequences(N, 0), pruner, max_steps=9)
    trainer.train()
    assert pruner.epoch == 1 and pruner.table.count.min() >= 1


def test_noise_is_found_after_one_epoch(tmp_path):
    """30 % of the sequences are noise, and as many are kept."""
    pruner = Pruner(600, 0.3, "ucb")
    trainer = make(tmp_path, tiny_models.sequences(600, 180), pruner, learning_rate=1e-2)
    trainer.train()
    assert pruner.table.count.tolist() == [1] * 600
    assert noise_among_selected(pruner, 180) >= 0.9


@pytest.mark.parametrize("strategy", ["wrapped", "bfd"])
def test_a_packed_data_set_has_rows_of_its_own(tmp_path, strategy):
    data = tiny_models.sequences(N, 0)
    packed = {"packing": True, "max_length": 20, "packing_strategy": strategy}
    with pytest.warns(UserWarning, match="A sample of the pruner is then a row"):
        trainer = make(tmp_path, data, **packed)
    rows = len(trainer.train_dataset)
    assert rows < N
    with pytest.raises(ValueError, match=f"got {rows}: packing=True joins documents into rows"):
        trainer.train()
    with pytest.warns(UserWarning, match="A sample of the pruner is then a row"):
        trainer = make(tmp_path, data, Pruner(rows, 0.5), **packed)
    trainer.train()
    assert trainer.pruner.table.count.tolist() == [1] * rows
