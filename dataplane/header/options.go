package header

// Kinds of one byte in the option lists of IPv4 and TCP. They have no length and no data.
const (
	OptionEnd uint8 = 0 // end of the list; what follows is padding
	OptionNop uint8 = 1
)

// Options walks a list of options in the form that IPv4 and TCP share: a kind, a length that covers both
// and the data, and the data (RFC 791, section 3.1; RFC 9293, section 3.1). The zero value is an empty list.
//
//	for o := tcp.OptionList(); o.Next(); {
//		switch o.Kind() { ... }
//	}
//
// It is bounded by the list, since every step goes at least one byte on, and never reads outside it.
type Options struct {
	list       []byte
	start, end int // of the option at hand, in list
	malformed  bool
}

// Next goes to the next option, skipping OptionNop. It returns false at the end of the list and at an
// option whose length is under 2 or runs over the list; Malformed then tells which.
func (o *Options) Next() bool {
	for i := o.end; i < len(o.list); i++ {
		switch o.list[i] {
		case OptionNop:
			continue
		case OptionEnd:
			o.start, o.end = i, len(o.list)
			return false
		}
		if i+1 >= len(o.list) || o.list[i+1] < 2 || int(o.list[i+1]) > len(o.list)-i {
			o.start, o.end = i, len(o.list)
			o.malformed = true
			return false
		}
		o.start, o.end = i, i+int(o.list[i+1])
		return true
	}
	o.start, o.end = len(o.list), len(o.list)
	return false
}

// Malformed reports whether the walk met an option that cannot be; it says nothing about options that
// Next has not come to.
func (o *Options) Malformed() bool { return o.malformed }

// Kind returns the kind of the option that Next came to.
func (o *Options) Kind() uint8 { return o.list[o.start] }

// Data returns what follows the kind and the length of the option that Next came to. It is a view of the
// header: writing to it changes the packet.
func (o *Options) Data() []byte { return o.list[o.start+2 : o.end : o.end] }

// Offset returns where the kind of the option that Next came to lies, in bytes from the start of the
// list. Lists start at an even offset in their packet, so that its parity is that of the checksum.
func (o *Options) Offset() int { return o.start }

// walk calls fn for each option until fn returns false, and reports whether all it met was well formed.
func (o Options) walk(fn func(kind byte, data []byte) bool) bool {
	for o.Next() {
		if !fn(o.Kind(), o.Data()) {
			return true
		}
	}
	return !o.malformed
}
