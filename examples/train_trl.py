# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer with a small Llama that learns to count; a third of the texts are noise."""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from dynprune_cuda import Pruner
from dynprune_cuda.integrations.transformers import PrunedTrainerMixin

N, WORDS = 600, 40
torch.manual_seed(0)
numbers = (torch.randint(WORDS, (N + 60, 1)) + torch.arange(12)) % WORDS
numbers[:200] = torch.randint(WORDS, (200, 12))  # noise
texts = [" ".join(map(str, row)) for row in numbers.tolist()]

words = {str(number): number for number in range(WORDS)} | {"<pad>": WORDS, "<end>": WORDS + 1}
plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<end>")
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
config = LlamaConfig(vocab_size=WORDS + 2, num_hidden_layers=1, num_key_value_heads=2, **sizes)


class PrunedSFTTrainer(PrunedTrainerMixin, SFTTrainer): ...


with tempfile.TemporaryDirectory() as out:
    args = SFTConfig(out, learning_rate=1e-2, report_to=[], disable_tqdm=True, bf16=False)
    pruner = Pruner(N, keep=0.5, device=args.device)  # a random half, as the losses say
    sets = {"train_dataset": Dataset.from_dict({"text": texts[:N]}), "processing_class": tokenizer}
    PrunedSFTTrainer(model := LlamaForCausalLM(config), args, pruner=pruner, **sets).train()
    test = numbers[N:].to(args.device)
    accuracy = (model(test[:, :-1]).logits.argmax(-1) == test[:, 1:]).double().mean()
    print(f"{pruner.num_selected} of {N} texts, test accuracy {accuracy:.1%}")
