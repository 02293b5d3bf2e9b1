"""The rival of `rl_step.py`: TRL's GRPOTrainer on the same shape, in a venv of its own.

    pip install trl==1.16.0 transformers==5.23.0 torch==2.13.0 accelerate==1.15.0 datasets==5.2.0
    HF_HUB_OFFLINE=1 python bench/trl_step.py --vocab 4096        # one JSON line, CPU-seconds

8 prompts x 8 responses of exactly 64 tokens (end-of-text suppressed), a random Qwen3 of hidden 256,
4 layers, 8 and 4 heads of 32, MLP 768, tied, fp32, `top_entropy_quantile` 0.2, one thread.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

PROMPTS, GROUP, NEW, EOS = 8, 8, 64, 0


def clock() -> float:
    """CPU-seconds; on a GPU, which works beside the CPU, seconds."""
    return time.perf_counter() if "cuda" in sys.argv else time.process_time()


class Timed(GRPOTrainer):
    """Notes the CPU-seconds of every rollout, which happens inside a training step."""

    rollouts: list[float] = []

    def _generate_and_score_completions(self, inputs):
        start = clock()
        out = super()._generate_and_score_completions(inputs)
        self.rollouts.append(clock() - start)
        return out


class Steps(TrainerCallback):
    """CPU-seconds of every step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kw):
        self.start = clock()

    def on_step_end(self, *args, **kw):
        self.seconds.append(clock() - self.start)


def main() -> None:
    """Train a few steps; the medians without the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = {"<eos>": EOS} | {f"w{i}": i for i in range(1, a.vocab)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>", padding_side="left"
    )
    shape = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, head_dim=32)
    shape |= dict(num_key_value_heads=4, intermediate_size=768, tie_word_embeddings=True)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=a.vocab, eos_token_id=EOS, **shape))
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = EOS
    rng = random.Random(0)
    rows = [
        {"prompt": " ".join(f"w{rng.randrange(1, a.vocab)}" for _ in range(5))}
        for _ in range(PROMPTS * a.steps)
    ]

    def reward(completions, **kw):  # share of odd words
        return [sum(w[-1] in "13579" for w in c.split()) / NEW for c in completions]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, max_steps=a.steps, per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP, max_completion_length=NEW, top_entropy_quantile=0.2,
            loss_type="dapo", epsilon_high=0.28, beta=0.0, learning_rate=1e-3,
            use_cpu=a.device == "cpu",
            bf16=False, gradient_checkpointing=False, save_strategy="no", report_to=[],
            disable_tqdm=True, generation_kwargs=dict(suppress_tokens=[EOS]),
        )  # fmt: skip
        steps, data = Steps(), Dataset.from_list(rows)
        trainer = Timed(model=model, args=config, reward_funcs=reward, train_dataset=data,
                        processing_class=tokenizer, callbacks=[steps])  # fmt: skip
        trainer.train()
    step, rollout = (statistics.median(x[1:]) for x in (steps.seconds, trainer.rollouts))
    kind = "cpu_" * (a.device == "cpu")
    out = {f"{kind}step_s": step, f"{kind}rollout_s": rollout, f"{kind}update_s": step - rollout}
    print(json.dumps(dict(vocab=a.vocab) | {k: round(v, 4) for k, v in out.items()}))


if __name__ == "__main__":
    main()
