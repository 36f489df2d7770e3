package addr

import "testing"

func TestVNIRange(t *testing.T) {
	for _, n := range []uint64{1, 42, uint64(MaxVNI)} {
		v, err := NewVNI(n)
		if err != nil || uint64(v) != n {
			t.Errorf("NewVNI(%d) = %v, %v", n, v, err)
		}
		if back, err := ParseVNI(v.String()); err != nil || back != v {
			t.Errorf("ParseVNI(%q) = %v, %v", v.String(), back, err)
		}
	}
	for _, n := range []uint64{0, uint64(MaxVNI) + 1, 1 << 32, 1<<64 - 1} {
		if v, err := NewVNI(n); err == nil {
			t.Errorf("NewVNI(%d) = %v, want an error", n, v)
		}
	}
	for _, s := range []string{"", "-1", "0x10", "16777216", "1.0", " 1"} {
		if v, err := ParseVNI(s); err == nil {
			t.Errorf("ParseVNI(%q) = %v, want an error", s, v)
		}
	}
}

func TestMACRoundTrip(t *testing.T) {
	m, err := ParseMAC("02:42:0a:2a:00:01")
	if err != nil {
		t.Fatal(err)
	}
	if m.Uint64() != 0x02420a2a0001 || MACFromUint64(m.Uint64()) != m {
		t.Errorf("Uint64 = %#x, back %v", m.Uint64(), MACFromUint64(m.Uint64()))
	}
	text, _ := m.MarshalText()
	var back MAC
	if err := back.UnmarshalText(text); err != nil || back != m {
		t.Errorf("UnmarshalText(%q) = %v, %v", text, back, err)
	}
	for _, s := range []string{"", "02:42:0a:2a:00", "02:42:0a:2a:00:01:02:03", "zz:42:0a:2a:00:01"} {
		if _, err := ParseMAC(s); err == nil {
			t.Errorf("ParseMAC(%q) gave no error", s)
		}
	}
}

func TestMACKinds(t *testing.T) {
	for _, c := range []struct {
		s                   string
		multi, broadc, zero bool
	}{
		{"ff:ff:ff:ff:ff:ff", true, true, false},
		{"33:33:00:00:00:01", true, false, false},
		{"01:00:5e:00:00:fb", true, false, false},
		{"02:00:00:00:00:01", false, false, false},
		{"00:00:00:00:00:00", false, false, true},
	} {
		m, err := ParseMAC(c.s)
		if err != nil {
			t.Fatal(err)
		}
		if m.IsMulticast() != c.multi || m.IsBroadcast() != c.broadc || m.IsZero() != c.zero {
			t.Errorf("%s: multicast %v broadcast %v zero %v", m, m.IsMulticast(), m.IsBroadcast(), m.IsZero())
		}
	}
}
