// Package clock says what time it is at least. A gateway without a battery starts in
// 1970, and somebody may set its clock back; what was signed and accepted here was made
// before now all the same.
//
// It asks the machine's clock and is given the moments that have certainly passed. It
// stores nothing, and refuses to let the machine's clock become such a moment: one that
// once ran ahead must close nothing for good (docs/decisions/0051).
package clock

import "time"

// Clock is the machine's clock with a floor. The zero value is the machine's clock.
type Clock struct {
	floor time.Time
	now   func() time.Time
}

// New takes the moments that have certainly passed; the latest is the floor.
func New(passed ...time.Time) Clock { return With(time.Now, passed...) }

// With is New with another clock than the machine's.
func With(now func() time.Time, passed ...time.Time) Clock {
	c := Clock{now: now}
	for _, t := range passed {
		if t.After(c.floor) {
			c.floor = t
		}
	}
	return c
}

// Now is the later of the machine's clock and the floor.
func (c Clock) Now() time.Time {
	now, floor, behind := c.Behind()
	if behind {
		return floor
	}
	return now
}

// Behind reports whether the machine's clock is behind the floor, and both.
func (c Clock) Behind() (now, floor time.Time, behind bool) {
	now = time.Now()
	if c.now != nil {
		now = c.now()
	}
	return now, c.floor, c.floor.After(now)
}
