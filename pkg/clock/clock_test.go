package clock

import (
	"testing"
	"time"
)

func at(year int) time.Time { return time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC) }

// The later of the clock and all that has passed counts: 1970 is not believed, and
// 2099 is, as long as the clock says it and no longer.
func TestNow(t *testing.T) {
	for name, tt := range map[string]struct {
		clock  time.Time
		passed []time.Time
		want   time.Time
		behind bool
	}{
		"the clock is right":   {at(2027), []time.Time{at(2025), at(2026)}, at(2027), false},
		"1970":                 {time.Unix(0, 0), []time.Time{at(2026), at(2025), {}}, at(2026), true},
		"2099":                 {at(2099), []time.Time{at(2026)}, at(2099), false},
		"nothing is known":     {time.Unix(0, 0), nil, time.Unix(0, 0), false},
		"exactly at the floor": {at(2026), []time.Time{at(2026)}, at(2026), false},
	} {
		c := With(func() time.Time { return tt.clock }, tt.passed...)
		if got := c.Now(); !got.Equal(tt.want) {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		if now, _, behind := c.Behind(); behind != tt.behind || !now.Equal(tt.clock) {
			t.Errorf("%s: behind is %t", name, behind)
		}
	}
	year := 2099
	c := With(func() time.Time { return at(year) }, at(2026))
	if year = 2027; !c.Now().Equal(at(2027)) {
		t.Errorf("once it was 2099, and it stays %s", c.Now())
	}
	if before := time.Now(); New().Now().Before(before) || (Clock{}).Now().Before(before) {
		t.Error("the machine's clock is not asked")
	}
}
