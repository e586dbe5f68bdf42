"""What a weight is: an array, an NF4 tensor, blocks of a GGUF file or a parameter, and where the decoder takes it."""
