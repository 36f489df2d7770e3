package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// defaulter is a struct that is to be filled with defaults before its keys are read.
type defaulter interface{ setDefaults() }

// decode reads the file into c.
func (c *Config) decode(data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // empty; check says what is missing
	} else if err != nil {
		return c.syntaxError(err)
	}
	var next yaml.Node
	if err := dec.Decode(&next); err == nil {
		return &Error{Where: c.file + ":" + strconv.Itoa(next.Line), Err: errors.New("a second YAML document begins here: overlayd reads one; take out the line ---")}
	} else if !errors.Is(err, io.EOF) {
		return c.syntaxError(err)
	}
	return c.value(doc.Content[0], "", reflect.ValueOf(c).Elem(), false)
}

// syntaxError gives an error of the YAML parser our form.
func (c *Config) syntaxError(err error) error {
	where, what := c.file, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := regexp.MustCompile(`^line (\d+): (.*)$`).FindStringSubmatch(what); m != nil {
		where, what = where+":"+m[1], m[2]
	}
	what = "not valid YAML: " + strings.ReplaceAll(what, "\n", "; ")
	if strings.Contains(what, "cannot start any token") {
		what += "; indent with spaces, not with tabs"
	}
	return &Error{Where: where, Err: errors.New(what)}
}

// override reads the value of a flag into c.
func (c *Config) override(o Override) error {
	field, opts, ok := fieldOf(reflect.ValueOf(c).Elem(), o.Key)
	if !ok {
		return &Error{Where: o.Flag, Err: fmt.Errorf("there is no key %q", o.Key)}
	}
	node := &yaml.Node{Kind: yaml.SequenceNode}
	for _, v := range o.Values {
		node.Content = append(node.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: v})
	}
	if field.Kind() != reflect.Slice {
		if len(o.Values) != 1 {
			return &Error{Where: o.Flag, Err: errors.New("give it one value")}
		}
		node = node.Content[0]
	}
	for path := range c.places {
		if path == o.Key || strings.HasPrefix(path, o.Key+"[") {
			delete(c.places, path)
		}
	}
	c.places[o.Key] = place{flag: o.Flag}
	field.SetZero()
	return c.decodeFlag(node, o, field, opts)
}

// decodeFlag decodes like value, without lines.
func (c *Config) decodeFlag(node *yaml.Node, o Override, field reflect.Value, opts tagOptions) error {
	err := c.value(node, o.Key, field, opts.single)
	for path, p := range c.places {
		if p.line == 0 {
			c.places[path] = place{flag: o.Flag}
		}
	}
	if e, ok := errors.AsType[*Error](err); ok {
		e.Where, e.Key = o.Flag, ""
	}
	return err
}

// value decodes one node into dst. single lets a scalar stand for a list of one.
func (c *Config) value(node *yaml.Node, path string, dst reflect.Value, single bool) error {
	if node.Kind == yaml.AliasNode {
		// An alias that contains itself ends where the struct does: the depth is that of the types.
		node = node.Alias
	}
	if path != "" {
		if _, ok := c.places[path]; !ok {
			c.places[path] = place{line: node.Line}
		}
	}
	set, scalar := setter(dst)
	switch {
	case scalar && node.Kind == yaml.ScalarNode:
		if node.Tag == "!!null" && dst.Kind() != reflect.String {
			return c.failf(path, "it has no value: give it one, or take it out")
		}
		text := node.Value
		if node.Tag == "!!null" {
			text = ""
		}
		if err := set(text); err != nil {
			return c.At(path, err)
		}
		return nil
	case scalar:
		return c.failf(path, "one value is wanted here, not %s", kindName(node.Kind))
	case node.Kind == yaml.ScalarNode && node.Tag == "!!null":
		return nil // a list or a group of keys that is left empty
	case dst.Kind() == reflect.Struct:
		return c.object(node, path, dst)
	default:
		return c.list(node, path, dst, single)
	}
}

// object decodes a mapping into a struct.
func (c *Config) object(node *yaml.Node, path string, dst reflect.Value) error {
	if node.Kind != yaml.MappingNode {
		keys := "the keys " + strings.Join(keysOf(dst.Type()), ", ")
		if path == "" {
			return &Error{Where: c.file + ":" + strconv.Itoa(node.Line), Err: fmt.Errorf("%s are wanted here, not %s", keys, kindName(node.Kind))}
		}
		return c.failf(path, "%s are wanted here, not %s", keys, kindName(node.Kind))
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, val := node.Content[i], node.Content[i+1]
		sub := printable(key.Value)
		if path != "" {
			sub = path + "." + sub
		}
		if first, twice := seen[key.Value]; twice {
			return &Error{Where: c.file + ":" + strconv.Itoa(key.Line), Key: sub, Err: fmt.Errorf("this key is on line %d already: keep one of the two", first)}
		}
		seen[key.Value] = key.Line
		field, opts, ok := fieldOf(dst, key.Value)
		if !ok {
			return &Error{Where: c.file + ":" + strconv.Itoa(key.Line), Key: sub, Err: unknown("key", key.Value, keysOf(dst.Type()))}
		}
		c.places[sub] = place{line: key.Line}
		if err := c.value(val, sub, field, opts.single); err != nil {
			return err
		}
	}
	return nil
}

