"""The messages against the committed scistream.proto and against bytes written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from ministream.tunnel import messages


def test_the_proto_file_says_the_same(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    source = Path(messages.__file__).parent
    out = tmp_path / "set"
    # Descriptors keep JSON names and positions that the run-time ones lack; only names, numbers and types count.
    assert protoc.main(["", f"-I{source}", f"--descriptor_set_out={out}", "scistream.proto"]) == 0
    compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    for message in compiled.message_type:
        for field in message.field:
            field.ClearField("json_name")
    by_name = {message.name: message for message in compiled.message_type}
    ours = {message.name: message for message in messages.DESCRIPTOR.message_type}
    assert by_name == ours
    assert list(compiled.service[0].method) == sorted(
        messages.DESCRIPTOR.service[0].method, key=lambda m: [x.name for x in compiled.service[0].method].index(m.name)
    )
    assert compiled.package == messages.DESCRIPTOR.package


def test_field_numbers_on_the_wire() -> None:
    request = messages.Request(uid="u", role="PROD", num_conn=5, rate=10000)
    assert request.SerializeToString() == b"\x0a\x01u\x12\x04PROD\x18\x05\x20\x90\x4e"
    update = messages.UpdateTargets(uid="u", remote_listeners=["a:1", "b:2"], role="CONS")
    assert update.SerializeToString() == b"\x0a\x01u\x12\x03a:1\x12\x03b:2\x1a\x04CONS"
    hello = messages.Hello(uid="u", prod_listeners=["a:1"], role="PROD")
    assert hello.SerializeToString() == b"\x0a\x01u\x12\x03a:1\x1a\x04PROD"
    assert messages.Release(uid="u").SerializeToString() == b"\x0a\x01u"
    assert messages.Response(listeners=["a"], prod_listeners=["b"]).SerializeToString() == b"\x0a\x01a\x12\x01b"
    assert messages.AppResponse(message="m", listeners=["l"]).SerializeToString() == b"\x0a\x01m\x12\x01l"
