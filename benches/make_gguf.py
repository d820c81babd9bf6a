"""Writes a GGUF of a small model's true shapes with random weights, for measuring two engines on the same file.

usage: python benches/make_gguf.py llama-3.2-1b|qwen3-0.6b q4_0|q8_0|bf16 FILE.gguf     (needs: pip install gguf numpy)

Its tokenizer knows the 256 bytes; all other tokens stand for themselves. It serves benchmarks, not chat.
"""

import sys

import gguf
import numpy as np

# architecture, layers, hidden, ffn, heads, kv heads, head size, vocabulary, context, rope base; as in the published configs
SHAPES = {
    "llama-3.2-1b": ("llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5),
    "qwen3-0.6b": ("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960, 1e6),
}
TYPES = {
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


def main(shape, kind, path):
    arch, layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context, base = SHAPES[shape]
    quantisation, file_type = TYPES[kind]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"{shape} with random weights")
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if arch == "llama" else "qwen2")
    # GPT-2's alphabet: bytes that print stand for themselves, the others for what follows on 255.
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    letters = [chr(byte) for byte in printing] + [chr(256 + index) for index in range(len(others))]
    tokens = letters + [f"<{index}>" for index in range(len(letters), vocab)]
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab)
    writer.add_token_merges([])
    random = np.random.default_rng(1)

    def matrix(name, out, width):
        # Rows are drawn from a pool: as good for speed, and much faster to make.
        pool = (random.standard_normal((min(out, 1024), width)) * 0.02).astype(np.float32)
        packed = gguf.quants.quantize(pool, quantisation)
        rows = np.resize(np.arange(packed.shape[0]), out)
        writer.add_tensor(name, packed[rows], raw_dtype=quantisation)

    def norm(name, width):
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    matrix("token_embd.weight", vocab, hidden)
    norm("output_norm.weight", hidden)
    for layer in range(layers):
        at = f"blk.{layer}."
        norm(at + "attn_norm.weight", hidden)
        matrix(at + "attn_q.weight", heads * head_dim, hidden)
        matrix(at + "attn_k.weight", kv_heads * head_dim, hidden)
        matrix(at + "attn_v.weight", kv_heads * head_dim, hidden)
        matrix(at + "attn_output.weight", hidden, heads * head_dim)
        if arch == "qwen3":
            norm(at + "attn_q_norm.weight", head_dim)
            norm(at + "attn_k_norm.weight", head_dim)
        norm(at + "ffn_norm.weight", hidden)
        matrix(at + "ffn_gate.weight", ffn, hidden)
        matrix(at + "ffn_up.weight", ffn, hidden)
        matrix(at + "ffn_down.weight", hidden, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in SHAPES or sys.argv[2] not in TYPES:
        sys.exit(__doc__)
    main(*sys.argv[1:])
