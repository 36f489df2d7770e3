package api

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// MarshalJSON writes a message as the API does: the proto3 mapping on one line, with fields at their
// defaults, because a counter that is missing for being zero puzzles those who read with jq. The same message
// gives the same bytes.
func MarshalJSON(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write %s as JSON: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	// protojson puts in spaces at random, lest anyone rely on them.
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return nil, fmt.Errorf("write %s as JSON: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return out.Bytes(), nil
}

// jsonCodec is Connect's JSON codec with MarshalJSON's form. Unknown fields are passed over, so that a newer
// client can speak to an older daemon.
type jsonCodec struct {
	name string
}

func (c jsonCodec) Name() string { return c.name }

func (c jsonCodec) Marshal(message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("write %T as JSON: not a protobuf message", message)
	}
	return MarshalJSON(m)
}

func (c jsonCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("read JSON into %T: not a protobuf message", message)
	}
	if len(data) == 0 {
		return fmt.Errorf("read JSON into %s: the body is empty; send at least {}", m.ProtoReflect().Descriptor().Name())
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m)
}
