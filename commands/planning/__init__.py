"""python main.py plan: what a training needs, before a GPU is rented.

    python main.py plan --config spatial_mllm.yaml --config scale_3b.yaml --gpus 8 --memory_gb 80

takes the options of `fit` and runs a training step on tensors without memory: no weights are read, no video, no GPU.
Weights, gradients, the optimizer's state and activations are of each GPU; activations are the most bytes of all other
tensors at once, with 96 tokens of text per question. Validations take the weights, under FSDP2 the whole ones beside
the shards, and the optimizer's state; the activations of answers are not counted. A frozen teacher (--model.teacher) is
whole on each GPU and computes each step; one with a cache is taken to be complete there, and is not loaded. A step is
that of supervised training: of GRPO neither the sampling nor the several answers to each question are counted.

Of released weights a second table has the alternatives (checkpointing, LoRA, fewer frames, FSDP2 and all of them), with
the hours of the training on the GPUs that have room for them. Hours are floating-point operations over the GPU's peak
times --utilization, without loading data, validations and tests; with --questions, the questions of an epoch, those of
one. The last line states what fits, or what to change, after the command that starts it.
"""
