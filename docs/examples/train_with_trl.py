"""TRL's own GRPOTrainer in a shop, on a CPU: python train_with_trl.py SHOP [MODEL].

pip install "qagent-mlx[trl]". Without MODEL, a Hugging Face name or folder whose chat template
knows tools, a tiny Qwen3 is made on the spot: it learns the calls from a few written episodes, and
GRPO goes on from there. Prints the mean reward of each step.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer

from qagent_mlx.environment import ShopEnvironment
from qagent_mlx.environment.shop_environment import OVER
from qagent_mlx.environment.trl_adapter import ShopTools, factory, rows

STEPS, GROUP, CASES = 6, 4, 2
WRITTEN, DEMONSTRATIONS = 160, 8  # steps of learning the calls, and episodes to learn them from


class Print(TrainerCallback):
    """Prints the reward of each step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step has ended."""
        if logs and "reward" in logs:
            calls = logs.get("tools/call_frequency", 0.0)
            print(f"step {state.global_step}  reward {float(logs['reward']):.3f}  calls {calls}")


def conversations(environment: ShopEnvironment) -> list[list[dict[str, Any]]]:
    """Episodes that read memory, search one of its first lines and recommend that."""
    made = []
    for number, case in enumerate(environment.cases("train")[:DEMONSTRATIONS]):
        messages = environment.reset(case, tools=True)
        line = f"<r{number % 2}>"
        for name, arguments in (
            ("fetch_memory", {}),
            ("search", {"query": line}),
            ("recommend", {"query": "<s1>"}),
        ):
            function = {"name": name, "arguments": arguments}
            call = {"type": "function", "function": function}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            step = environment.step(function)
            answer = step.observation or OVER
            messages.append({"role": "tool", "name": name, "content": answer})
        messages.append({"role": "assistant", "content": "Done."})  # TRL asks for a last turn
        made.append(messages)
    return made


def tiny_model(environment: ShopEnvironment) -> tuple[Any, Any]:
    """A Qwen3 of two blocks that has learned to call the tools, and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    texts = conversations(environment)
    episode = ShopTools(environment)  # TRL describes an environment's methods, by their names
    tools = [getattr(episode, name) for name in ("fetch_memory", "recommend", "search")]
    words = [str(message) for messages in texts for message in messages]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator([*words, *map(str, map(get_json_schema, tools))], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    trains = template.with_name("qwen3_training.jinja").read_text(encoding="utf-8")
    learn_calls(
        model,
        tokenizer,
        [
            tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=trains, tokenize=False
            )
            for messages in texts
        ],
    )
    return model, tokenizer


def learn_calls(model: Any, tokenizer: Any, texts: Sequence[str]) -> None:
    """Raise the likelihood of what the assistant says in written episodes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    says = tokenizer.encode("assistant\n", add_special_tokens=False)
    batch = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        labels, speaking = [], False
        for place, token in enumerate(ids):
            begun = ids[place - len(says) : place] == says and ids[place - len(says) - 1] == start
            speaking = speaking or begun
            labels.append(token if speaking else -100)
            speaking = speaking and token != end
        batch.append((torch.tensor([ids]), torch.tensor([labels])))
    for step in range(WRITTEN):
        ids, labels = batch[step % len(batch)]
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 40 == 0 or step == WRITTEN - 1:
            print(f"written episodes, step {step}: loss {float(loss.detach()):.3f}")


def main(shop: str, name: str = "") -> None:
    """Train for some steps."""
    torch.manual_seed(0)
    environment = ShopEnvironment.open(shop)
    if name:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    else:
        model, tokenizer = tiny_model(environment)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows(environment, "train")),
        environment_factory=factory(environment),
        callbacks=[Print()],
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=GROUP * CASES,
            num_generations=GROUP,
            max_completion_length=768,  # memory and results count
            max_tool_calling_iterations=6,
            learning_rate=2e-4,
            max_steps=STEPS,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        ),
    )
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
