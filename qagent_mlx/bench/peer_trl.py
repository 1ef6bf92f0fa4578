"""TRL's own GRPOTrainer on PyTorch's CPU backend, one step a line on stdin.

Runs in an environment of its own and imports nothing of this package but ``peer_steps``. TRL draws
from a data set: it holds the prompts of all steps in order, and is not shuffled.
"""

import sys
import tempfile
import time

import peer_steps
import torch
from datasets import Dataset
from peer_steps import Clock, say, work
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

torch.manual_seed(0)
clock = Clock()


class Gate(TrainerCallback):
    """Starts a step when a line comes in, and says how long it took."""

    def on_step_begin(self, args, state, control, **kwargs):
        """Wait for the line."""
        if not sys.stdin.readline():
            sys.exit(0)
        clock.start()

    def on_step_end(self, args, state, control, **kwargs):
        """Report."""
        clock.report()


def reward(completions, **kwargs):
    """The chains' rewards, however TRL names what it passes beside them."""
    return peer_steps.reward(completions)


model = AutoModelForCausalLM.from_pretrained(work["folder"], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(work["folder"])
texts = [" ".join(f"w{i}" for i in ids) for step in work["all_prompts"] for ids in step]
layers = model.config.num_hidden_layers
rows = work["prompts"] * work["group"]
trainer = GRPOTrainer(
    model=model,
    processing_class=tokenizer,
    reward_funcs=[reward],
    train_dataset=Dataset.from_dict({"prompt": texts}),
    args=GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        num_generations=work["group"],
        max_completion_length=work["new_tokens"],
        beta=work["beta"],
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        learning_rate=2e-4,
        max_steps=len(work["all_prompts"]),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1_000_000,
        shuffle_dataset=False,
        generation_kwargs={"min_new_tokens": work["new_tokens"]},
    ),
    peft_config=LoraConfig(
        r=work["rank"],
        lora_alpha=2 * work["rank"],
        lora_dropout=0.0,
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        layers_to_transform=list(range(max(0, layers - work["blocks"]), layers)),
    ),
    callbacks=[Gate()],
)
plain = trainer._generate


def generate(*arguments, **named):
    """TRL's generation, timed."""
    start = time.perf_counter()
    generated = plain(*arguments, **named)
    clock.rollout += time.perf_counter() - start
    return generated


trainer._generate = generate
say({"ready": True, "torch": torch.__version__, "threads": torch.get_num_threads()})
trainer.train()
