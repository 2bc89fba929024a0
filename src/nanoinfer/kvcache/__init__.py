"""The paged KV cache: blocks, prefix index, facade."""
