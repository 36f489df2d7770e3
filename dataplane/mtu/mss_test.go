package mtu

import "testing"

func TestCheckMSS(t *testing.T) {
	const (
		follow = ", or leave it out to have it follow what each path leaves"
		lower  = " at most; choose that or less, or leave it out"
	)
	for _, c := range []struct {
		mss   int64
		fixed OverlayMTU
		want  string
	}{
		{88, 0, ""}, {65445, 0, ""}, {1360, 1400, ""}, {88, 128, ""},
		{87, 0, "87 is out of range: choose from 88 to 65445" + follow},
		{0, 1400, "0 is out of range: choose from 88 to 65445" + follow},
		{-1, 0, "-1 is out of range: choose from 88 to 65445" + follow},
		{65446, 0, "65446 is out of range: choose from 88 to 65445" + follow},
		{1<<32 - 1, 1400, "4294967295 is out of range: choose from 88 to 65445" + follow},
		{1361, 1400, "1361 does not fit: an mtu of 1400 leaves 1360" + lower},
		{88, 68, "88 does not fit: an mtu of 68 leaves 28" + lower},
	} {
		got := ""
		if err := CheckMSS(c.mss, c.fixed); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%d with an MTU of %d: %q, want %q", c.mss, c.fixed, got, c.want)
		}
	}
}
