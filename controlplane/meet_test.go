package controlplane

import (
	"fmt"
	"testing"
	"time"
)

// Nodes that join hear each other as soon as they know of each other, and not only when the gossip next looks for managers
// that are missing, which takes it 10 s at least.
func TestMeetAtOnce(t *testing.T) {
	s := newSite(t)
	h, x := s.host(), s.host()
	tokens := h.init("n0")
	x.join("n1", tokens.Worker, h)
	joined := time.Now()
	x.until("the gossip of the manager", func() error {
		if alive := x.Alive(); !alive[h.id()] {
			return fmt.Errorf("it knows %v", alive)
		}
		return nil
	})
	if took := time.Since(joined); took > 5*time.Second {
		t.Errorf("a node that joined heard the manager after %v", took)
	}
}
