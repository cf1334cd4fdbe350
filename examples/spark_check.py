"""A short training run that shows whether this machine works: the steps of NVIDIA's DGX Spark check, on local rows.

    python examples/spark_check.py rows.jsonl [steps] [model]

`rows.jsonl` has a column "text". The model is the embedded one ("demo") unless another is named.
"""

import sys

from datasets import load_dataset

from hasten import FastLanguageModel, FastModel, SFTConfig, SFTTrainer

max_seq_length = 2048
rows = sys.argv[1]
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 60
name = sys.argv[3] if len(sys.argv) > 3 else "demo"

dataset = load_dataset("json", data_files={"train": rows}, split="train")

model, tokenizer = FastModel.from_pretrained(
    model_name=name,
    max_seq_length=max_seq_length,
    load_in_4bit=True,
    load_in_8bit=False,
    full_finetuning=False,
)

model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    lora_alpha=16,
    lora_dropout=0,
    bias="none",
    use_gradient_checkpointing="unsloth",
    random_state=3407,
    max_seq_length=max_seq_length,
    use_rslora=False,
    loftq_config=None,
)

trainer = SFTTrainer(
    model=model,
    train_dataset=dataset,
    tokenizer=tokenizer,
    args=SFTConfig(
        max_seq_length=max_seq_length,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        warmup_steps=min(10, steps // 2),
        max_steps=steps,
        logging_steps=1,
        output_dir="outputs",
        optim="adamw_8bit",
        seed=3407,
    ),
)
trainer.train()
