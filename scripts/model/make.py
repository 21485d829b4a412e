"""Make the demonstration model: write the lessons, train on the CPU, save a GGUF.

`make model` runs this with the path of the file that the package carries.
"""

import math
import random
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from fingerprint import KEY, fingerprint
from grammar import TOPICS, UNLISTED, opening, paragraph
from lessons import lesson
from network import Llama, Shape
from prompts import about
from tokenizer import BOS, BYTES, EOS, SPECIAL, UNK, Tokenizer
from torch.nn import functional as F

SEED = 1
THREADS = 2
VOCABULARY = 1024
STAGES = [(600, 8, 256), (420, 3, 1280)]
"""Steps, sequences a step, tokens a sequence: short ones teach the language, long ones to keep it up."""
PEAK_RATE = 4e-3

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + (message.role if message.role in ['system', 'assistant'] else 'user') + '|>' }}"
    "{{ message.content or '' }}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def main(path: Path) -> None:
    """Make the model from nothing."""
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    rng = random.Random(SEED)
    tokenizer = Tokenizer.train(sample(rng), VOCABULARY, UNLISTED)
    model = Llama(Shape(vocabulary=len(tokenizer.tokens)))
    train(model, tokenizer, rng)
    save(model, tokenizer, path)


def sample(rng: random.Random) -> str:
    """A text to make the vocabulary from."""
    writers = [paragraph, paragraph, opening, about]
    return "\n".join(write(topic, rng) for topic in TOPICS for write in writers for _ in range(200))


def train(model: Llama, tokenizer: Tokenizer, rng: random.Random) -> None:
    """Train through all stages."""
    sizes = [(batch, length) for steps, batch, length in STAGES for _ in range(steps)]
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, len(sizes)))
    began = time.monotonic()
    for step, (batch, length) in enumerate(sizes):
        lessons = [lesson(tokenizer, length, rng) for _ in range(batch)]
        tokens = torch.tensor([each.tokens[:length] for each in lessons])
        targets = torch.tensor([each.targets[1 : length + 1] for each in lessons])
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == len(sizes) - 1:
            print(f"step {step:4} loss {loss.item():.3f} {time.monotonic() - began:5.1f} s", flush=True)


def _rate(step: int, steps: int) -> float:
    """A short rise, then half a cosine down to a hundredth."""
    rise = min(1.0, (step + 1) / 30)
    return rise * (0.505 + 0.495 * math.cos(math.pi * step / steps))


def save(model: Llama, tokenizer: Tokenizer, path: Path) -> None:
    """Write the GGUF: half-precision matrices, the vocabulary, the chat template."""
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _describe(writer, model.shape)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(name, tensor.numpy().astype(np.float16 if tensor.dim() > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def _describe(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("tally-demo")
    writer.add_description("A toy that writes sentences about a coast, its market and its tally sticks.")
    writer.add_string(KEY, fingerprint())
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    normal = len(tokenizer.tokens) - len(SPECIAL + BYTES)
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * (len(SPECIAL) - 1)
    types += [gguf.TokenType.BYTE] * len(BYTES) + [gguf.TokenType.NORMAL] * normal
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
