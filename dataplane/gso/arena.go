package gso

// Arena hands out pieces of one block of memory, for headers and for trains. Everything that it gave is valid until Reset.
// It is for one goroutine.
type Arena struct {
	mem  []byte
	used int
}

// NewArena makes an arena over mem, which it owns from now on. Memory outside the Go heap will do.
func NewArena(mem []byte) *Arena { return &Arena{mem: mem} }

// Alloc returns n bytes of unspecified content, or nil when the arena is used up.
func (a *Arena) Alloc(n int) []byte {
	if n > len(a.mem)-a.used {
		return nil
	}
	b := a.mem[a.used : a.used+n : a.used+n]
	a.used += n
	return b
}

// Reset takes everything back.
func (a *Arena) Reset() { a.used = 0 }

// Mark returns the point to which Release can go back.
func (a *Arena) Mark() int { return a.used }

// Release takes back all that was given since mark, which came from Mark after the last Reset.
func (a *Arena) Release(mark int) { a.used = mark }
