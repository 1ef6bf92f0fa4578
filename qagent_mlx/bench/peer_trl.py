"""TRL's own GRPOTrainer on PyTorch's CPU backend, one step a line on stdin.

Runs in an environment of its own and imports nothing of this package. TRL draws from a data
set: it holds the prompts of all steps in order, and is not shuffled.
"""

import json
import resource
import sys
import tempfile
import time

work = json.loads(sys.argv[1])
out, sys.stdout = sys.stdout, sys.stderr

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

torch.manual_seed(0)
clock = {"began": 0.0, "generating": 0.0, "spent": 0.0}


def say(row):
    """One line of JSON to whoever started this."""
    out.write(json.dumps(row) + "\n")
    out.flush()


class Gate(TrainerCallback):
    """Starts a step when a line comes in, and says how long it took."""

    def on_step_begin(self, args, state, control, **kwargs):
        """Wait for the line."""
        if not sys.stdin.readline():
            sys.exit(0)
        clock.update(began=time.perf_counter(), spent=time.process_time(), generating=0.0)

    def on_step_end(self, args, state, control, **kwargs):
        """Report."""
        seconds = time.perf_counter() - clock["began"]
        say(
            {
                "rollout": clock["generating"],
                "update": seconds - clock["generating"],
                "cpu": time.process_time() - clock["spent"],
                "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )


def reward(completions, **kwargs):
    """Differs between the chains of a group."""
    return [float(sum(map(ord, text)) % 97) / 97 for text in completions]


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
    made = plain(*arguments, **named)
    clock["generating"] += time.perf_counter() - start
    return made


trainer._generate = generate
say({"ready": True, "torch": torch.__version__, "threads": torch.get_num_threads()})
trainer.train()
