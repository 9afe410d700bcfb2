"""GGUF files: every value equals the gguf package's, bit for bit, and a damaged file is refused."""

import struct

import gguf
import numpy as np
import pytest
import torch

from lora_tutorial.lm.gguf import dequantize_q4_1, dequantize_q8_0, read_gguf
from lora_tutorial.storage import downloads

KINDS = {
    "Q4_1": (gguf.GGMLQuantizationType.Q4_1, dequantize_q4_1),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, dequantize_q8_0),
}


def bits(values):
    return np.asarray(values, dtype=np.float32).view(np.uint32)


@pytest.fixture
def written(tmp_path):
    """A file of the gguf package's own making: settings of every kind, and a tensor of each kind we read."""
    path, rng = tmp_path / "small.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("a.text", "né")
    writer.add_array("a.list", ["one", "two"])
    writer.add_float32("a.number", 0.5)
    writer.add_bool("a.switch", True)
    writer.add_int32("a.negative", -7)
    values = rng.normal(size=(4, 64)).astype(np.float32)
    stored = {"f32": (values, None)}
    for name, (kind, _) in KINDS.items():
        stored[name] = gguf.quantize(values, kind), kind
    for name, (data, kind) in stored.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, stored, values


@pytest.mark.parametrize("name", KINDS)
def test_blocks_of_every_code_scale_and_sign_equal_the_gguf_package(name):
    kind, own = KINDS[name]
    generator = np.random.default_rng(1)
    size = {"Q4_1": 20, "Q8_0": 34}[name]
    blocks = generator.integers(0, 256, size=(5000, size), dtype=np.uint8)
    halves = blocks[:, : 4 if name == "Q4_1" else 2].copy().view(np.float16)
    blocks = blocks[np.isfinite(halves).all(1)]  # every finite scale, subnormal ones too
    expected = gguf.dequantize(blocks, kind)
    assert np.array_equal(bits(own(torch.from_numpy(blocks))), bits(expected))


def test_settings_and_tensors_are_those_that_were_written(written):
    path, stored, values = written
    found = read_gguf(path)
    wanted = {"a.text": "né", "a.list": ["one", "two"], "a.number": 0.5, "a.switch": True, "a.negative": -7}
    assert {key: found.settings[key] for key in wanted} == wanted
    for name, (data, kind) in stored.items():
        expected = values if kind is None else gguf.dequantize(data, kind)
        assert found.tensors[name].shape == values.shape
        assert np.array_equal(bits(found.tensors[name].dequantize()), bits(expected)), name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"GGML" + data[4:], "no GGUF file of version 3"),
        (lambda data: data[:4] + struct.pack("<I", 2) + data[8:], "no GGUF file of version 3"),
        (lambda data: data[:40], "damaged"),
        (lambda data: data[:-64], "ends before the last weight"),
        (lambda data: data[:8] + struct.pack("<Q", 2**40) + data[16:], "damaged"),
    ],
)
def test_a_damaged_file_is_refused_by_name(written, damage, message):
    path, _, _ = written
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


def test_a_kind_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kind = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("w", gguf.quantize(np.ones((1, 32), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="w is of GGUF's kind 2; read are F32, F16, Q4_1, Q8_0"):
        read_gguf(path)


def test_smollm2_holds_what_the_file_holds(smollm2):
    path = next(downloads.fetch("smollm2").glob("*.gguf"))
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    state = smollm2.model.state_dict()
    names = {"blk.29.ffn_down.weight": "model.layers.29.mlp.down_proj.weight"}
    names |= {"blk.7.attn_v.weight": "model.layers.7.self_attn.v_proj.weight"}
    names |= {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    for theirs, ours in names.items():
        tensor = reader[theirs]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(bits(state[ours]), bits(expected)), theirs
    assert sum(value.numel() for value in smollm2.model.parameters()) == 134_515_008
