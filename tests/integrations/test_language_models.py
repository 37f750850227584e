# SPDX-License-Identifier: Apache-2.0
"""The Trainer and TRL's SFTTrainer on language models: scores of sequences, losses as they are."""

import pytest
import torch
from torch import nn

from dynprune_cuda import Pruner

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import tiny_models  # noqa: E402
from tiny_models import (  # noqa: E402
    loss_of_sample,
    noise_among_selected,
    options,
    some_ignored,
)

from dynprune_cuda.integrations.transformers import PrunedTrainer  # noqa: E402

pytestmark = [
    pytest.mark.slow,  # trains with the Trainer
    pytest.mark.filterwarnings(
        "ignore:'pin_memory' argument is set as true but no accelerator is found"
    ),
]
N = 24
DATA = tiny_models.sequences(N, 0)


def make(folder, model, data=DATA, pruner=None, collate=tiny_models.pad, **more):
    kept = {name: more.pop(name) for name in ("shift_labels",) if name in more}
    return PrunedTrainer(
        model=model,
        args=transformers.TrainingArguments(**options(folder, **more)),
        train_dataset=data,
        data_collator=collate,
        pruner=pruner or Pruner(len(data), 0.5, "ucb"),
        **kept,
    )


@pytest.mark.parametrize("kind", ["causal", "masked", "tagging"])
def test_scores_are_those_of_each_sequence(tmp_path, kind):
    model, data = getattr(tiny_models, kind)(), some_ignored(DATA)
    trainer = make(tmp_path, model, data, learning_rate=0.0)
    trainer.train()
    expected = [loss_of_sample(model, sample, kind == "causal") for sample in data]
    table = trainer.pruner.table
    assert table.count.tolist() == [int(i != 2) for i in range(N)]
    seen = table.count > 0
    torch.testing.assert_close(table.mean[seen], torch.tensor(expected)[seen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_training_is_the_trainers_own(tmp_path, smoothing, accumulate):
    """A pruner that keeps all changes nothing but the order."""
    weights = []
    more = {"label_smoothing_factor": smoothing, "gradient_accumulation_steps": accumulate}
    pruner = Pruner(N, policy="full")
    trainer = make(tmp_path, tiny_models.causal(), pruner=pruner, learning_rate=0.01, **more)
    trainer.train()
    weights.append([x.detach() for x in trainer.model.parameters()])

    class Ordered(transformers.Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return Pruner(N, policy="full").sampler()

    plain = Ordered(
        tiny_models.causal(),
        transformers.TrainingArguments(**options(tmp_path, learning_rate=0.01, **more)),
        train_dataset=DATA,
        data_collator=tiny_models.pad,
    )
    plain.train()
    for a, b in zip(weights[0], plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("known", ["input_ids", "position_ids"])
def test_samples_joined_without_padding_are_told_apart(tmp_path, known):
    model = tiny_models.causal()
    flatten = transformers.DataCollatorWithFlattening()

    def collate(samples):
        if known == "position_ids":  # the collate function cuts them, so that lengths do not tell
            samples = [{"input_ids": s["input_ids"][:5]} for s in samples]
        return flatten(samples)

    trainer = make(tmp_path, model, collate=collate, learning_rate=0.0)
    seen = []
    compute = trainer.compute_loss

    def watched(model, inputs, *args, **more):
        seen.append((inputs["input_ids"].shape[0], inputs["sample_id"].shape))
        return compute(model, inputs, *args, **more)

    trainer.compute_loss = watched
    trainer.train()
    assert all(rows == 1 and ids[0] == 1 and ids[1] >= 20 for rows, ids in seen)
    cut = [{"input_ids": s["input_ids"][: 5 if known == "position_ids" else None]} for s in DATA]
    expected = torch.tensor([loss_of_sample(model, sample, True) for sample in cut])
    torch.testing.assert_close(trainer.pruner.table.mean, expected, rtol=1e-4, atol=1e-5)
    assert trainer.pruner.table.count.tolist() == [1] * N


def test_tokens_that_nobody_can_tell_apart_are_refused(tmp_path):
    def collate(samples):
        words = torch.cat([torch.tensor(s["input_ids"][:5]) for s in samples])[None]
        return {"input_ids": words, "labels": words}

    with pytest.raises(ValueError, match="neither the lengths of their input_ids nor position_ids"):
        make(tmp_path, tiny_models.causal(), collate=collate).train()


class Weighted(nn.Module):
    """A classifier with class weights in its forward pass."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.register_buffer("weight", torch.tensor([1.0, 5.0, 0.2]))

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, labels, self.weight)
        return {"loss": loss, "logits": logits}


def points(labels):
    x = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    return [{"x": x[i], "labels": int(label)} for i, label in enumerate(labels)]


def test_class_weights_in_the_forward_pass_survive(tmp_path):
    model, data = Weighted(), points(torch.arange(N) % 3)
    trainer = make(tmp_path, model, data, collate=None)
    inputs = {
        "x": torch.stack([s["x"] for s in data]),
        "labels": torch.arange(N) % 3,
        "sample_id": torch.arange(N),
    }
    trainer.pruner.set_epoch(0)
    loss = trainer.compute_loss(model, dict(inputs))
    logits = model.net(inputs["x"])
    expected = nn.functional.cross_entropy(logits, inputs["labels"], model.weight)
    assert torch.equal(loss, expected)
    loss.backward()
    assert model.net.weight.grad.abs().sum() > 0
    plain = nn.functional.cross_entropy(logits, inputs["labels"], reduction="none").detach()
    torch.testing.assert_close(trainer.pruner.table.mean, plain)


@pytest.mark.parametrize("labels", ["mixed", "one class first"])
def test_a_loss_that_no_policy_can_rescale_is_refused(tmp_path, labels):
    pruner = Pruner(N, policy="infobatch", epochs=9)
    classes = torch.arange(N) % 3
    if labels == "one class first":  # then class weights cancel in the first batch
        order = pruner.epoch_order()
        classes[order[:4]] = 1
    trainer = make(tmp_path, Weighted(), points(classes), pruner, collate=None, max_steps=18)
    with pytest.raises(ValueError, match="not the mean cross-entropy of its outputs"):
        trainer.train()
    assert pruner.epoch == 0
    assert bool(pruner.table.count.any()) == (labels != "mixed")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_policy_rescales_sequences(tmp_path, accumulate):
    pruner = Pruner(N, policy="infobatch", epochs=9)
    model = tiny_models.causal()
    trainer = make(
        tmp_path,
        model,
        pruner=pruner,
        max_steps=2 * 6 // accumulate,
        gradient_accumulation_steps=accumulate,
        learning_rate=1e-3,
    )
    trainer.train()
    pruner.set_epoch(pruner.epoch + 1)
    ids = torch.arange(N)
    factors = pruner.rescale(ids, torch.ones(N))
    assert (factors > 1).any()
    batch = {**tiny_models.pad(DATA), "sample_id": ids}
    labels = batch["labels"][:, 1:]
    logits = model.eval()(**{k: x for k, x in batch.items() if k != "sample_id"}).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(77))
    torch.testing.assert_close(loss, (losses * factors[:, None]).sum() / 77)
    wanted, got = (torch.autograd.grad(x, list(model.parameters())) for x in (losses.sum(), loss))
    assert not any(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


@pytest.mark.parametrize("padded", [True, False])
def test_noise_is_found_after_one_epoch(tmp_path, padded):
    """30 % of the sequences are noise, and as many are kept."""
    data = tiny_models.sequences(600, 180)
    pruner = Pruner(600, 0.3, "ucb")
    collate = tiny_models.pad if padded else transformers.DataCollatorWithFlattening()
    trainer = make(
        tmp_path, tiny_models.causal(), data, pruner, collate=collate, learning_rate=1e-2
    )
    trainer.train()
    assert pruner.table.count.tolist() == [1] * 600
    assert noise_among_selected(pruner, 180) >= 0.9


class Own(nn.Module):
    """A language model whose class says nothing, and whose labels stand where they are."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(tiny_models.WORDS, tiny_models.WORDS)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.words(input_ids)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return loss, logits


@pytest.mark.parametrize("shifts", [True, False])
def test_a_model_of_ones_own_says_whether_labels_are_shifted(tmp_path, shifts):
    torch.manual_seed(0)
    model = Own()
    trainer = make(tmp_path, model, shift_labels=shifts, learning_rate=0.0)
    trainer.train()
    expected = []
    for sample in DATA:
        words = torch.tensor(sample["input_ids"])
        logits = model.words(words).detach()
        logits, labels = (logits[:-1], words[1:]) if shifts else (logits, words)
        expected.append(nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(trainer.pruner.table.mean, torch.stack(expected))


def test_a_model_of_ones_own_that_does_not_say(tmp_path):
    trainer = make(tmp_path, Own())
    with pytest.warns(RuntimeWarning, match="a whole batch's loss tells little"):
        trainer.train()


class NoLabels(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.net(x)}


class NoLoss(NoLabels):
    def forward(self, x, labels):
        return super().forward(x)


@pytest.mark.parametrize("kind", [NoLabels, NoLoss])
def test_a_model_without_a_loss_is_trained_by_the_pruners(tmp_path, kind):
    torch.manual_seed(0)
    model, labels = kind(), torch.arange(N) % 3
    before = model.net.weight.detach().clone()
    trainer = make(tmp_path, model, points(labels), collate=None, label_names=["labels"])
    trainer.train()
    assert not torch.equal(model.net.weight, before)
    assert trainer.pruner.table.count.tolist() == [1] * N


def test_batches_of_like_lengths(tmp_path):
    data = tiny_models.sequences(64, 0, shortest=2, longest=40)
    spread = {}
    for strategy in ("random", "group_by_length"):
        trainer = make(
            tmp_path, tiny_models.causal(), data, Pruner(64, 0.5), num_train_epochs=2,
            train_sampling_strategy=strategy,
        )  # fmt: skip
        seen = []
        compute = trainer.compute_loss

        def watched(model, inputs, *args, seen=seen, compute=compute, **more):
            seen.append(inputs["attention_mask"].sum(1))
            return compute(model, inputs, *args, **more)

        trainer.compute_loss = watched
        trainer.train()
        assert len(seen) == 16 + 8 == trainer.state.global_step
        spread[strategy] = [
            sum(float(x.max() - x.min()) for x in y) for y in (seen[:16], seen[16:])
        ]
        assert int(trainer.pruner.table.count.sum()) == 64 + 32
    for ours, random in zip(spread["group_by_length"], spread["random"], strict=True):
        assert ours < 0.5 * random
    with pytest.raises(ValueError, match=r"train_sampling_strategy must be .* 'sequential'"):
        make(tmp_path, tiny_models.causal(), train_sampling_strategy="sequential").train()
