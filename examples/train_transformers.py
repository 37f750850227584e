# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Trainer with a small BERT: does a text have more a's than b's?"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from dynprune_cuda import Pruner
from dynprune_cuda.integrations.transformers import PrunedTrainer

torch.manual_seed(0)
texts = torch.randint(1, 3, (2500, 15))  # token 1 is an a, token 2 a b
samples = [{"input_ids": text, "labels": int((text == 1).sum() > 7)} for text in texts]
train_set, test_set = samples[:2000], samples[2000:]
sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 16}
config = BertConfig(vocab_size=3, num_hidden_layers=1, num_attention_heads=2, **sizes)


def accuracy(prediction):
    return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}


with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(
        folder,
        num_train_epochs=8,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        eval_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
    )
    pruner = Pruner(len(train_set), keep=0.3, period=2, device=args.device)
    model = BertForSequenceClassification(config)
    sets = {"train_dataset": train_set, "eval_dataset": test_set}
    trainer = PrunedTrainer(model, args, pruner=pruner, compute_metrics=accuracy, **sets)
    trainer.train()  # of trainer.state.max_steps: 63 on everything, then 19 per epoch
    print(f"{trainer.state.global_step} steps instead of 504, {trainer.evaluate()}")
