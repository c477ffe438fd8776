"""The language of the training prompts: frames, phrases, structured captions and the tokenizer."""
