# SPDX-License-Identifier: Apache-2.0
"""Small language models, and sequences of which some are noise."""

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

WORDS = 24
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def causal(seed=0):
    torch.manual_seed(seed)
    more = {"num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_hidden_layers=1, **SIZES, **more))


def masked(seed=0, kind=BertForMaskedLM, **more):
    torch.manual_seed(seed)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=WORDS, num_hidden_layers=1, **SIZES, **no_dropout, **more)
    return kind(config)


def tagging(seed=0):
    return masked(seed, BertForTokenClassification, num_labels=5)


def sequences(number, noisy, *, shortest=6, longest=14, seed=0):
    """Sequences in which each word follows the one before, but for the first `noisy` ones."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(number):
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        first = int(torch.randint(WORDS - 1, (), generator=generator))
        words = (first + torch.arange(length)) % (WORDS - 1) + 1
        if index < noisy:
            words = torch.randint(1, WORDS, (length,), generator=generator)
        made.append({"input_ids": words.tolist()})
    return made


def pad(samples):
    """Collates sequences with labels, padded by -100."""
    longest = max(len(sample["input_ids"]) for sample in samples)

    def padded(name, value):
        rows = [list(sample[name]) for sample in samples]
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    named = [
        {"labels": s["input_ids"], "attention_mask": [1] * len(s["input_ids"]), **s}
        for s in samples
    ]
    samples = named
    return {
        "input_ids": padded("input_ids", 0),
        "attention_mask": padded("attention_mask", 0),
        "labels": padded("labels", -100),
    }


def options(folder, **more):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        **more,
    }


def loss_of_sample(model, sample, shifts):
    """The mean loss of one sequence by itself, in float64."""
    batch = pad([sample])
    with torch.no_grad():
        labels = batch.pop("labels")
        logits = model(**batch).logits.double()
    if shifts:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()


def some_ignored(samples, seed=0):
    """The same with a third of the labels ignored, and all of sample 2."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, sample in enumerate(samples):
        words = torch.tensor(sample["input_ids"])
        keep = torch.rand(len(words), generator=generator) > 0.3
        keep[1] = True
        labels = torch.where(keep & (index != 2), words % 5, -100)
        made.append({**sample, "labels": labels.tolist()})
    return made


def noise_among_selected(pruner, noisy):
    pruner.set_epoch(1)
    return (pruner.selected < noisy).double().mean().item()
