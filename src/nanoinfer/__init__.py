"""nanoinfer: a complete, fast, small LLM inference engine in torch and Triton."""
