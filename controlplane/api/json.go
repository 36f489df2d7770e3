package api

import (
	"bytes"
	"encoding/json"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
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

// jsonCodec is Connect's JSON codec with MarshalJSON's form. Unless it is strict, unknown fields are passed
// over, so that a newer client can ask an older daemon.
type jsonCodec struct {
	name   string
	strict bool
}

// jsonCodecs makes a handler speak JSON.
func jsonCodecs(strict bool) []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithCodec(jsonCodec{name: "json", strict: strict}),
		connect.WithCodec(jsonCodec{name: "json; charset=utf-8", strict: strict}),
	}
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
	opts := protojson.UnmarshalOptions{DiscardUnknown: !c.strict}
	err := opts.Unmarshal(data, m)
	if err == nil {
		return nil
	}
	if misfit := findMisfit(opts, data, m); misfit != nil {
		return misfit
	}
	return err
}

// findMisfit says which field of a request does not take the value that it has in JSON, which protojson does not
// always say. It returns nil if that is not what is wrong.
func findMisfit(opts protojson.UnmarshalOptions, data []byte, m proto.Message) error {
	var values map[string]json.RawMessage
	if json.Unmarshal(data, &values) != nil {
		return nil
	}
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		for _, key := range []string{f.JSONName(), string(f.Name())} {
			value, ok := values[key]
			if !ok {
				continue
			}
			alone, err := json.Marshal(map[string]json.RawMessage{key: value})
			if err != nil {
				return nil
			}
			if opts.Unmarshal(alone, m.ProtoReflect().New().Interface()) != nil {
				return fmt.Errorf("%s: %s does not fit; give %s", f.Name(), show(string(value)), wanted(f))
			}
		}
	}
	return nil
}

// wanted says what a field takes.
func wanted(f protoreflect.FieldDescriptor) string {
	one, many := "a "+f.Kind().String(), f.Kind().String()+"s"
	switch f.Kind() {
	case protoreflect.StringKind:
		one, many = "a string", "strings"
	case protoreflect.BytesKind:
		one, many = "a string in base64", "strings in base64"
	case protoreflect.BoolKind:
		one, many = "true or false", "true or false"
	case protoreflect.Uint32Kind:
		one, many = "a whole number from 0 to 4294967295", "whole numbers from 0 to 4294967295"
	case protoreflect.Uint64Kind:
		one, many = "a whole number from 0 to 18446744073709551615", "whole numbers from 0 to 18446744073709551615"
	}
	if f.IsList() {
		return "a list of " + many
	}
	return one
}
