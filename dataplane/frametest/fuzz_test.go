package frametest

import "testing"

// FuzzVerify takes any bytes for a frame: the checkers must survive what the code under test may produce.
func FuzzVerify(f *testing.F) {
	for name, b := range samples() {
		if name != "tcp4 largest" {
			f.Add(b.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		p, err := Verify(frame)
		if err != nil {
			return
		}
		if p.TCP != nil || p.UDP != nil && len(p.Extensions) == 0 {
			segs, err := Segments(frame, max(1, (len(p.Payload)+2)/3))
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range segs {
				if _, err := Verify(s); err != nil {
					t.Fatalf("segment of a frame that verifies: %v\n% x", err, s)
				}
			}
		}
	})
}
