"""Reductions of twenty public configurations of TRL's GRPO to their settings, by name and text."""

FILES: dict[str, str] = {
    "quick-start.py": """
from datasets import load_dataset
from trl import GRPOTrainer
from trl import GRPOConfig
from trl.rewards import accuracy_reward
dataset = load_dataset("trl-lib/DeepMath-103K", split="train")
trainer = GRPOTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", reward_funcs=accuracy_reward, args=GRPOConfig(), train_dataset=dataset)
trainer.train()
""",
    "tldr-length.py": """
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer
dataset = load_dataset("trl-lib/tldr", split="train")
def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]
training_args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO", logging_steps=10)
trainer = GRPOTrainer(model="Qwen/Qwen2-0.5B-Instruct", reward_funcs=reward_len, args=training_args, train_dataset=dataset)
trainer.train()
""",
    "cli.yaml": """
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: trl-lib/DeepMath-103K
reward_funcs: [accuracy_reward, get_soft_overlong_punishment]
reward_weights: [1.0, 0.5]
learning_rate: 1e-5
max_completion_length: 2048
per_device_train_batch_size: 2
gradient_accumulation_steps: 16
use_vllm: true
vllm_mode: colocate
use_peft: true
lora_target_modules: [q_proj, v_proj]
dtype: bfloat16
attn_implementation: flash_attention_2
gradient_checkpointing: true
log_completions: true
""",
    "openr1-0.5b.yaml": """
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
model_revision: main
torch_dtype: bfloat16
dataset_name: open-r1/OpenR1-Math-220k
dataset_prompt_column: problem
system_prompt: "Think first, then answer in <think> and <answer> tags."
bf16: true
use_vllm: true
do_eval: false
gradient_accumulation_steps: 4
gradient_checkpointing_kwargs: {use_reentrant: false}
hub_model_id: mine
hub_strategy: every_save
learning_rate: 2.0e-05
log_level: info
logging_strategy: steps
lr_scheduler_type: cosine
max_prompt_length: 512
max_completion_length: 1024
max_steps: -1
num_generations: 16
num_train_epochs: 1
output_dir: data/Qwen2.5-0.5B
overwrite_output_dir: true
per_device_train_batch_size: 16
push_to_hub: true
report_to: [wandb]
reward_funcs: [accuracy, format, tag_count]
reward_weights: [1.0, 1.0, 1.0]
save_strategy: epoch
save_total_limit: 1
seed: 42
warmup_ratio: 0.1
""",
    "openr1-distill.yaml": """
model_name_or_path: deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
dataset_name: knoveleng/open-rs
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
learning_rate: 1.0e-6
max_completion_length: 3584
max_steps: 500
num_generations: 6
per_device_train_batch_size: 6
gradient_accumulation_steps: 4
temperature: 0.7
reward_funcs: [cosine, format]
reward_weights: [2.0, 1.0]
cosine_max_len: 3584
save_steps: 50
use_vllm: true
vllm_gpu_memory_utilization: 0.7
""",
    "openr1-code.yaml": """
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
dataset_name: open-r1/verifiable-coding-problems-python
beta: 0.01
code_provider: e2b
callbacks: [push_to_hub_revision]
benchmarks: [lcb_v4]
loss_type: dr_grpo
scale_rewards: false
mask_truncated_completions: true
num_iterations: 1
reward_funcs: [code, format]
wandb_entity: me
wandb_project: mine
max_grad_norm: 0.2
""",
    "mini-r1.yaml": """
model_name_or_path: Qwen/Qwen2.5-3B-Instruct
torch_dtype: bfloat16
attn_implementation: flash_attention_2
bf16: true
tf32: true
output_dir: runs/qwen-2.5-3b-r1-countdown
dataset_id_or_path: Jiayi-Pan/Countdown-Tasks-3to4
max_steps: 450
per_device_train_batch_size: 8
gradient_accumulation_steps: 8
gradient_checkpointing: true
learning_rate: 5.0e-7
lr_scheduler_type: cosine
warmup_ratio: 0.03
beta: 0.001
max_prompt_length: 256
max_completion_length: 1024
num_generations: 8
use_vllm: true
vllm_device: cuda:3
logging_steps: 2
save_steps: 25
seed: 42
""",
    "gsm8k-demo.py": """
import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
SYSTEM_PROMPT = '''Respond in the following format:
<reasoning>...</reasoning>
<answer>...</answer>
'''
def get_questions(split="train"):
    return load_dataset("openai/gsm8k", "main")[split]
def correctness_reward_func(prompts, completions, answer, **kwargs): return [2.0]
def int_reward_func(completions, **kwargs): return [0.5]
model_name = "Qwen/Qwen2.5-1.5B-Instruct"
output_dir = "outputs/Qwen-1.5B-GRPO"
training_args = GRPOConfig(
    output_dir=output_dir, run_name="Qwen-1.5B-GRPO-gsm8k", learning_rate=5e-6, adam_beta1=0.9, adam_beta2=0.99,
    weight_decay=0.1, warmup_ratio=0.1, lr_scheduler_type="cosine", logging_steps=1, bf16=True,
    per_device_train_batch_size=1, gradient_accumulation_steps=4, num_generations=16, max_prompt_length=256,
    max_completion_length=786, num_train_epochs=1, save_steps=100, max_grad_norm=0.1, report_to="wandb",
    log_on_each_node=False,
)
peft_config = LoraConfig(r=16, lora_alpha=64, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.05)
trainer = GRPOTrainer(model=model_name, processing_class=None, reward_funcs=[int_reward_func, correctness_reward_func],
                      args=training_args, train_dataset=get_questions(), peft_config=peft_config)
""",
    "unsloth-llama.py": """
from unsloth import FastLanguageModel, is_bfloat16_supported
max_seq_length = 1024
lora_rank = 32
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="meta-llama/Llama-3.2-3B-Instruct", max_seq_length=max_seq_length, load_in_4bit=True, fast_inference=True,
    max_lora_rank=lora_rank, gpu_memory_utilization=0.6)
model = FastLanguageModel.get_peft_model(
    model, r=lora_rank, target_modules=["q_proj", "v_proj"], lora_alpha=lora_rank, use_gradient_checkpointing="unsloth",
    random_state=3407)
from datasets import load_dataset
dataset = load_dataset("openai/gsm8k", "main", split="train")
max_prompt_length = 256
from trl import GRPOConfig, GRPOTrainer
training_args = GRPOConfig(
    learning_rate=5e-6, weight_decay=0.1, warmup_ratio=0.1, lr_scheduler_type="cosine", optim="paged_adamw_8bit",
    logging_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=1, num_generations=6,
    max_prompt_length=max_prompt_length, max_completion_length=max_seq_length - max_prompt_length,
    bf16=is_bfloat16_supported(), max_steps=250, save_steps=250, max_grad_norm=0.1, report_to="none", output_dir="outputs")
trainer = GRPOTrainer(model=model, processing_class=tokenizer, reward_funcs=[xml_reward], args=training_args, train_dataset=dataset)
""",
    "unsloth-gspo.py": """
from unsloth import FastModel
model, tokenizer = FastModel.from_pretrained("unsloth/gemma-3-1b-it", max_seq_length=2048, load_in_4bit=False, full_finetuning=False)
from trl import GRPOConfig
args = GRPOConfig(importance_sampling_level="sequence", loss_type="dr_grpo", epsilon=3e-4, epsilon_high=4e-4,
    mask_truncated_completions=False, steps_per_generation=4, gradient_accumulation_steps=2, per_device_train_batch_size=8,
    temperature=0.9, top_k=64, top_p=0.95, max_steps=100, unsloth_num_chunks=-1)
""",
    "course.py": """
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
dataset = load_dataset("mlabonne/smoltldr")
model_id = "HuggingFaceTB/SmolLM-135M-Instruct"
model = AutoModelForCausalLM.from_pretrained(model_id, torch_dtype="auto", device_map="auto")
lora_config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
model = get_peft_model(model, lora_config)
ideal_length = 50
def reward_len(completions, **kwargs): return [-abs(ideal_length - len(c)) for c in completions]
training_args = GRPOConfig(output_dir="GRPO", learning_rate=2e-5, per_device_train_batch_size=8, gradient_accumulation_steps=2,
    max_prompt_length=512, max_completion_length=96, num_generations=8, optim="adamw_8bit", num_train_epochs=1, bf16=True,
    report_to=["wandb"], remove_unused_columns=False, logging_steps=1)
trainer = GRPOTrainer(model=model, reward_funcs=[reward_len], args=training_args, train_dataset=dataset["train"])
""",
    "cookbook.py": """
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer
train_dataset, test_dataset = load_dataset("AI-MO/NuminaMath-TIR", split=["train[:5%]", "test[:5%]"])
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B-Instruct", torch_dtype="auto")
SYSTEM_PROMPT = "A conversation between User and Assistant."
lora_config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
args = GRPOConfig(output_dir="Qwen2-0.5B-GRPO-test", learning_rate=1e-5, remove_unused_columns=False,
    gradient_accumulation_steps=16, num_train_epochs=1, bf16=True, max_completion_length=64, num_generations=4,
    max_prompt_length=128, report_to=["tensorboard"], logging_steps=10, push_to_hub=True, save_strategy="steps", save_steps=10)
trainer = GRPOTrainer(model=model, reward_funcs=[format_reward, accuracy_reward], args=args, train_dataset=train_dataset)
""",
    "dapo.yaml": """
model_name_or_path: Qwen/Qwen2.5-1.5B
dataset_name: BytedTsinghua-SIA/DAPO-Math-17k
loss_type: dapo
epsilon: 0.2
epsilon_high: 0.28
beta: 0.0
mask_truncated_completions: true
reward_funcs: [accuracy_reward, get_soft_overlong_punishment]
max_completion_length: 1280
num_generations: 16
per_device_train_batch_size: 8
gradient_accumulation_steps: 16
steps_per_generation: 64
num_iterations: 2
max_steps: 100
eval_strategy: steps
eval_steps: 20
""",
    "cispo.yaml": """
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: trl-lib/DeepMath-103K
loss_type: cispo
epsilon_high: 5.0
num_iterations: 2
chat_template_kwargs: {enable_thinking: false}
scale_rewards: batch
lr_scheduler_type: constant_with_warmup
warmup_steps: 10
""",
    "sapo.json": """
{"model_name_or_path": "Qwen/Qwen3-0.6B", "dataset_name": "trl-lib/DeepMath-103K", "loss_type": "sapo",
\t"sapo_temperature_neg": 1.1, "beta": 0.02, "use_bias_correction_kl": false, "top_entropy_quantile": 0.2,
 "reward_funcs": "accuracy_reward"}
""",
    "bnpo-delta.yaml": """
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dataset_name: data/train.jsonl
loss_type: bnpo
delta: 4.0
gradient_accumulation_steps: 4
per_device_train_batch_size: 8
multi_objective_aggregation: normalize_then_sum
fp16: true
load_in_4bit: true
use_peft: true
use_rslora: true
lora_r: 64
lora_alpha: 16
""",
    "luspo.yaml": """
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dataset_name: trl-lib/DeepMath-103K
loss_type: luspo
importance_sampling_level: sequence
epsilon: 2.0e-3
epsilon_high: 2.5e-3
""",
    "vespo.yaml": """
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dataset_name: trl-lib/DeepMath-103K
loss_type: vespo
vespo_k_pos: 2.0
off_policy_mask_threshold: 0.5
min_p: 0.1
repetition_penalty: 1.05
generation_kwargs: {suppress_tokens: [1]}
""",
    "deepspeed.yaml": """
model_name_or_path: meta-llama/Llama-3.2-1B-Instruct
dataset_name: openai/gsm8k
dataset_config: main
deepspeed: zero3.json
ds3_gather_for_generation: false
num_generations: 8
generation_batch_size: 256
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
sync_ref_model: true
ref_model_mixup_alpha: 0.6
beta: 0.04
num_train_epochs: 2
reward_funcs: [accuracy_reward, mine.rewards.short]
use_liger_kernel: true
dataloader_num_workers: 4
""",
    "kwargs.py": """
import os
from trl import GRPOConfig, GRPOTrainer
common = dict(a=1)
settings = {"learning_rate": 3e-6, "num_generations": 4, "max_completion_length": 2 * 128}
args = GRPOConfig(output_dir=os.environ["OUT"], per_device_train_batch_size=int(os.environ["BATCH"]), **settings, **common)
trainer = GRPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", args=args, train_dataset=make_data(), reward_funcs=["accuracy_reward", judge],
                      callbacks=[Stop()])
""",
}