// list decodes a sequence into a slice.
func (c *Config) list(node *yaml.Node, path string, dst reflect.Value, single bool) error {
	items := node.Content
	switch {
	case node.Kind == yaml.SequenceNode:
	case node.Kind == yaml.ScalarNode && single:
		items = []*yaml.Node{node}
	case node.Kind == yaml.ScalarNode:
		return c.failf(path, "a list is wanted here: write [%s]", printable(node.Value))
	default:
		return c.failf(path, "a list is wanted here, not %s: begin each item with -", kindName(node.Kind))
	}
	dst.Set(reflect.MakeSlice(dst.Type(), len(items), len(items)))
	for i, item := range items {
		elem := dst.Index(i)
		if d, ok := elem.Addr().Interface().(defaulter); ok {
			d.setDefaults()
		}
		if err := c.value(item, path+"["+strconv.Itoa(i)+"]", elem, false); err != nil {
			return err
		}
	}
	return nil
}

// setter returns the function that reads a scalar into dst, or false if dst is a struct or a list.
func setter(dst reflect.Value) (set func(text string) error, ok bool) {
	switch p := dst.Addr().Interface().(type) {
	case *string:
		return func(s string) error { *p = s; return nil }, true
	case *bool:
		return func(s string) error {
			if s != "true" && s != "false" {
				return fmt.Errorf("%q is neither true nor false: write one of the two", s)
			}
			*p = s == "true"
			return nil
		}, true
	case *int:
		return func(s string) (err error) { *p, err = number(s); return err }, true
	case *mtu.MSS:
		return func(s string) error { n, err := number(s); *p = mtu.MSS(n); return err }, true
	case *mtu.OverlayMTU:
		return func(s string) error { n, err := number(s); *p = mtu.OverlayMTU(n); return err }, true
	case *addr.VNI:
		return func(s string) (err error) { *p, err = addr.ParseVNI(s); return err }, true
	case *addr.MAC:
		return func(s string) (err error) { *p, err = addr.ParseMAC(s); return err }, true
	case *netip.Addr:
		return func(s string) (err error) { *p, err = address(s); return err }, true
	case *netip.Prefix:
		return func(s string) (err error) { *p, err = prefix(s); return err }, true
	case *slog.Level:
		return func(s string) (err error) { *p, err = level(s); return err }, true
	}
	return nil, false
}

// number reads a decimal number. A leading zero is refused, because YAML 1.1 takes it for octal and YAML
// 1.2 does not.
func number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || s != strconv.Itoa(n) {
		return 0, fmt.Errorf("%q is not a number: write it in decimal digits", s)
	}
	return n, nil
}

func address(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		if p, perr := netip.ParsePrefix(s); perr == nil {
			return a, fmt.Errorf("%q has a prefix length, where one address is wanted: write %v", s, p.Addr())
		}
		return a, fmt.Errorf("%q is not an IP address: write one such as 192.0.2.1 or 2001:db8::1", s)
	}
	return a, nil
}

func prefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			bits := 24
			if a.Is6() {
				bits = 64
			}
			return p, fmt.Errorf("%q has no prefix length: write %s/%d, or whatever the length of its subnet is", s, s, bits)
		}
		return p, fmt.Errorf("%q is not an address with a prefix length: write one such as 10.42.0.1/24 or fd42::1/64", s)
	}
	return p, nil
}

func level(s string) (slog.Level, error) {
	levels := []string{"debug", "info", "warn", "error"}
	i := slices.Index(levels, s)
	if i < 0 {
		return 0, fmt.Errorf("%q is not a log level: choose from %s", s, strings.Join(levels, ", "))
	}
	return [...]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[i], nil
}

// tagOptions is what stands behind the name in a tag.
type tagOptions struct {
	single bool // a scalar may stand for a list of one
}

// fieldOf finds the field of a struct that has this key.
func fieldOf(dst reflect.Value, key string) (reflect.Value, tagOptions, bool) {
	for i := range dst.NumField() {
		name, opts, _ := strings.Cut(dst.Type().Field(i).Tag.Get("yaml"), ",")
		if name == key && name != "" {
			return dst.Field(i), tagOptions{single: opts == "single"}, true
		}
	}
	return reflect.Value{}, tagOptions{}, false
}

// keysOf lists the keys of a struct in the order of its fields.
func keysOf(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name != "" {
			keys = append(keys, name)
		}
	}
	return keys
}

// printable is s itself, or quoted if it would not look like itself on a line.
func printable(s string) string {
	if q := strconv.Quote(s); q[1:len(q)-1] != s {
		return q
	}
	return s
}

// kindName names what a node is, for people.
func kindName(k yaml.Kind) string {
	switch k {
	case yaml.MappingNode:
		return "a group of keys"
	case yaml.SequenceNode:
		return "a list"
	default:
		return "a single value"
	}
}
