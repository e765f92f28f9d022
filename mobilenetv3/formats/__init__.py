"""File formats of checkpoints, read without running anything that a file contains.

    tensorbytes -> unpickle -> torchpickle -> torchfile     torch.save's, zip and older
    tensorbytes -> safetensors
    tensorbytes -> mindspore                                MindSpore's .ckpt
"""
