# SPDX-License-Identifier: Apache-2.0
"""A causal language model trained on InfoBatch's subsets, in one process or as one of several."""

import tiny_models
import transformers

from dynprune_cuda import Pruner
from dynprune_cuda.integrations.transformers import PrunedTrainer

N, GLOBAL_BATCH = 48, 8


def train(folder, processes, accumulate=1):
    """Returns the numbers of items, lengths of the epochs, the table and the weights.

    Args:
        folder: For the Trainer.
        processes: Among which each batch of `GLOBAL_BATCH` samples is divided.
        accumulate: Batches of a step of the optimiser.
    """
    items = []

    class Recording(PrunedTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            items.append(int(num_items_in_batch))
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    pruner = Pruner(N, policy="infobatch", epochs=8, seed=1)
    trainer = Recording(
        model=tiny_models.causal(),
        args=transformers.TrainingArguments(
            **{
                **tiny_models.options(folder, optim="sgd", learning_rate=0.3),
                "per_device_train_batch_size": GLOBAL_BATCH // processes // accumulate,
                "gradient_accumulation_steps": accumulate,
                "average_tokens_across_devices": True,
                # Of two epochs: InfoBatch decides at each selection how many samples it keeps.
                "max_steps": 6 + 5,
            }
        ),
        # Sequences of 6 to 30 tokens: the processes have different numbers of them.
        train_dataset=tiny_models.sequences(N, N // 3, longest=30),
        data_collator=tiny_models.pad,
        pruner=pruner,
    )
    lengths = []
    begin = pruner.set_epoch

    def set_epoch(epoch):
        begin(epoch)
        lengths.append(len(pruner.selected))

    pruner.set_epoch = set_epoch
    trainer.train()
    del pruner.set_epoch
    pruner.set_epoch(pruner.epoch + 1)  # which shares the scores of the last epoch
    weights = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    return items, lengths, pruner.state_dict()["table"], weights
