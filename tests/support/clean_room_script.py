"""What A25 runs, in a process of its own; prints one JSON object as its last line."""

import json
import locale
import multiprocessing
import socket
import sys
import threading
import time
from pathlib import Path


def main():
    model_folder, rows, work = sys.argv[1:]
    multiprocessing.set_start_method("spawn")
    for name in ("triton", "bitsandbytes", "flash_attn", "vllm", "xllamacpp"):
        sys.modules[name] = None
    connections = []

    def refuse(self, address):
        connections.append(str(address))
        raise OSError("no network in the clean room")

    socket.socket.connect = refuse
    most_children = watch_children()

    import peft.tuners.lora.layer
    import transformers.models.llama.modeling_llama

    modules = (transformers.models.llama.modeling_llama, peft.tuners.lora.layer, transformers.Trainer)
    before = [{name: id(value) for name, value in vars(module).items()} for module in modules]

    from hasten.training.config import combine
    from hasten.training.job import train

    config = {
        "model": {"name": model_folder},
        "data": {"source": rows, "heldout": 2},
        "training": {"steps": 3, "learning_rate": 1e-2, "warmup_steps": 0, "sample_tokens": 4},
        "output": f"{work}/run",
    }
    result = train(combine(config))

    import torch
    from transformers import AutoModelForCausalLM

    from hasten import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(str(result.adapter), load_in_4bit=False)
    model.save_pretrained_merged(f"{work}/merged", tokenizer, save_method="merged_16bit")
    ids = torch.arange(3, 20).unsqueeze(0)
    with torch.no_grad():
        live = model.eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(f"{work}/merged").eval()(ids).logits.float()

    made = model.save_pretrained_gguf(f"{work}/tiny", tokenizer, quantization_method=["q8_0", "q4_k_m"])
    replaced = [
        name
        for module, old in zip(modules, before, strict=True)
        for name in old
        if id(vars(module).get(name)) != old[name]
    ]
    report = {
        "preferred_encoding": locale.getpreferredencoding(False),
        "connections": connections,
        "replaced": replaced,
        "most_children": most_children(),
        "steps": result.steps,
        "merged_equals_live": float((live - merged).abs().max()),
        "files": {Path(file).name: Path(file).read_bytes()[:4].decode() for file in made["gguf_files"]},
    }
    print(json.dumps(report))


def watch_children():
    import psutil

    seen = [0]

    def look():
        while True:
            seen[0] = max(seen[0], len(psutil.Process().children(recursive=True)))
            time.sleep(0.05)

    threading.Thread(target=look, daemon=True).start()
    return lambda: seen[0]


if __name__ == "__main__":
    main()
