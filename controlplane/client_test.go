package controlplane

import (
	"context"
	"errors"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
)

// A manager that does not answer leaves the others their share of the time.
func TestAskManagersShares(t *testing.T) {
	s := newSite(t)
	a, b, w := s.host(), s.host(), s.host()
	tokens := a.init("a")
	b.join("b", tokens.Manager, a)
	w.join("w", tokens.Worker, a)
	w.until("both managers to be known", func() error {
		if n := len(w.member.Load().managers()); n != 2 {
			return errors.New("they are not")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(w.ctx(), time.Second)
	defer cancel()
	asked := 0
	err := w.member.Load().askManagers(ctx, callTimeout, func(ctx context.Context, _ peerv1connect.PeerServiceClient) error {
		if asked++; asked == 1 {
			<-ctx.Done()
			return connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
		}
		return ctx.Err()
	})
	if err != nil || asked != 2 {
		t.Errorf("%d managers were asked, and in the end there was %v", asked, err)
	}
}
