package vtep

// nominations keeps a source of nominees from naming the same pair with each packet. It belongs to one goroutine.
type nominations[K comparable] struct {
	recent [64]struct {
		key K
		at  int64 // second of the packet path's clock, from 1
	}
}

// due reports whether k is to be nominated, at a second of the packet path's clock.
func (n *nominations[K]) due(k *K, place uint32, second int64) bool {
	r := &n.recent[place%uint32(len(n.recent))]
	if r.at == second+1 && r.key == *k {
		return false
	}
	r.key, r.at = *k, second+1
	return true
}

// left notes that a batch of frames from the TAP is dealt with that the kernel did not forward by itself.
func (o *outlet) left(k int) {
	p := o.w.v.pairs
	if p == nil || o.hook == 0 {
		return
	}
	second := o.w.v.now() / 1e9
	for i := range o.w.frames[:k] {
		key, hash, ok := p.table.Leaving(o.hook, o.w.frames[i].Bytes())
		if !ok {
			continue
		}
		p.table.LeftDone(hash)
		if o.named.due(&key, hash, second) {
			p.nominate(nominee{leave: key})
		}
	}
}

// arrived is left for a batch of datagrams.
func (in *inlet) arrived(k int) {
	p := in.w.v.pairs
	if p == nil || !in.local.Is4() {
		return
	}
	second := in.w.v.now() / 1e9
	for i := range in.w.buffers[:k] {
		r := &in.w.buffers[i]
		place := p.table.ArrivedDone(r.From, r.Port, r.Data)
		if key, ok := p.table.Arriving(r.From, in.local, r.Data); ok && in.named.due(&key, place, second) {
			p.nominate(nominee{arrive: key, in: true})
		}
	}
}

func (p *pairs) nominate(n nominee) {
	select {
	case p.nominated <- n:
	default:
	}
}
